"""A tiny project whose stages have run: real clips, real shards, a trained model."""

import importlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # tiny networks run faster on one thread, above all beside other work
os.environ.setdefault("MAAVT_WORKERS", "1")  # there are tests beside this one, and each worker loads torch first
ROOT = Path(__file__).parents[1]
# What tests measure of a busy machine is not what the user's own projects should go by.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / "users")

import pytest  # noqa: E402
import yaml  # noqa: E402
from filelock import FileLock  # noqa: E402

from tests.server import Server, drive_through  # noqa: E402

TINY = {
    "models": ["maavt"],
    "backbone": "vit_tiny_patch16_224",
    "weights": "random",
    "image_size": 32,
    "tokens": 2,
    "synth": {"classes": 4, "train": 10, "val": 4, "test": 4, "size": 48, "fps": 2},
    "shard": {"frame_size": 48, "clips_per_shard": 4},
    "train": {"epochs": 2, "batch": 16, "shuffle": 40},
    "benchmark": {"backbones": ["vit_tiny_patch16_224"], "image_size": 32, "batches": [2], "rounds": 0},
}


LONGEST = ("test_end_to_end", "test_pipeline", "test_predict", "test_checkpoint", "test_train", "test_readme",
           "test_processes", "test_download", "test_own", "test_cremad", "test_remote", "test_dask", "test_search")


def pytest_collection_modifyitems(items: list) -> None:
    """The files that take minutes first, so that at the end no process works alone."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def free_port() -> int:
    """A port of loopback on which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def tiny_settings(**changes) -> dict:
    """The committed settings made tiny; `changes` are merged over them."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    for change in (TINY, changes):
        for key, value in change.items():
            settings[key] = settings[key] | value if isinstance(value, dict) else value
    return settings


def make_project(folder: Path, /, **changes) -> Path:
    """A git repository with tiny settings and the graph, but nothing made yet."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_settings(**changes)))
    return as_repository(folder, "settings")


def clone(folder: Path, /, **changes) -> Path:
    """The files of the working tree that git would take, with tiny settings, as a repository of their own."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith("tests/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_settings(**changes)))
    return as_repository(folder)


def as_repository(folder: Path, message: str = "start") -> Path:
    """What is in a folder as the first commit of a git repository."""
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", message]):
        subprocess.run(["git", *command], cwd=folder, check=True, env=os.environ | GIT)
    return folder


GIT = {f"GIT_{who}_{what}": "maavt" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A project in which download, backbone, shard, train, evaluate, benchmark and report ran. Not to be changed: all
    processes that test at the same time share it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with FileLock(shared / "made.lock"):
        if not (shared / "made.done").exists():
            shutil.rmtree(shared / "made", ignore_errors=True)  # of a process that failed on the way
            _make(shared / "made" / "a project")
            (shared / "made.done").touch()
    return shared / "made" / "a project"


def _make(folder: Path) -> None:
    from maavt.stages import backbone, benchmark, download, evaluate, report, shard, train

    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (download, backbone, shard, train, evaluate, benchmark, report):
            stage.main([])


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A copy of the made project that a test may change; the test runs inside it."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def server(monkeypatch):
    """A server on loopback; nobody waits long before trying again, and small pieces count."""
    hurry(monkeypatch.setattr)
    with Server() as running:
        yield running


def hurry(patch: Callable) -> None:
    """Make the downloaders fit for small files and short tests; in a process of one's own with `setattr`."""
    no_sleep = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    for module, name, value in (("maavt.fetch.http", "BACKOFF", 0.001), ("gdown.download", "CHUNK_SIZE", 3000),
                                ("maavt.fetch.hub", "CHUNK", 3000),
                                ("huggingface_hub.file_download", "time", no_sleep),
                                ("huggingface_hub.utils._http", "time", no_sleep)):
        patch(importlib.import_module(module), name, value)


@pytest.fixture
def drive(server, tmp_path, monkeypatch):
    """The server plays Google Drive, too: all clients reach it through itself, as a proxy that they trust."""
    for name, value in drive_through(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """The seconds of every wait; on the clock of the downloader they pass at once."""
    waits, now = [], [1000.0]

    def sleep(self, seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("maavt.fetch.http.time.monotonic", lambda: now[0])
    monkeypatch.setattr("maavt.fetch.http.Http._sleep", sleep)
    return waits
