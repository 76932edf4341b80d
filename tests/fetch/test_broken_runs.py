"""Thirty broken runs: processes that are killed while answers break off, and what is there in the end."""

import multiprocessing
import os
import random
import time
from functools import partial
from pathlib import Path

import pytest

from maavt.fetch import Failed, hub
from maavt.fetch.budget import Budget
from maavt.fetch.drive import fetch as fetch_from_drive
from maavt.fetch.http import Http
from tests.conftest import hurry
from tests.server import Fault, Hub, put_on_drive

RUNS = 10  # of each seed


def download(folder: Path, url: str, on_drive: str, environment: dict[str, str]) -> None:
    """In a process of its own: two archives of the hub, one of Drive, and a small file."""
    hurry(setattr)
    os.environ |= environment  # its parent was started once, for all tests
    http = Http(Budget(folder))
    jobs = [partial(hub.fetch, http, archive, folder / archive.name)
            for archive in hub.archives(http, url, "a/b", "main", "*.tar.gz")]
    jobs += [partial(fetch_from_drive, http, on_drive, folder / "d.zip"), partial(http.file, f"{url}/s", folder / "s")]
    for _, result in http.each(lambda job: job(), jobs):
        if isinstance(result, Failed):
            raise result


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_killed_and_broken_runs_end_with_the_same_bytes(drive, tmp_path, seed):
    rng = random.Random(seed)
    files = {name: rng.randbytes(700_000) for name in ("x.tar.gz", "y.tar.gz", "d.zip", "s")}
    data_set = Hub(drive, repository="a/b")
    for name in ("x.tar.gz", "y.tar.gz"):
        data_set.put(name, files[name])
    on_drive = put_on_drive(drive, "1F", files["d.zip"])
    drive.files["/s"] = files["s"]

    def fault(asked):
        dice = rng.random()
        if asked.path.startswith("/api"):
            return None
        return (Fault(break_after=rng.randrange(100_000)) if dice < 0.6 else
                Fault(status=rng.choice((500, 503))) if dice < 0.7 else None)

    drive.fault, drive.rate = fault, 2e6
    folder, killed, context = tmp_path / "got", 0, multiprocessing.get_context("forkserver")
    folder.mkdir()
    context.set_forkserver_preload(["tests.fetch.test_broken_runs", "huggingface_hub.hf_api"])
    job = (folder, drive.url, on_drive, dict(os.environ))
    for _ in range(RUNS):
        drive.asked.clear()
        run = context.Process(target=download, args=job)
        run.start()
        while run.is_alive() and not any("/api" not in asked.path for asked in list(drive.asked)):
            time.sleep(0.002)
        run.join(rng.uniform(0, 0.15))
        killed += run.is_alive()
        run.kill()
        run.join()
        assert all(data == files[name] for name in files if (folder / name).exists()
                   for data in [(folder / name).read_bytes()])
    drive.fault, drive.rate = lambda asked: None, 0
    download_again = context.Process(target=download, args=job)
    download_again.start()
    download_again.join()
    assert download_again.exitcode == 0 and killed >= RUNS // 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
