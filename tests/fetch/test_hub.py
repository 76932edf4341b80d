"""The hub's own client against a server that speaks its protocol: HEAD with the facts, a redirect, ranges."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maavt.fetch import Failed, hub
from maavt.fetch.budget import Budget
from maavt.fetch.http import ATTEMPTS, Http
from tests.fetch.test_http import DATA, new, times
from tests.server import Fault, Hub, Server

CHUNK = hub.CHUNK


@pytest.fixture
def data_set(server):
    with Server() as store:
        found = Hub(server, store, "a/b")
        found.put("x.tar.gz", DATA)
        yield found


def fetch(data_set, folder, **options) -> Http:
    http = Http(Budget(folder), **options)
    (archive,) = hub.archives(http, data_set.server.url, "a/b", "main", "*.tar.gz")
    hub.fetch(http, archive, folder / "x")
    return http


def failure(data_set, folder) -> Failed:
    with pytest.raises(Failed) as caught:
        fetch(data_set, folder)
    return caught.value


def sent(data_set) -> int:
    return sum(asked.sent for asked in data_set.store.asked)


def test_a_file_is_gone_on_with_where_a_connection_broke_and_its_bytes_are_counted(data_set, tmp_path):
    data_set.store.fault = times(3, Fault(break_after=200_000))
    received = []
    http = fetch(data_set, tmp_path, on_bytes=received.append)
    assert (tmp_path / "x").read_bytes() == DATA and [path.name for path in tmp_path.iterdir()] == ["x"]
    assert sum(received) == http.budget.used == len(DATA) and sent(data_set) < len(DATA) + 3 * 3000
    assert "HEAD" in {asked.method for asked in data_set.server.asked}


def test_another_run_goes_on_with_the_part_of_an_earlier_one(data_set, tmp_path):
    data_set.store.fault = lambda asked: Fault(status=500) if "Range" in asked.headers else Fault(break_after=400_000)
    assert failure(data_set, tmp_path).kind == "transient" and not (tmp_path / "x").exists()
    data_set.store.fault = lambda asked: None
    data_set.store.asked.clear()
    fetch(data_set, tmp_path)
    assert (tmp_path / "x").read_bytes() == DATA and sent(data_set) < 604_000


def test_a_store_without_ranges_sends_all_again(data_set, tmp_path):
    data_set.store.ranges, data_set.store.fault = False, times(2, Fault(break_after=300_000))
    http = fetch(data_set, tmp_path)
    assert (tmp_path / "x").read_bytes() == DATA and http.budget.used == len(DATA)


def test_a_store_without_ranges_whose_connections_always_break_is_given_up(data_set, tmp_path):
    data_set.store.ranges, data_set.store.fault = False, lambda asked: Fault(break_after=300_000)
    failed = failure(data_set, tmp_path)
    assert failed.kind == "transient" and "does not go on" in failed.reason
    assert len(data_set.store.asked) <= 3 * (ATTEMPTS + 1)


def test_what_came_before_each_break_is_kept_whatever_the_clients_own_steps_are(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "CHUNK", CHUNK)
    data_set.put("x.tar.gz", long := DATA * 3)
    data_set.store.fault = lambda asked: Fault(break_after=900_000)
    fetch(data_set, tmp_path)
    assert (tmp_path / "x").read_bytes() == long and sent(data_set) < len(long) + 4 * CHUNK


def test_a_pause_that_the_store_asks_for_is_ours_to_keep(data_set, tmp_path, slept):
    data_set.store.fault = times(1, Fault(status=429, headers={"Retry-After": "7"}))
    fetch(data_set, tmp_path)
    assert max(slept) == pytest.approx(7, abs=0.1) and len(data_set.store.asked) == 2
    (tmp_path / "x").unlink()
    data_set.store.fault = lambda asked: Fault(status=429, headers={"Retry-After": "7200"})
    failed = failure(data_set, tmp_path)
    assert failed.kind == "session" and "7200 s" in failed.reason


def test_a_list_that_fails_for_a_moment_is_asked_for_again(data_set, tmp_path):
    data_set.server.fault = times(2, Fault(status=502))
    fetch(data_set, tmp_path)


@pytest.mark.parametrize("where", ["pause", "token", "stream"])
def test_ctrl_c_ends_a_wait_for_the_hub_and_a_stream_of_xet_that_is_stuck(data_set, tmp_path, where):
    reached, over = threading.Event(), threading.Event()

    def stuck(*_):
        reached.set()
        over.wait(60)
        return "text/plain", b""

    def busy(asked):
        reached.set()
        return Fault(status=429, headers={"Retry-After": "300"})

    if where == "pause":
        data_set.store.fault = busy
    else:
        offer_xet(data_set, DATA)
        data_set.server.routes["/token" if where == "token" else "/block"] = stuck
    script = f"""
from functools import partial
from pathlib import Path
from maavt.fetch import hub
from maavt.fetch.budget import Budget
from maavt.fetch.http import Http
folder = Path({str(tmp_path)!r})
http = Http(Budget(folder))
found = hub.archives(http, {data_set.server.url!r}, "a/b", "main", "*.tar.gz")
try:
    list(http.each(lambda archive: hub.fetch(http, archive, folder / "x"), found))
except KeyboardInterrupt:
    print("interrupted")
"""
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                           env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    try:
        assert reached.wait(60)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        assert run.communicate(timeout=8)[0] == "interrupted\n" and run.returncode == 0
    finally:
        over.set()
        run.kill()
        run.wait()


def test_a_file_that_changed_starts_anew(data_set, tmp_path):
    data_set.store.fault = lambda asked: Fault(status=500) if "Range" in asked.headers else Fault(break_after=400_000)
    failure(data_set, tmp_path)
    data_set.store.fault = lambda asked: None
    data_set.put("x.tar.gz", DATA[::-1])
    fetch(data_set, tmp_path)
    assert (tmp_path / "x").read_bytes() == DATA[::-1] and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_bytes_with_another_hash_are_thrown_away(data_set, tmp_path):
    data_set.store.files = dict.fromkeys(data_set.store.files, DATA[::-1])
    failed = failure(data_set, tmp_path)
    assert failed.kind == "transient" and "sha256" in failed.reason and not list(tmp_path.iterdir())


def test_the_token_goes_to_the_hub_and_nowhere_else(data_set, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(data_set, tmp_path)
    assert {asked.headers.get("authorization") for asked in data_set.server.asked} == {"Bearer hf_secret"}
    assert {asked.headers.get("authorization") for asked in data_set.store.asked} == {None}


def test_a_mirror_stands_for_the_hub(data_set, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", data_set.server.url)
    (archive,) = hub.archives(new(tmp_path), "https://huggingface.co", "a/b", "main", "*.tar.gz")
    assert archive.url == f"{data_set.server.url}/datasets/a/b/resolve/main/x.tar.gz"


@pytest.mark.parametrize("status, kind, reason", [(404, "permanent", "gone"), (403, "session", "refuses access"),
                                                  (502, "transient", "HTTP 502")])
def test_a_status_is_told_by_its_kind(data_set, tmp_path, status, kind, reason):
    data_set.server.fault = lambda asked: Fault(status=status) if "resolve" in asked.path else None
    failed = failure(data_set, tmp_path)
    assert failed.kind == kind and reason in failed.reason
    assert len(data_set.server.asked) == 1 + (ATTEMPTS if kind == "transient" else 1)


def test_a_file_beyond_the_disk_budget_is_not_begun(data_set, tmp_path, monkeypatch):
    monkeypatch.setenv("MAAVT_DISK_BUDGET", "0.9MB")
    failed = failure(data_set, tmp_path)
    assert failed.kind == "environment" and "disk budget" in failed.reason and not data_set.store.asked


def offer_xet(data_set, data: bytes) -> None:
    """Have the server be a store of chunks, not compressed, that speaks to hf_xet as the hub's does."""
    pytest.importorskip("hf_xet")
    server, chunk, count = data_set.server, 100_000, 10  # hf_xet takes chunks of 128 kB at most
    head = b"\0" + chunk.to_bytes(3, "little") + b"\0" + chunk.to_bytes(3, "little")
    block = b"".join(head + data[n * chunk : (n + 1) * chunk] for n in range(count))
    for _, headers in server.redirects.values():
        headers |= {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{server.url}/token"}
    server.routes["/token"] = lambda *_: ("application/json", json.dumps({
        "accessToken": "t", "exp": int(time.time()) + 3600, "casUrl": server.url}).encode())

    def rebuild(handler, _):
        begin = int(handler.headers["Range"][6:].split("-")[0]) if "Range" in handler.headers else 0
        first = begin // chunk
        wanted = {"start": first, "end": count}
        place = {"start": first * (chunk + len(head)), "end": count * (chunk + len(head)) - 1}
        return "application/json", json.dumps({
            "offset_into_first_range": begin - first * chunk,
            "terms": [{"hash": "b" * 64, "unpacked_length": chunk * (count - first), "range": wanted}],
            "fetch_info": {"b" * 64: [{"range": wanted, "url": f"{server.url}/block", "url_range": place}]}}).encode()

    server.files["/block"] = block
    server.routes[f"/v1/reconstructions/{'a' * 64}"] = rebuild


def test_where_the_hub_offers_xet_the_file_comes_by_it_and_is_gone_on_with(data_set, tmp_path):
    offer_xet(data_set, DATA)
    (tmp_path / f"x.{hashlib.sha256(DATA).hexdigest()[:16]}.part").write_bytes(DATA[:600_000])
    http = fetch(data_set, tmp_path)
    assert (tmp_path / "x").read_bytes() == DATA and http.budget.used == len(DATA)
    assert not data_set.store.asked and "/block" in {asked.path for asked in data_set.server.asked}


def test_xet_that_fails_is_replaced_by_the_plain_file(data_set, tmp_path):
    for _, headers in data_set.server.redirects.values():
        headers |= {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{data_set.server.url}/refused"}
    fetch(data_set, tmp_path)
    assert (tmp_path / "x").read_bytes() == DATA
    assert "/refused" in {asked.path for asked in data_set.server.asked}


def test_without_the_network_by_ones_own_wish_nothing_is_asked(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Failed, match="HF_HUB_OFFLINE"):
        hub.archives(new(tmp_path), data_set.server.url, "a/b", "main", "*")


@pytest.mark.parametrize("answer", [b"<html>Service unavailable</html>", b"[1, 2]", b'[{"type": "file"}]', b"{}"])
def test_a_hub_that_answers_with_something_else_is_one_clear_failure(data_set, tmp_path, answer):
    data_set.server.routes["/api/datasets/a/b/tree/main"] = lambda *_: ("text/html", answer)
    with pytest.raises(Failed) as caught:
        hub.archives(new(tmp_path), data_set.server.url, "a/b", "main", "*.tar.gz")
    assert caught.value.kind == "session" and data_set.server.url in caught.value.reason


def test_a_data_set_without_such_files_is_one_clear_failure(data_set, tmp_path):
    with pytest.raises(Failed, match="no file like"):
        hub.archives(new(tmp_path), data_set.server.url, "a/b", "main", "*.zip")
    assert json.loads(data_set.tree())
