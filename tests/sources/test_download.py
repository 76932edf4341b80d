"""The download stage under bad conditions: many broken runs, kills, and very long lists."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from maavt.clips import Clip
from maavt.errors import UsageError, UserError
from maavt.fetch import Failed, http
from maavt.fetch.budget import Budget
from maavt.sources.lists import WHOLE
from maavt.sources.store import Store, summary
from maavt.stages import download
from tests.server import Fault
from tests.sources.common import ROOT, contents, make_project, write_media
from tests.sources.test_cremad import NAMES, GitLab, files, rows  # noqa: F401 (fixtures)
from tests.sources.test_vggsound import VggSound, raw

RUNS = int(os.environ.get("MAAVT_TEST_RUNS", "5"))


def project_for(place, server, monkeypatch, **changes):
    project = make_project(place, **{"dataset": "vggsound", "download": {"min_coverage": 1.0}, "vggsound": {
        "hub": server.url, "annotations": f"{server.url}/vggsound.csv"}} | changes)
    monkeypatch.chdir(project)
    return project


def break_at_random(rng: random.Random):
    """Most answers break after some bytes; others are errors, or false in length."""
    def fault(asked) -> Fault | None:
        dice = rng.random()
        if dice < 0.45:
            return Fault(break_after=rng.randrange(60_000))
        if dice < 0.55:
            return Fault(status=rng.choice((500, 502, 503)))
        if dice < 0.6:
            return Fault(status=429, headers={"Retry-After": "0"})
        if dice < 0.65:
            return Fault(announce=rng.randrange(100_000))
        return None
    return fault


def broken_runs(server, project, monkeypatch, seed: int) -> None:
    """Run the stage with little patience until a run ends well, and then once more without trouble."""
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    server.fault = break_at_random(random.Random(seed))
    for _ in range(3):
        with contextlib.suppress(UserError):
            download.main()
    server.fault = lambda asked: None
    download.main()


@pytest.mark.parametrize("seed", range(RUNS))
def test_broken_runs_end_with_the_bytes_of_a_clean_one(server, tmp_path, monkeypatch, seed):
    VggSound(server, clips=4)
    server.fault = lambda asked: None
    clean = project_for(tmp_path / "clean", server, monkeypatch)
    download.main()
    expected = contents(clean / "data")
    broken = project_for(tmp_path / "broken", server, monkeypatch)
    broken_runs(server, broken, monkeypatch, seed)
    assert contents(broken / "data") == expected


@pytest.mark.parametrize("seed", range(RUNS // 4))
def test_broken_runs_through_lfs_end_with_the_bytes_of_a_clean_one(server, files, tmp_path, monkeypatch,  # noqa: F811
                                                                   rows, seed):  # noqa: F811
    GitLab(server, files)
    settings = {"dataset": "cremad", "download": {"min_coverage": 0.5}, "cremad": {
        "files": f"{server.url}/raw/{{path}}", "lfs": f"{server.url}/repo.git/info/lfs"}}
    clean = project_for(tmp_path / "clean", server, monkeypatch, **settings)
    download.main()
    broken = project_for(tmp_path / "broken", server, monkeypatch, **settings)
    broken_runs(server, broken, monkeypatch, seed)
    assert contents(broken / "data") == contents(clean / "data")


def test_a_killed_run_is_gone_on_with_and_only_what_is_missing_is_fetched(server, tmp_path, monkeypatch):
    vggsound = VggSound(server, clips=6, archives=3)
    project = project_for(tmp_path / "project", server, monkeypatch)
    half = len(vggsound.archives["vggsound_02.tar.gz"]) // 2

    def hold(asked):  # the third archive stops in its middle
        if asked.path.startswith("/store/vggsound_02") and asked.method == "GET":
            if "Range" in asked.headers:
                time.sleep(30)
            return Fault(break_after=half)
        return None

    server.fault = hold
    script = "from tests.conftest import hurry; hurry(setattr); from maavt.stages.download import main; main()"
    run = subprocess.Popen([sys.executable, "-c", script], cwd=project, stderr=subprocess.DEVNULL,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})
    begun = []
    while not (begun and begun[0] and len(list(project.rglob("archives/*.json"))) == 2):
        assert run.poll() is None
        time.sleep(0.02)
        begun = [part.stat().st_size for part in project.glob(".work/download/*/parts/vggsound_02.tar.gz.*.part")]
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (project / "data").exists()
    server.fault = lambda asked: None
    server.asked.clear()
    download.main()
    assert raw(project) == vggsound.clips
    (again,) = [asked for asked in server.asked if asked.path.startswith("/store/") and asked.method == "GET"]
    assert "vggsound_02" in again.path and again.headers["Range"] == f"bytes={begun[0]}-"
    assert half - begun[0] < 3000 + 8192  # a chunk, and the file's own buffer


def many(count: int) -> list[Clip]:
    return [Clip(key=f"vgg-video{n:06d}_000030", path=f"video/video{n:06d}_000030.mp4", label=f"class {n % 309}",
                 split="train", start=0, end=WHOLE, source=f"video{n:06d}") for n in range(count)]


def test_a_list_of_200_000_clips_is_resumed_in_little_memory_and_without_a_request(tmp_path):
    """In a process of its own, whose memory can be measured (getrusage would give it the peak of its parent)."""
    script = f"""
from pathlib import Path
from maavt.fetch.budget import Budget
from maavt.fetch import Failed
from maavt.sources.store import Store, summary
from tests.sources.test_download import many
from maavt.clips import write_manifest, Labels
clips = many(200_000)
folder = Path({str(tmp_path)!r})
with Store(folder, clips, Budget(folder)) as store:
    assert len(store.missing()) == 200_000
    for clip in clips[::2]:
        store.note(clip.path, Failed("permanent", "gone (HTTP 404)"))
with Store(folder, clips, Budget(folder)) as store:
    assert len(store.missing()) == 100_000
    listed = store.manifest("transient: not fetched yet")
    write_manifest(folder, listed, Labels(classes=("a",), background=False))
    assert summary(listed).startswith("0 of 200000 clips")
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 500e6


def test_a_journal_that_a_kill_cut_off_is_read_up_to_there(tmp_path):
    clips = many(3)
    with Store(tmp_path, clips, Budget(tmp_path)) as store:
        store.note(clips[0].path, Failed("permanent", 'gone, "really"'))
    with open(tmp_path / "journal.csv", "a") as journal:
        journal.write(f"{clips[1].path},perma")
    with Store(tmp_path, clips, Budget(tmp_path)) as store:
        assert store.missing() == clips[1:]
        store.note(clips[1].path, Failed("transient", "HTTP 500"))
    with Store(tmp_path, clips, Budget(tmp_path)) as store:
        assert [clip.reason for clip in store.manifest("unknown")] == [
            'permanent: gone, "really"', "transient: HTTP 500", "unknown"]


def fail(item, **_):
    raise ZeroDivisionError("a mistake of ours")


def test_a_mistake_of_ours_costs_no_file(tmp_path, monkeypatch):
    clips = many(2)
    with Store(tmp_path, clips, Budget(tmp_path)) as store:
        for clip in clips:
            store.place(clip.path).parent.mkdir(parents=True, exist_ok=True)
            store.place(clip.path).write_bytes(b"film")
            store.note(clip.path)
        monkeypatch.setattr("maavt.sources.store.look_into", fail)
        store.inspect(shortest=0.5)
        assert store.manifest("unknown") == clips and all(store.place(clip.path).exists() for clip in clips)


@pytest.mark.parametrize("keep", [False, True])
def test_what_has_sound_or_picture_alone_is_removed_unless_it_is_to_be_kept(tmp_path, keep):
    clips = many(2)
    with Store(tmp_path, clips, Budget(tmp_path)) as store:
        for clip, lacking in zip(clips, ("sound", "picture"), strict=True):
            write_media(store.place(clip.path), seconds=1, **{lacking: None})
            store.note(clip.path)
        store.inspect(shortest=0.5, keep=keep)
        assert [clip.reason for clip in store.manifest("")] == (
            ["", ""] if keep else ["content: no audio stream", "content: no video stream"])


def test_only_failures_that_may_pass_are_tried_again_unless_asked(tmp_path):
    clips = many(5)
    kinds = ("permanent", "content", "transient", "session", "environment")
    with Store(tmp_path, clips, Budget(tmp_path)) as store:
        for clip, kind in zip(clips, kinds, strict=True):
            store.note(clip.path, Failed(kind, "so"))
    for retry, expected in (((), clips[2:]), (("content",), clips[1:]), (("permanent", "content"), clips)):
        with Store(tmp_path, clips, Budget(tmp_path), retry=retry) as store:
            assert store.missing() == expected


def test_the_summary_counts_reasons_and_names_the_classes_that_miss_most(tmp_path):
    clips = many(4)
    with Store(tmp_path, clips, Budget(tmp_path)) as store:
        store.note(clips[2].path, Failed("permanent", "private"))
        store.note(clips[0].path)
        text = summary(store.manifest("permanent: not in the archives"))
    assert text.splitlines()[:3] == ["1 of 4 clips", "       2  permanent: not in the archives",
                                     "       1  permanent: private"]
    assert "0%  class 2 (0 of 1)" in text and "class 0" not in text


def test_a_kind_that_there_is_not_is_wrong_usage(tmp_path, monkeypatch):
    monkeypatch.setenv("MAAVT_RETRY", "everything")
    with pytest.raises(UsageError, match="no kind everything"):
        download.main()
