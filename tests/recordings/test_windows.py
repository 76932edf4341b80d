"""Where the windows of a recording lie, and what reading them costs."""

import subprocess
from dataclasses import asdict
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from maavt.media.rejected import Rejected
from maavt.params import load_params
from maavt.recordings import windows
from maavt.recordings.events import events_of
from maavt.recordings.trained import answer
from maavt.recordings.windows import PART, File, files_of, parts_of
from maavt.sources.look import Look
from maavt.workers import fan_out
from tests.conftest import ROOT
from tests.media.test_decode import grey, peak_memory, tone, write_clip
from tests.media.test_gaps import without

RECIPES = load_params(ROOT / "params.yaml").shard.spectrogram


def config(dataset: str) -> dict:
    return {"spectrogram": asdict(RECIPES[dataset]), "image_size": 32, "frame_size": 48, "augment": "crop"}


def recording(path: Path, seconds: float) -> Path:
    return write_clip(path, [grey(number % 256) for number in range(round(seconds * 10))],
                      tone(round(seconds), 16000)[None])


def read(path: Path, dataset: str) -> list:
    return list(parts_of([File(str(path), named=True)], config(dataset), workers=0))


@pytest.mark.parametrize("dataset, step", [("synth", 1), ("vggsound", 5), ("cremad", 3)])
def test_windows_lie_one_behind_the_other_over_the_whole_recording_whatever_the_recipe(tmp_path, dataset, step):
    parts = read(recording(tmp_path / "a.mkv", 127), dataset)
    assert [part.last for part in parts] == [False, False, True] and not any(part.failed for part in parts)
    times = [time for part in parts for time in part.times]
    count, rest = divmod(127, step)
    expected = [(number * step, number * step + step) for number in range(count)]
    assert times == [*expected, *([(127 - step, 127)] if rest else [])]
    assert all(len(part.times) == len(part.frames) == len(part.spectrograms) for part in parts)
    assert {part.frames.shape[1:] for part in parts} == {(32, 32, 3)}


def test_a_window_is_the_same_in_a_long_recording_and_alone(tmp_path):
    whole = read(recording(tmp_path / "a.mkv", 63), "synth")
    assert [len(part.times) for part in whole] == [PART, 3]
    frame = whole[1].frames[1]
    assert abs(int(frame.mean()) - (10 * (PART + 1) + 5) % 256) < 8  # the picture says when it is shown


def test_a_recording_with_hundreds_of_pauses_has_all_its_windows(tmp_path):
    gaps = [(begin, begin + 0.12) for begin in np.arange(0.3, 65, 0.3)]
    path = without(recording(tmp_path / "whole.mkv", 70), tmp_path / "a.mkv", [*gaps, (56, 62)])  # and a long one
    parts = read(path, "synth")
    assert [time for part in parts for time in part.times] == [(second, second + 1) for second in range(70)]
    assert not any(part.failed or part.absent for part in parts)


def planned(path: Path, seen) -> list:
    reader = windows._reader(config("synth"))
    return [reader(part) for part in windows._plan([(File(str(path), named=True), seen)], reader.keywords["recipe"])]


def test_a_look_that_takes_too_long_leaves_the_length_to_the_header(tmp_path):
    path, late = recording(tmp_path / "a.mkv", 70), Rejected("timed out")
    parts = planned(path, windows._or_header(str(path), late))
    assert [part.last for part in parts] == [False, True] and sum(len(part.times) for part in parts) == 70
    (tmp_path / "text.mkv").write_text("text")
    assert windows._or_header(str(tmp_path / "text.mkv"), late) is late


def test_a_recording_of_unknown_length_says_what_was_not_read_of_it(tmp_path):
    for seen in (Rejected("timed out"), Look()):
        parts = planned(recording(tmp_path / "a.mkv", 70), seen)
        said = answer([(part, [{"class": "a", "probability": 1.0}] * len(part.times)) for part in parts], 0.5)
        assert len(said["windows"]) == 61 and said["unread"] == [{"from": 61.0, "reason": "unknown length"}]
        parts = planned(recording(tmp_path / "b.mkv", 20), seen)
        assert [part.last for part in parts] == [False, True] and not any(part.failed for part in parts)


def cost(path: str) -> float:
    def work():
        for part in parts_of([File(path, named=True)], config("synth"), workers=0):
            assert not part.failed
    return peak_memory(work)


@pytest.mark.long
def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path):
    minute, long = recording(tmp_path / "minute.mkv", 60), tmp_path / "long.mkv"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-stream_loop", "14", "-i", minute, "-c", "copy",
                    long], check=True)
    short, whole = (next(fan_out(cost, [str(path)], workers=1))[1] for path in (minute, long))
    assert whole < short + 15  # MB


def test_a_folder_gives_its_files_in_order_and_what_is_no_video_is_left_out(tmp_path):
    for name in ("b/2.mkv", "a.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        recording(tmp_path / name, 2)
    for name, text in (("notes.txt", "text"), (".hidden.mkv", "text"), ("broken.mp4", "text")):
        (tmp_path / name).write_text(text)
    parts = list(parts_of(files_of([tmp_path]), config("synth"), workers=1))
    assert [(Path(part.path).name, str(part.failed or "")[:9]) for part in parts] == [
        ("a.mkv", ""), ("2.mkv", ""), ("broken.mp4", "not media")]


def test_neighbouring_windows_of_a_class_are_one_event_and_background_and_doubts_are_none():
    said = [("a", 0.9), ("a", 0.7), ("background", 1.0), ("b", 0.4), ("b", 0.8), ("a", 0.6)]
    said = [{"from": second, "to": second + 1, "class": name, "probability": chance}
               for second, (name, chance) in enumerate(said)]
    said[-1] |= {"from": 4.5, "to": 5.5}  # the last one ends where the recording ends
    found = list(events_of(said, threshold=0.5))
    assert [(event["class"], event["from"], event["to"]) for event in found] == [("a", 0, 2), ("b", 4, 5),
                                                                                ("a", 4.5, 5.5)]
    assert np.isclose(found[0]["probability"], 0.8)
