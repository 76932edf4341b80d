import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from maavt.clips import SPLITS, Clip, placed, read_manifest, write_manifest
from maavt.errors import UserError
from maavt.media.sample import make_sample
from maavt.stages import shard
from maavt.work import sha256
from tests.conftest import tiny_settings
from tests.media.test_quality import recoded
from tests.sources.common import contents


def rejects(project: Path) -> list[dict]:
    with open(project / "data/shards/synth/rejects.csv", newline="") as file:
        return list(csv.DictReader(file))


def index(project: Path) -> dict:
    return json.loads((project / "data/shards/synth/index.json").read_text())


def samples(project: Path) -> list[str]:
    """The keys of the samples in all shards, with repeats."""
    keys = []
    for path in sorted((project / "data/shards/synth").rglob("*.tar")):
        with tarfile.open(path) as tar:
            keys += [name.split(".")[0] for name in tar.getnames() if name.endswith(".json")]
    return keys


def test_every_clip_is_in_exactly_one_shard(made):
    clips, _ = read_manifest(made / "data/raw/synth")
    assert sorted(samples(made)) == sorted(clip.key for clip in clips)
    assert sum(s["samples"] for s in index(made)["shards"].values()) == len(clips)


def test_a_sample_has_a_frame_and_a_spectrogram_for_every_second(made):
    with tarfile.open(next((made / "data/shards/synth/test").glob("*.tar"))) as tar:
        key = tar.getnames()[0].split(".")[0]
        members = {name.partition(".")[2] for name in tar.getnames() if name.startswith(f"{key}.")}
        facts = json.load(tar.extractfile(f"{key}.json"))
    assert members == {f"frame-{s:02d}.jpg" for s in range(10)} | {"spectrogram.npy", "json"}
    event = [label is not None for label in facts["labels"]]
    assert [facts["start"] <= second < facts["end"] for second in range(10)] == event


def test_the_index_holds_the_hash_of_every_shard(made):
    for name, facts in index(made)["shards"].items():
        path = made / "data/shards/synth" / name
        assert (sha256(path), path.stat().st_size) == (facts["sha256"], facts["bytes"])
    assert set(index(made)["splits"]) == set(SPLITS)


def test_clips_that_cannot_be_used_are_in_the_rejects_with_the_reason(project):
    raw = project / "data/raw/synth"
    (raw / "train/train-00000.mp4").write_bytes(b"no video at all")
    (raw / "train/train-00001.mp4").unlink()
    clips, labels = read_manifest(raw)
    lost = clips[2].__class__(**{**vars(clips[2]), "status": "failed", "reason": "gone"})
    write_manifest(raw, [*clips[:2], lost, *clips[3:]], labels)
    settings = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(settings.replace("min_coverage: 0.95", "min_coverage: 0.5"))
    shard.main([])
    assert [(r["key"], r["stage"], r["reason"]) for r in rejects(project)] == [
        ("train-00000", "shard", "not media"), ("train-00001", "shard", "missing file"),
        ("train-00002", "download", "gone")]
    assert index(project)["splits"]["train"] | {"samples": 7, "rejected": 3} == index(project)["splits"]["train"]
    assert len(samples(project)) == 15


def test_a_split_without_a_clip_is_named(project):
    raw = project / "data/raw/synth"
    clips, labels = read_manifest(raw)
    write_manifest(raw, [clip for clip in clips if clip.split != "val"], labels)
    with pytest.raises(UserError, match="no clip can be used in val"):
        shard.main([])


def test_too_many_rejects_fail_the_stage_with_the_table_of_reasons(project):
    for clip in list((project / "data/raw/synth/train").glob("*.mp4"))[:5]:
        clip.write_bytes(b"")
    with pytest.raises(UserError, match=r"13 of 18 clips can be used(.|\n)*5  shard: empty file"):
        shard.main([])


@pytest.mark.long
def test_runs_killed_at_any_instant_go_on_and_end_with_the_same_bytes(project):
    whole = {path.name: sha256(path) for path in (project / "data/shards").rglob("*.*")}
    shutil.rmtree(project / "data/shards")
    rng, command = random.Random(0), [sys.executable, "-m", "maavt.cli", "shard"]
    for _ in range(4):
        before = {path: path.stat().st_mtime_ns for path in stats(project)}
        process = subprocess.Popen(command, cwd=project, start_new_session=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while process.poll() is None and len(stats(project)) == len(before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is not None or (project / "data/shards/synth").exists():
            process.wait()
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert {path: path.stat().st_mtime_ns for path in before} == before  # no finished shard is made again
    if not (project / "data/shards/synth").exists():
        subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert {path.name: sha256(path) for path in (project / "data/shards").rglob("*.*")} == whole


def test_a_run_killed_after_it_published_decodes_nothing_again(project, monkeypatch):
    """DVC removes what a stage published before it runs the stage again."""
    code = """if True:
        import os, signal
        from maavt.stages import shard
        publish = shard.publish
        def publish_and_die(*arguments):
            publish(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        shard.publish = publish_and_die
        shard.main([])
        """
    assert subprocess.run([sys.executable, "-c", code], cwd=project, stderr=subprocess.DEVNULL).returncode == -9
    before = contents(project / "data/shards")
    shutil.rmtree(project / "data/shards")
    asked = []
    monkeypatch.setattr(shard, "fan_out", lambda function, items, **_: iter(asked.extend(items) or ()))
    shard.main([])
    assert contents(project / "data/shards") == before and not asked


def stats(project: Path) -> list[Path]:
    """Marks of finished shards in the unfinished work."""
    return list((project / ".work/shard").rglob("stats/**/*.json"))


def test_a_clip_replaced_before_a_killed_run_goes_on_is_read_anew(project, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard, "publish", die)
        shard.main([])
    before = index(project)["shards"]
    raw = project / "data/raw/synth"
    first, second = (raw / clip.path for clip in read_manifest(raw)[0][:2])
    first.unlink()  # it may be a second name of what the cache holds
    shutil.copyfile(second, first)
    shard.main([])
    changed = [name for name, facts in index(project)["shards"].items() if facts["sha256"] != before[name]["sha256"]]
    assert len(changed) == 1


def quality(project: Path) -> dict[str, dict]:
    with open(project / "data/shards/synth/quality.csv", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def test_every_clip_that_is_used_has_a_row_of_what_it_is_like(made):
    clips, _ = read_manifest(made / "data/raw/synth")
    rows = quality(made)
    assert [(row["key"], row["split"], row["label"]) for row in rows.values()] == [
        (clip.key, clip.split, clip.label) for clip in clips]
    assert {(row["seconds"], row["width"], row["height"], row["frame_rate"]) for row in rows.values()} == {
        ("10.0", "48", "48", "2.0")}
    assert not any(row["near_duplicate"] for row in rows.values())


def test_a_copy_in_another_split_is_found_and_told_with_what_to_do(project, capsys):
    raw = project / "data/raw/synth"
    copy = recoded(raw / "train/train-00003.mp4", project / "copy.mp4", share=2)
    os.replace(copy, raw / "test/test-00001.mp4")
    shutil.copy(raw / "train/train-00004.mp4", raw / "train/train-00005.mp4.new")
    os.replace(raw / "train/train-00005.mp4.new", raw / "train/train-00005.mp4")
    shard.main([])
    assert {key: row["near_duplicate"] for key, row in quality(project).items() if row["near_duplicate"]} == {
        "train-00003": "test-00001", "test-00001": "train-00003", "train-00004": "train-00005",
        "train-00005": "train-00004"}
    labels, line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert "1 clips of val and test" in line and "test-00001 (test) is train-00003 (train)" in line
    assert "Leave one of each two out" in line and "train-00005" not in line
    assert "2 clips have two labels" in labels


def test_copies_under_two_labels_are_told_once_each_in_whatever_split():
    clips = [Clip(key=f"{label}-{number}", path=f"{label}/{number}.mp4", label=label, split="train", start=0, end=9,
                  source=f"{label}/{number}.mp4") for label in ("cat", "dog", "cow") for number in range(6)]
    same = {number: [(number + 6) % 12] for number in range(12)}
    line, = shard.two_labels(clips, same)
    assert "6 clips have two labels" in line and "cat/0.mp4 (cat) is dog/0.mp4 (dog)" in line
    assert not list(shard.two_labels(clips, {0: [1], 1: [0]}))  # of one class
    line, = shard.two_labels(clips, {0: [6, 12], 6: [0, 12], 12: [0, 6]})
    assert line.startswith("warning: 1 clips have two labels")
    parts = [replace(clips[0], label=label) for label in ("cat", "dog")]  # of one recording
    assert not list(shard.two_labels(parts, {0: [1], 1: [0]}))


def test_unrelated_clips_are_not_warned_of(project, capsys):
    shard.main([])
    assert "warning" not in capsys.readouterr().err


def spoil(clip, **settings):
    """As our own code might fail on one clip."""
    if clip.key == "train-00003":
        raise ZeroDivisionError("a mistake of ours")
    return make_sample(clip, **settings)


def test_a_mistake_of_ours_on_one_clip_costs_that_clip_alone(project, monkeypatch):
    monkeypatch.setattr(shard, "make_sample", spoil)
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(shard={"min_coverage": 0.5})))
    before = samples(project)
    shard.main([])
    assert sorted(set(before) - set(samples(project))) == ["train-00003"]
    assert [(row["key"], row["stage"], row["reason"]) for row in rejects(project)] == [
        ("train-00003", "shard", "failed here")]


def remember(project: Path, *outputs: str) -> None:
    """Put outputs into a cache and a dvc.lock, as DVC does."""
    stages = {}
    for number, output in enumerate(outputs):
        entries = []
        for path in (path for path in (project / output).rglob("*") if path.is_file()):
            name = str(path.relative_to(project / output))
            entries.append({"md5": keep(project, path.read_bytes()), "relpath": name})
        whole = keep(project, json.dumps(entries).encode(), ".dir")
        stages[f"stage{number}"] = {"outs": [{"path": output, "md5": whole}]}
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def keep(project: Path, content: bytes, suffix: str = "") -> str:
    md5 = hashlib.md5(content).hexdigest() + suffix
    place = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return md5


def test_new_clips_get_shards_of_their_own_and_the_others_are_not_made_again(project, monkeypatch, capsys):
    raw, decoded = project / "data/raw/synth", []
    clips, labels = read_manifest(raw)
    monkeypatch.setattr(shard, "fan_out", lambda function, items, **_: (
        (decoded.append(clip.key) or clip, function(clip)) for clip in items))

    def make(clips: list) -> dict[str, str]:
        write_manifest(raw, clips, labels)
        remember(project, "data/raw/synth", "data/shards/synth")
        shutil.rmtree(project / "data/shards", ignore_errors=True)  # as DVC does
        decoded.clear()
        shard.main([])
        return {name: facts["sha256"] for name, facts in index(project)["shards"].items()}

    old = [clip for clip in clips if clip.key not in ("train-00002", "train-00007", "val-00001")]
    shutil.rmtree(project / "data/shards")
    before = make(placed(old, [], seed=0))
    assert sorted(decoded) == sorted(clip.key for clip in old)
    numbered = read_manifest(raw)[0]
    after = make(placed(clips, numbered, seed=0))
    assert sorted(decoded) == ["train-00002", "train-00007", "val-00001"]
    assert before.items() <= after.items() and len(after) == len(before) + 2
    assert f"{len(before)} of {len(after)} shards are as before" in capsys.readouterr().out
    fresh = sorted(samples(project))
    assert fresh == sorted(clip.key for clip in clips)
    numbered = [clip for clip in read_manifest(raw)[0] if clip.key != "train-00000"]  # vanished
    last = make(placed(numbered, numbered, seed=0))
    assert len(after.items() - last.items()) == 1 and len(decoded) == 3 and last.keys() == after.keys()
