import random

import pytest

from maavt.errors import UserError
from maavt.fetch import Failed
from maavt.fetch.budget import Budget
from maavt.fetch.http import ATTEMPTS, FRUITLESS, Http
from tests.server import Fault

DATA = random.Random(0).randbytes(1_000_000)


def new(tmp_path, **options) -> Http:
    return Http(Budget(tmp_path), **options)


def times(count: int, fault: Fault):
    """The fault for the first `count` requests."""
    left = iter(range(count))
    return lambda asked: fault if next(left, None) is not None else None


def failure(http: Http, url: str, path, **options) -> Failed:
    with pytest.raises(Failed) as caught:
        http.file(url, path, **options)
    return caught.value


def test_a_file_over_broken_connections_is_whole_or_not_there(server, tmp_path):
    server.files["/a"] = DATA
    server.fault = times(3, Fault(break_after=200_000))
    http = new(tmp_path)
    http.file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA and http.budget.used == len(DATA)
    server.fault = lambda asked: Fault(break_after=200_000)
    assert failure(http, f"{server.url}/a", tmp_path / "b").kind == "transient"
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and http.budget.used == len(DATA)


def test_server_errors_are_tried_again_a_few_times(server, tmp_path):
    server.files["/a"] = DATA
    server.fault = times(ATTEMPTS - 1, Fault(status=502))
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    server.fault = lambda asked: Fault(status=502)
    server.asked.clear()
    assert str(failure(new(tmp_path), f"{server.url}/a", tmp_path / "b")) == "transient: HTTP 502"
    assert len(server.asked) == ATTEMPTS


@pytest.mark.parametrize("status, kind, reason", [
    (404, "permanent", "gone (HTTP 404)"), (410, "permanent", "gone (HTTP 410)"),
    (451, "permanent", "HTTP 451"), (403, "session", "refuses access (HTTP 403)"),
])
def test_what_will_not_change_is_asked_once(server, tmp_path, status, kind, reason):
    server.fault = lambda asked: Fault(status=status)
    failed = failure(new(tmp_path), f"{server.url}/a", tmp_path / "a")
    assert failed.kind == kind and reason in failed.reason
    assert len(server.asked) == 1


def test_a_server_that_asks_to_wait_is_waited_for_by_all(server, tmp_path, slept):
    server.files |= {"/a": DATA, "/b": DATA}
    server.fault = times(1, Fault(status=429, headers={"Retry-After": "7"}))
    http = new(tmp_path)
    http.file(f"{server.url}/a", tmp_path / "a")
    assert max(slept) == pytest.approx(7, abs=0.1)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_server_that_asks_to_wait_for_hours_stops_the_run(server, tmp_path):
    server.fault = lambda asked: Fault(status=429, headers={"Retry-After": "7200"})
    failed = failure(new(tmp_path), f"{server.url}/a", tmp_path / "a")
    assert failed.kind == "session" and "7200 s" in failed.reason


def test_a_server_that_keeps_saying_too_many_requests_stops_the_run(server, tmp_path):
    server.fault = lambda asked: Fault(status=429)
    assert failure(new(tmp_path), f"{server.url}/a", tmp_path / "a").kind == "session"


def test_a_false_length_is_never_taken_for_the_file(server, tmp_path):
    server.files["/a"] = DATA
    server.fault = lambda asked: Fault(announce=len(DATA) + 5)
    assert failure(new(tmp_path), f"{server.url}/a", tmp_path / "a").kind == "transient"
    server.fault = lambda asked: None
    failed = failure(new(tmp_path), f"{server.url}/a", tmp_path / "b", size=len(DATA) - 1)
    assert failed.kind == "transient" and "size" in failed.reason
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_bytes_with_another_sum_are_thrown_away(server, tmp_path):
    server.files["/a"] = DATA
    failed = failure(new(tmp_path), f"{server.url}/a", tmp_path / "a", sha256="0" * 64)
    assert failed.kind == "transient" and "sha256" in failed.reason
    assert not list(tmp_path.iterdir())


def test_a_web_page_instead_of_the_file_stops_the_run(server, tmp_path):
    server.routes["/a"] = lambda *_: ("text/html; charset=utf-8", b"<p>sign in</p>")
    assert failure(new(tmp_path), f"{server.url}/a", tmp_path / "a").kind == "session"


def test_a_server_that_is_out_of_reach_stops_the_run_in_the_end(server, tmp_path):
    http, url = new(tmp_path), "http://127.0.0.1:9/a"
    kinds = [failure(http, url, tmp_path / "a").kind for _ in range(FRUITLESS)]
    assert kinds == ["transient"] * (FRUITLESS - 1) + ["session"]


def test_an_address_that_is_none_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="no URL"):
        new(tmp_path).file("example/file", tmp_path / "a")


def test_one_refusal_stops_the_work_on_all_others(server, tmp_path):
    server.files |= {f"/{n}": b"x" for n in range(1000)}
    server.fault = lambda asked: Fault(status=403) if asked.path == "/20" else None
    http, got = new(tmp_path, connections=2), []
    with pytest.raises(Failed, match="session"):
        for item, _ in http.each(lambda n: http.file(f"{server.url}/{n}", tmp_path / str(n)), range(1000)):
            got.append(item)
    assert 15 < len(got) < 30
    assert len(server.asked) < 40


def test_what_fails_for_one_file_is_data(server, tmp_path):
    server.files |= {f"/{n}": b"x" for n in range(0, 20, 2)}
    http = new(tmp_path)
    results = dict(http.each(lambda n: http.file(f"{server.url}/{n}", tmp_path / str(n)), range(20)))
    assert [n for n in range(20) if results[n] is None] == list(range(0, 20, 2))
    assert {str(results[n]) for n in range(1, 20, 2)} == {"permanent: gone (HTTP 404)"}


def test_a_file_beyond_the_disk_budget_is_not_kept(server, tmp_path, monkeypatch):
    server.files["/a"] = DATA
    monkeypatch.setenv("MAAVT_DISK_BUDGET", "0.9MB")
    failed = failure(new(tmp_path), f"{server.url}/a", tmp_path / "a")
    assert failed.kind == "environment" and "disk budget" in failed.reason
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000


def test_a_disk_budget_that_is_no_size_is_the_users_to_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("MAAVT_DISK_BUDGET", "much")
    with pytest.raises(UserError, match="expected a size such as 300GB"):
        Budget(tmp_path)


def test_a_disk_that_is_full_is_not_the_servers_fault(server, tmp_path, monkeypatch):
    server.files["/a"] = DATA
    http = new(tmp_path)
    monkeypatch.setattr(http.budget, "take", lambda size: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Failed, match="environment.*No space left"):
        list(http.each(lambda url: http.file(url, tmp_path / "a"), [f"{server.url}/a"]))


def test_passwords_and_tokens_of_an_address_are_in_no_reason(server, tmp_path):
    url = server.url.replace("://", "://ann:planted@") + "/a?token=planted"
    server.routes["/a"] = lambda *_: ("text/html", b"<p>sign in</p>")
    page = failure(new(tmp_path), url, tmp_path / "a")
    server.fault = times(1, Fault(status=403))
    refused = failure(new(tmp_path), url, tmp_path / "a")
    for failed in (page, refused):
        assert failed.kind == "session" and "127.0.0.1" in str(failed) and "planted" not in str(failed)
