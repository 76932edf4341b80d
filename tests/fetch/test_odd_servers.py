"""What the real Drive, hub, GitLab and the networks in between are known to do to a download."""

import json
import random
import socket

import pytest

from maavt.errors import UserError
from maavt.fetch import drive, hub, lfs
from maavt.fetch.http import retry_after
from maavt.sources import vggsound
from maavt.stages import download
from tests.fetch.test_http import DATA, failure, new, times
from tests.server import Fault, Hub, Server, Socks
from tests.sources.common import contents, make_project, params


def test_a_place_that_we_are_redirected_to_is_waited_for_when_it_asks(server, tmp_path, slept):
    with Server() as other:
        other.files["/b"], other.fault = DATA, times(1, Fault(status=429, headers={"Retry-After": "9"}))
        server.fault = lambda asked: Fault(status=302, headers={"Location": f"{other.url}/b"})
        new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert max(slept) == pytest.approx(9, abs=0.1) and (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize("encoding", ["chunked", "gzip"])
def test_a_file_that_comes_packed_or_without_a_length_is_whole_or_tried_again(server, tmp_path, encoding):
    server.files["/a"] = DATA
    breaks = times(3, Fault(encoding=encoding, break_after=400_000))
    server.fault = lambda asked: breaks(asked) or Fault(encoding=encoding)
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_small_answer_that_breaks_off_or_comes_packed_is_not_taken_for_another(server, tmp_path):
    server.routes["/x/objects/batch"] = lambda *_: ("application/json", json.dumps({"objects": [
        {"oid": "a" * 64, "actions": {"download": {"href": "http://example.org/a"}}}]}).encode())
    breaks = times(2, Fault(break_after=20))
    server.fault = lambda asked: breaks(asked) or Fault(encoding="gzip")
    found = lfs.locate(new(tmp_path), f"{server.url}/x", [lfs.Pointer("a" * 64, 3)])
    assert found["a" * 64] == lfs.Place("http://example.org/a", {})


@pytest.mark.parametrize("text", [b"", b"not,a,list\n", b"<html>moved</html>"])
def test_a_list_that_is_none_is_not_kept(server, tmp_path, monkeypatch, text):
    project = make_project(tmp_path / "project", dataset="vggsound", vggsound={
        "annotations": f"{server.url}/vggsound.csv"})
    monkeypatch.chdir(project)
    server.files["/vggsound.csv"] = text
    with pytest.raises(UserError):
        download.main()
    assert not list(project.rglob("*.csv"))
    server.files["/vggsound.csv"] = b"abcdefghijk,30,baby laughter,train\n"
    folder = vggsound.annotations(params(vggsound={"annotations": f"{server.url}/vggsound.csv"}), tmp_path,
                                  new(tmp_path))
    assert len(vggsound.clips(params(), folder)) == 1


def test_an_address_that_swallows_connections_costs_a_moment_when_there_is_another_one(server, tmp_path, monkeypatch):
    """As where IPv6 is announced, but leads nowhere."""
    server.files["/a"] = DATA
    port = server.server_address[1]
    monkeypatch.setattr("maavt.fetch.http.TIMEOUT", (0.3, 5.0))
    with socket.socket() as hole:
        hole.bind(("127.0.0.2", port))
        hole.listen(0)
        with socket.socket() as first, socket.socket() as second:  # nobody takes them: the queue is full
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.2", port))
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in (
                "127.0.0.2", "127.0.0.1")]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
            new(tmp_path).file(f"http://example.org:{port}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_server_that_says_nothing_is_given_up_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("maavt.fetch.http.TIMEOUT", (0.2, 0.2))
    monkeypatch.setattr("maavt.fetch.http.BACKOFF", 0.001)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        found = failure(new(tmp_path), f"http://127.0.0.1:{silent.getsockname()[1]}/a", tmp_path / "a")
    assert str(found) == "transient: no answer, or a broken one (ReadTimeout)"


def test_a_wait_that_makes_no_sense_is_none():
    rng = random.Random(0)
    for text in ("9" * 5000, "Fri, 31 Dec 9999 23:59:59 -9999", "-1", "soon", "", "Wed, 21 Oct 99999 07:28:00 GMT",
                 *("".join(rng.choices("0123456789 ,:-GMTWedOct", k=rng.randrange(20))) for _ in range(2000))):
        assert (retry_after({"Retry-After": text}) or 0) >= 0


def test_a_list_is_whole_at_any_moment_that_somebody_reads_it(tmp_path):
    from maavt.clips import Labels, read_manifest, write_manifest
    from tests.sources.test_download import many

    clips, labels = many(300), Labels(classes=tuple(f"class {n}" for n in range(309)), background=False)
    write_manifest(tmp_path, clips, labels)
    seen = set()

    def watched():
        for clip in clips:
            seen.add(len(read_manifest(tmp_path)[0]))
            yield clip

    write_manifest(tmp_path, watched(), labels)
    assert seen == {300} and sorted(contents(tmp_path)) == ["classes.json", "clips.csv"]


def test_a_socks_proxy_leads_all_clients(server, tmp_path, monkeypatch):
    place = f"http://known.to.the.proxy.alone.test:{server.server_address[1]}"
    with Socks() as proxy:
        for name in ("MAAVT_PROXY", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"socks5h://127.0.0.1:{proxy.server_address[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        server.files |= {"/a": DATA, "/b": DATA}
        Hub(server, repository="a/b").put("x.tar.gz", DATA)
        server.redirects = {path: (to.replace(server.url, place), facts) for path, (to, facts) in
                            server.redirects.items()}
        http = new(tmp_path)
        http.file(f"{place}/a", tmp_path / "a")
        drive.fetch(http, f"{place}/b", tmp_path / "b")
        hub.fetch(http, *hub.archives(http, place, "a/b", "main", "*.gz"), tmp_path / "x")
    assert [(tmp_path / name).read_bytes() == DATA for name in "abx"] == [True] * 3
