"""gdown against a server that plays Google Drive, reached as the real one is: by its names, over TLS."""

import pytest

from maavt.errors import UserError
from maavt.fetch import Failed
from maavt.fetch.budget import Budget
from maavt.fetch.drive import fetch
from maavt.fetch.http import Http
from tests.fetch.test_http import DATA, times
from tests.server import QUOTA, Fault, put_on_drive


@pytest.fixture
def url(drive) -> str:
    return put_on_drive(drive, "1F-j", DATA)


def new(tmp_path, **options) -> Http:
    return Http(Budget(tmp_path), **options)


def failure(tmp_path, url) -> Failed:
    with pytest.raises(Failed) as caught:
        fetch(new(tmp_path), url, tmp_path / "a")
    return caught.value


def broken(count: int, after: int):
    fault = times(count, Fault(break_after=after))
    return lambda asked: fault(asked) if asked.path.startswith("/download") else None


def ranges(drive) -> list[str]:
    return [asked.headers["Range"] for asked in drive.asked if "Range" in asked.headers]


def test_the_page_of_confirmation_is_followed_and_a_broken_file_gone_on_with(drive, url, tmp_path):
    drive.fault = broken(1, 250_000)
    received = []
    http = new(tmp_path, on_bytes=received.append)
    fetch(http, url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA and [path.name for path in tmp_path.iterdir() if path.name == "a"]
    assert http.budget.used - (tmp_path / "drive.pem").stat().st_size - (tmp_path / "drive.key").stat().st_size == sum(
        received) == len(DATA)
    assert ranges(drive) and all(int(text[6:-1]) > 240_000 for text in ranges(drive))


def test_another_run_goes_on_with_the_part_of_an_earlier_one(drive, url, tmp_path):
    drive.fault = lambda asked: Fault(break_after=400_000) if asked.path.startswith(
        "/download") and not asked.headers.get("Range") else Fault(status=500) if "Range" in asked.headers else None
    assert failure(tmp_path, url).kind == "transient"
    drive.fault = lambda asked: None
    drive.asked.clear()
    fetch(new(tmp_path), url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert ranges(drive) and int(ranges(drive)[0][6:-1]) > 390_000


@pytest.mark.parametrize("part", [DATA, DATA + b"more"])
def test_a_part_that_the_server_does_not_go_on_with_is_fetched_anew(drive, url, tmp_path, part):
    (tmp_path / "aabcdefgh.part").write_bytes(part)
    http = new(tmp_path)
    fetch(http, url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("page, kind, advice", [
    (QUOTA, "session", "quota"),
    (QUOTA.replace("Too many users have viewed or downloaded this file recently.",
                   "Sorry, the file you have requested does not exist."), "permanent", "no such file"),
    ("<form id='gaia_loginform'>", "permanent", "MAAVT_COOKIES"),
    ("<p>something new</p>", "transient", "does not know"),
])
def test_pages_of_refusal_say_what_is_the_matter(drive, url, tmp_path, page, kind, advice):
    drive.routes["/uc"] = lambda *_: ("text/html", page.encode())
    failed = failure(tmp_path, url)
    assert failed.kind == kind and advice in failed.reason


@pytest.mark.parametrize("status, kind, asked", [(403, "session", 2), (404, "permanent", 2), (429, "session", 12),
                                                 (503, "transient", 12)])
def test_a_status_that_gdown_does_not_tell_is_asked_for_once_more_and_keeps_its_kind(drive, url, tmp_path, status, kind,
                                                                                    asked):
    drive.fault = lambda asked: Fault(status=status, headers={"Content-Type": "text/html"})
    failed = failure(tmp_path, url)
    assert failed.kind == kind and f"HTTP {status}" in failed.reason
    assert len([ask for ask in drive.asked if ask.method == "GET"]) == asked


@pytest.mark.parametrize("status, kind", [(403, "session"), (404, "permanent"), (503, "transient")])
def test_a_status_behind_the_page_of_confirmation_keeps_its_kind(drive, url, tmp_path, status, kind):
    drive.fault = lambda asked: Fault(status=status, headers={"Content-Type": "text/html"}) if asked.path.startswith(
        "/download") else None
    failed = failure(tmp_path, url)
    assert failed.kind == kind and f"HTTP {status}" in failed.reason


def test_drive_is_waited_for_when_it_asks(drive, url, tmp_path, slept):
    drive.fault = times(2, Fault(status=429, headers={"Content-Type": "text/html", "Retry-After": "7"}))
    fetch(new(tmp_path), url, tmp_path / "a")
    assert max(slept) == pytest.approx(7, abs=0.1) and (tmp_path / "a").read_bytes() == DATA


def test_cookies_of_ones_own_reach_drive_and_their_file_stays_as_it_is(drive, url, tmp_path, monkeypatch):
    mine = tmp_path / "cookies.txt"
    mine.write_text("# Netscape HTTP Cookie File\n.google.com\tTRUE\t/\tTRUE\t0\tSID\tsecret\n")
    before = mine.read_bytes()
    monkeypatch.setenv("MAAVT_COOKIES", str(mine))
    fetch(new(tmp_path), url, tmp_path / "a")
    assert {asked.headers.get("Cookie") for asked in drive.asked if asked.method == "GET"} == {"SID=secret"}
    assert mine.read_bytes() == before


@pytest.mark.parametrize("text", [None, "no cookies"])
def test_cookies_that_are_none_are_the_users_to_mend(drive, url, tmp_path, monkeypatch, text):
    if text:
        (tmp_path / "mine").write_text(text)
    monkeypatch.setenv("MAAVT_COOKIES", str(tmp_path / "mine"))
    with pytest.raises(UserError, match="MAAVT_COOKIES=.*mine.*Netscape"):
        fetch(new(tmp_path), url, tmp_path / "a")
    assert not drive.asked


def test_a_file_beyond_the_disk_budget_is_not_begun(drive, url, tmp_path, monkeypatch):
    monkeypatch.setenv("MAAVT_DISK_BUDGET", "0.9MB")
    failed = failure(tmp_path, url)
    assert failed.kind == "environment" and "disk budget" in failed.reason
    assert sum(path.stat().st_size for path in tmp_path.glob("*.part")) <= 3000


def test_any_other_address_does_as_well(server, tmp_path):
    server.files["/a"] = DATA
    server.fault = times(2, Fault(break_after=300_000))
    fetch(new(tmp_path), f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA and ranges(server)


def test_another_address_that_refuses_or_is_none_says_so(server, tmp_path):
    assert str(failure(tmp_path, f"{server.url}/a")) == "permanent: gone (HTTP 404)"
    server.routes["/a"] = lambda *_: ("text/html", b"<p>sign in</p>")
    assert "web page" in failure(tmp_path, f"{server.url}/a").reason and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no URL"):
        fetch(new(tmp_path), "example/file", tmp_path / "a")
