"""A file over several connections, from a server that allows it, or breaks, or forbids it."""

import random

import pytest

from maavt.errors import UserError
from maavt.fetch import Failed, segments
from tests.sources.server import Fault
from tests.sources.test_http import DATA, new

PIECE = 60_000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(segments, "PIECE", PIECE)
    monkeypatch.setattr("maavt.fetch.answer.CHUNK", 10_000)


def ranges(server) -> list[str]:
    return [asked.headers["Range"] for asked in server.asked if "Range" in asked.headers]


def is_piece(asked) -> bool:
    return not asked.headers.get("Range", "-").endswith("-")


def test_a_large_file_comes_over_as_many_connections_as_are_allowed(server, tmp_path):
    server.files["/a"], server.rate = DATA, 2e6
    new(tmp_path, connections=3).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert 3 <= server.most_open <= 4  # it takes the server a moment to see that the first one was hung up
    assert len(ranges(server)) == len(set(ranges(server))) >= len(DATA) // PIECE - 3
    assert {asked.headers["If-Range"] for asked in server.asked[1:]} == {server.tag(DATA)}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_that_come_at_once_share_the_connections(server, tmp_path):
    server.files |= {f"/{n}": DATA for n in range(6)}
    server.rate = 10e6
    http = new(tmp_path, connections=4)
    results = dict(http.each(lambda n: http.file(f"{server.url}/{n}", tmp_path / str(n)), range(6)))
    assert set(results.values()) == {None} and server.most_open < 8  # more than 4 for one piece, when a file begins
    assert all((tmp_path / str(n)).read_bytes() == DATA for n in range(6))
    assert ranges(server)  # once fewer files are left than connections


@pytest.mark.parametrize("what", ["ranges", "tags"])
def test_a_server_without_ranges_or_versions_is_asked_once(server, tmp_path, what):
    server.files["/a"] = DATA
    setattr(server, what, False)
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA and len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 403, 404])
def test_a_server_that_forbids_the_second_connection_is_left_with_one_and_nothing_is_lost(server, tmp_path, status):
    server.files |= {"/a": DATA[:300_000], "/b": DATA[:300_000]}
    server.rate = 1e6
    server.fault = lambda asked: Fault(status=status, headers={"Retry-After": "1"}) if is_piece(asked) else None
    http = new(tmp_path, connections=2)
    http.file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA[:300_000]
    assert [is_piece(asked) for asked in server.asked] == [False, True]
    http.file(f"{server.url}/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == DATA[:300_000] and len(server.asked) == 3


def test_a_server_that_forbids_it_in_the_middle_is_left_with_one(server, tmp_path):
    server.files["/a"], server.rate = DATA, 5e6
    server.fault = lambda asked: Fault(status=429) if is_piece(asked) and len(server.asked) > 6 else None
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert [text for text in ranges(server) if text.endswith("-")] and sum(map(is_piece, server.asked)) < 15


def test_a_server_that_answers_pieces_with_the_whole_file_or_a_web_page_is_left_with_one(server, tmp_path):
    server.files["/a"], server.rate = DATA, 5e6
    server.whole = is_piece
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_file_that_changes_in_between_is_the_new_one_as_a_whole(server, tmp_path):
    server.files["/a"], server.rate = DATA, 5e6

    def change(asked):
        if len(server.asked) == 8:
            server.files["/a"] = DATA[::-1]

    server.fault = change
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("seed", range(20))
def test_over_broken_connections_every_byte_is_right_and_what_came_is_kept(server, tmp_path, seed):
    rng = random.Random(seed)
    server.files["/a"] = DATA

    def fault(asked):
        dice = rng.random()
        return (Fault(break_after=rng.randrange(2 * PIECE)) if dice < 0.5 else
                Fault(status=rng.choice((500, 502, 503))) if dice < 0.6 else None)

    server.fault = fault
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


def test_what_is_on_disk_when_a_run_ends_is_the_beginning_of_the_file_and_is_gone_on_with(server, tmp_path):
    server.files["/a"] = DATA
    broken = [0]

    def count(received):
        broken[0] += received
        if broken[0] > 400_000:
            raise UserError("enough")

    with pytest.raises(UserError):
        new(tmp_path, on_bytes=count).file(f"{server.url}/a", tmp_path / "a")
    begun = (tmp_path / "a.part").read_bytes()
    assert len(begun) > 300_000 and DATA.startswith(begun)
    server.asked.clear()
    new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    opened = [text for text in ranges(server) if text.endswith("-")]  # others may be the first run's last words
    assert opened == [f"bytes={len(begun)}-"]
    assert all(int(text[6:].split("-")[0]) >= len(begun) for text in ranges(server))


def test_a_server_that_fails_for_good_ends_in_one_failure_and_keeps_what_came(server, tmp_path):
    server.files["/a"] = DATA
    server.fault = lambda asked: Fault(status=500) if len(server.asked) > 5 else None
    with pytest.raises(Failed, match="transient: HTTP 500"):
        new(tmp_path).file(f"{server.url}/a", tmp_path / "a")
    assert DATA.startswith((tmp_path / "a.part").read_bytes())
