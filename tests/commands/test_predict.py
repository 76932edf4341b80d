"""`maavt predict`: recordings of any length, many of them, broken ones too."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import av
import numpy as np
import pytest

from maavt import cli, errors
from maavt.commands import predict
from maavt.media.decode import decode
from maavt.sources.synth import SAMPLE_RATE, _write_mp4
from tests.media.test_decode import grey, tone, write_clip

CLIPS = "data/raw/synth/test"


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    monkeypatch.setenv("MAAVT_WORKERS", "1")


def maavt(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "maavt.cli", *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True)


def run(*arguments) -> int:
    return errors.run(lambda: predict.main([str(argument) for argument in arguments]))


def answers(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def stitched(path: Path, clips: list[Path], size: int = 48, fps: int = 2) -> Path:
    """Clips of 10 s one behind the other as one recording, without a gap."""
    sound = np.concatenate([decode(clip, seconds=10, frame_size=size, sample_rate=SAMPLE_RATE).waveform
                            for clip in clips])
    _write_mp4(path, (picture for clip in clips for picture in pictures(clip)), sound,
               SimpleNamespace(size=size, fps=fps))
    return path


def pictures(clip: Path) -> Iterator[np.ndarray]:
    with av.open(str(clip)) as container:
        yield from (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))


def test_a_test_clip_gets_the_predictions_of_the_evaluation(project):
    done = maavt("predict", project / CLIPS / "test-00001.mp4", cwd=project)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["windows"]
    with open(project / "data/eval/maavt/predictions.csv", newline="") as file:
        expected = [row for row in csv.DictReader(file) if row["key"] == "test-00001"]
    assert [(window["from"], window["to"]) for window in said] == [(second, second + 1) for second in range(10)]
    # the stored frames went through JPEG once more
    assert sum(a["class"] == b["predicted"] for a, b in zip(said, expected, strict=True)) >= 8
    assert [window["probability"] for window in said] == pytest.approx([float(r["probability"]) for r in expected],
                                                                       abs=0.2)


def test_a_recording_of_two_minutes_has_windows_over_all_of_it_like_those_of_its_clips(project, capsys):
    clips = sorted((project / "data/raw/synth").rglob("*.mp4"))[:12]
    assert run(*clips) == 0
    apart = [window for answer in answers(capsys) for window in answer["windows"]]
    assert run(stitched(project / "long.mp4", clips), "--workers", 2) == 0
    (answer,) = answers(capsys)
    assert answer["seconds"] == pytest.approx(120, abs=0.2) and "unread" not in answer
    whole = answer["windows"]
    assert [window["from"] for window in whole[:120]] == list(range(120))
    alike = [a["class"] == b["class"] and abs(a["probability"] - b["probability"]) < 0.1
             for a, b in zip(apart, whole[:120], strict=True)]
    assert sum(alike) >= 114  # sound runs on from one clip to the next
    ends = [(event["from"], event["to"]) for event in answer["events"]]
    assert ends == sorted(ends) and all(begin < end <= answer["seconds"] for begin, end in ends)


def test_a_clip_has_predictions_for_the_seconds_that_it_has_alone(project, capsys):
    paths = [write_clip(project / f"{seconds}.mkv", [grey(0)] * round(seconds * 10)) for seconds in (0.6, 3.0, 4.7)]
    assert run(*paths) == 0
    short, whole, rest = ([(window["from"], window["to"]) for window in answer["windows"]]
                          for answer in answers(capsys))
    assert short == [(0, 0.6)]
    assert whole == [(0, 1), (1, 2), (2, 3)]
    assert rest == [(0, 1), (1, 2), (2, 3), (3, 4), (3.7, 4.7)]


def test_a_folder_is_answered_in_order_and_broken_files_are_rows_while_the_others_go_on(project, capsys):
    folder = project / "mine"
    folder.mkdir()
    for name in ("a.mkv", "c.mkv", "e.mkv"):
        write_clip(folder / name, [grey(0)] * 20)
    (folder / "b.mp4").write_text("text")
    (folder / "notes.txt").write_text("text")
    write_clip(folder / "d.mkv", [grey(0)] * 2, tone(1)[None])
    assert run(folder, "missing.mp4", "--csv", "said.csv", "--workers", 2) == 1
    said = {Path(answer["file"]).name: answer for answer in answers(capsys)}
    assert list(said) == ["a.mkv", "b.mp4", "c.mkv", "d.mkv", "e.mkv", "missing.mp4"]
    assert {name: answer["reason"] for name, answer in said.items() if "reason" in answer} == {
        "b.mp4": "not media", "d.mkv": "too short", "missing.mp4": "missing file"}
    with open("said.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table if row["what"] == "failed"] == [f"{folder}/b.mp4", f"{folder}/d.mkv",
                                                                        "missing.mp4"]
    windows = [window for answer in said.values() for window in answer.get("windows", [])]
    assert [(float(row["to"]), row["class"]) for row in table if row["what"] == "window"] == [
        (window["to"], window["class"]) for window in windows]


def test_the_page_shows_players_events_and_attention_and_hostile_names_as_text(project, capsys):
    hostile = project / "<script>alert(1)</script> \"'&#.mp4"
    hostile.parent.mkdir(parents=True, exist_ok=True)
    hostile.write_bytes((project / CLIPS / "test-00001.mp4").read_bytes())
    config = json.loads((project / "data/models/maavt/config.json").read_text())
    config["classes"] = ["<b>" + name for name in config["classes"]]
    (project / "data/models/maavt/config.json").write_text(json.dumps(config))
    assert run(hostile, project / "missing.mp4", "--html", "pages/said.html") == 1
    page = (project / "pages/said.html").read_text()
    said = answers(capsys)
    assert "<script>alert" not in page and "<b>" not in page and "Not read: missing file." in page
    assert page.count('data-from="') == len(said[0]["events"]) > 0
    assert page.count("data:image/jpeg") == 2 * len(said[0]["events"])
    (address,) = re.findall(r'src="(\.\./[^"]*)"', page)
    assert (project / "pages" / unquote(address)).resolve() == hostile.resolve()


def test_the_likeliest_classes_are_said_and_a_threshold_leaves_events_out(project, capsys):
    clip = project / CLIPS / "test-00001.mp4"
    assert run(clip, "--top", 3, "--threshold", 1) == 0
    (answer,) = answers(capsys)
    for window in answer["windows"]:
        best = list(window["top"].values())
        assert len(best) == 3 and best == sorted(best, reverse=True) and sum(best) <= 1.001
        assert window["probability"] in best
    assert not answer["events"]


def test_a_file_that_is_no_clip_has_its_reason_and_exit_code_1(project):
    (project / "a.mp4").write_text("text")
    done = maavt("predict", "a.mp4", cwd=project)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"file": "a.mp4", "reason": "not media"}
    assert "Traceback" not in done.stderr
    (project / "notes").mkdir()
    (project / "notes" / "a.txt").write_text("text")
    done = maavt("predict", "notes", cwd=project)
    assert done.returncode == 1 and "no recordings among the 1 files of notes; expected videos" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["predict"], ["transcribe", "a.mp4"], ["predict", "a", "--model", "x"],
                                       ["predict", "a", "--threshold", "2"], ["predict", "a", "--top", "0"]])
def test_wrong_usage_has_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["maavt", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def test_a_device_that_is_not_there_is_told(project, capsys):
    assert run("a.mp4", "--device", "cuda:7") == 1
    assert "device cuda:7: " in capsys.readouterr().err
