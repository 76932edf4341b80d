"""Reading shards: what is opened when, what is closed again, and what is said where that fails."""

import builtins
import io
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from maavt.errors import UserError
from maavt.shards import reader
from maavt.shards.reader import Reader
from tests.shards.handmade import sample, write

NAMES = ["test/0.tar", "test/1.tar", "test/2.tar"]


@pytest.fixture
def three(tmp_path) -> Path:
    """Three shards of a clip each."""
    return write(tmp_path / "three", [sample(clip, ["a"]) for clip in range(3)], per_shard=1, dataset="mine")


@pytest.fixture
def web(three, monkeypatch):
    """The same at memory://three, the seconds waited between tries, and how many openings fail first."""

    class Web:
        waited, failures, error = [], 0, OSError("the line is down")

    memory = fsspec.filesystem("memory")
    memory.put(f"{three}/", "/three/", recursive=True)
    really = type(memory)._open

    def opened(self, *arguments, **options):
        if Web.failures:
            Web.failures -= 1
            raise Web.error
        return really(self, *arguments, **options)

    Web.waited = []
    monkeypatch.setattr(type(memory), "_open", opened)
    monkeypatch.setattr(reader.time, "sleep", Web.waited.append)
    yield Web
    memory.rm("/three", recursive=True)


def keys(samples) -> list[str]:
    return [one["__key__"] for one in samples]


def test_samples_come_in_the_order_of_the_names_with_all_their_members(three):
    found = list(Reader(three).samples([NAMES[2], NAMES[0]]))
    assert keys(found) == ["clip-2", "clip-0"] and not list(Reader(three).samples([]))
    assert {"json", "spectrogram.npy", "frame-00.jpg"} < found[0].keys()
    assert found[0]["__url__"] == f"{three}/test/2.tar"


def test_a_slash_at_the_end_of_a_place_changes_nothing(three):
    assert Reader(f"{three}//").place == str(three) and keys(Reader(f"{three}/").samples(NAMES[:1])) == ["clip-0"]


def test_the_next_shard_alone_is_opened_while_one_is_read(three, monkeypatch):
    opened, closed, really = [], [], Reader._open

    def noted(self, name):
        opened.append((name, threading.current_thread().name.startswith("fetch")))
        file = really(self, name)
        close = file.close
        wrapper = io.BufferedReader(file)
        wrapper.close = lambda: (closed.append(name), close())
        return wrapper

    monkeypatch.setattr(Reader, "_open", noted)
    samples = Reader(three)._opened(NAMES)
    for number, one in enumerate(samples):
        deadline = time.monotonic() + 5
        while len(opened) < min(number + 2, 3) and time.monotonic() < deadline:
            pass
        assert opened == [(name, True) for name in NAMES[: number + 2]] and closed == NAMES[:number]
        assert one["url"] == f"{three}/{NAMES[number]}"
    assert closed == NAMES


def test_every_shard_is_closed_again_even_one_that_was_opened_for_later(three, monkeypatch):
    files, really = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda *arguments, **options: files.append(really(*arguments, **options))
                        or files[-1])
    samples = Reader(three)._opened(NAMES)
    next(samples)
    samples.close()
    assert len(files) >= 2 and all(file.closed for file in files[1:])
    (three / NAMES[0]).write_bytes(b"x")
    with pytest.raises(UserError, match="is not the one that index.json describes"):
        Reader(three)._open(NAMES[0])
    assert files[-1].closed


def test_a_shard_on_disk_is_hashed_once_and_a_fetched_one_each_time(three, web, monkeypatch):
    hashed, really = [], reader.sha256
    monkeypatch.setattr(reader, "sha256", lambda file: hashed.append(file) or really(file))
    for place, times in ((three, 1), ("memory://three", 2)):
        hashed.clear()
        reading = Reader(place)
        for _ in range(2):
            assert keys(reading.samples(NAMES[:1])) == ["clip-0"]
        assert len(hashed) == times


@pytest.mark.parametrize("place, advice", [
    ("three", r"run the shard stage again \(dvc repro -f shard\)$"), ("memory://three", "copy it there again$")])
def test_what_is_damaged_or_gone_says_how_to_mend_it(three, web, place, advice):
    place = place if "://" in place else str(three)
    reading, files = Reader(place), fsspec.filesystem("memory" if "://" in place else "file")
    inside = place.replace("memory:/", "")
    files.pipe(f"{inside}/test/0.tar", b"x")
    with pytest.raises(UserError, match=f"^the shard {place}/test/0.tar is not the one that index.json describes "
                                        rf"\(damaged or cut\); {advice}"):
        list(reading.samples(NAMES))
    files.rm(f"{inside}/test/0.tar")
    with pytest.raises(UserError, match=f"^no shard {place}/test/0.tar, which index.json names; {advice}"):
        list(reading.samples(NAMES))
    files.pipe(f"{inside}/index.json", b"{")
    with pytest.raises(UserError, match=f"^{place}/index.json is damaged .*; {advice}"):
        Reader(place)
    files.rm(f"{inside}/index.json")
    with pytest.raises(UserError, match=rf"^no {place}/index.json; run the shard stage first \(dvc repro shard\)$"):
        Reader(place)


def test_a_fetch_is_tried_three_times_with_longer_and_longer_waits(web):
    web.failures = 2
    assert Reader("memory://three").index["dataset"] == "mine" and web.waited == [1, 2]
    web.failures = 3
    with pytest.raises(UserError, match=r"^memory://three/index.json cannot be fetched \(OSError: the line is down\), "
                                        "tried 3 times; is the place reachable from here, and are its keys set.$"):
        Reader("memory://three")
    assert web.failures == 0 and web.waited == [1, 2, 1, 2]


def test_what_cannot_be_had_at_all_is_not_tried_again(web):
    web.failures, web.error = 2, FileNotFoundError("gone")
    with pytest.raises(UserError, match="^no memory://three/index.json"):
        Reader("memory://three")
    web.error = ImportError("Install s3fs to access S3")
    with pytest.raises(UserError, match=r"^memory://three/index.json: Install s3fs to access S3; for s3 that is pip "
                                        r"install 'maavt\[s3\]'$"):
        Reader("memory://three")
    assert web.failures == 0 and not web.waited


def test_a_large_shard_is_fetched_whole(web):
    data = bytes(range(256)) * 10_000  # two pieces and a half
    fsspec.filesystem("memory").pipe("/three/large", data)
    with reader._fetched("memory://three/large") as file:
        assert file.read() == data


@pytest.mark.parametrize("protocol, block", [(("http", "https"), 0), (("s3", "s3a"), None)])
def test_a_fetch_holds_little_in_memory_and_is_one_request_of_a_web_server(monkeypatch, protocol, block):
    asked = []

    class Source(io.BytesIO):
        def read(self, size):
            asked.append(size)
            return super().read(size)

    def opened(path, mode="rb", block_size="default"):
        asked.append((path, mode, block_size))
        return Source(bytes(3 << 20))

    files = SimpleNamespace(protocol=protocol, open=opened)
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (files, f"path of {url}"))
    with reader._fetched("a") as file:
        assert len(file.read()) == 3 << 20
    assert asked.pop(0) == ("path of a", "rb", block) and all(0 < size <= 1 << 20 for size in asked)


def test_the_shards_of_a_data_set_are_in_the_project_unless_the_environment_says_where(three, monkeypatch, tmp_path):
    monkeypatch.delenv("MAAVT_SHARDS", raising=False)
    project = tmp_path / "project"
    (project / "data/shards").mkdir(parents=True)
    (project / "dvc.yaml").touch()
    (project / "data/shards/mine").symlink_to(three)
    monkeypatch.chdir(project)
    assert Reader.of("mine").place == str(project / "data/shards/mine")
    (project / "data/shards/other").symlink_to(three)
    told = "are of the data set mine, and params.yaml asks for other; unset MAAVT_SHARDS or set it to those of other, "
    with pytest.raises(UserError, match=f"^the shards at {project}/data/shards/other {told}or set dataset: mine$"):
        Reader.of("other")
    monkeypatch.setenv("MAAVT_SHARDS", str(three))
    assert Reader.of("mine").place == str(three)
    (three / "index.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="are of the data set None, and params.yaml asks for mine"):
        Reader.of("mine")
