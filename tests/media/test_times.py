"""Which frames a clip has: rules that hold for pictures at any times, each frame telling its number by its grey."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from maavt.media import picture
from maavt.media.sample import frame_second, frames_of_pairs, pair_begins, read_clip
from maavt.media.sound import Sound
from maavt.params import Spectrogram
from tests.media.test_decode import SIZE, ask, grey, tone, write_clip

STEP = 4  # grey levels between one frame and the next
RECIPE = Spectrogram(kind="fbank", sample_rate=16000, clip_seconds=10, pad="tile", pairs="covered", seconds=2, bins=98,
                     shift_ms=10.0, scaling="dataset")


def numbered(path: Path, times: list[float], seconds: float, **options) -> Path:
    """A film whose frame of the number n is grey 8 + STEP * n."""
    return write_clip(path, [grey(8 + STEP * number) for number in range(len(times))], tone(seconds)[None], fps=1000,
                      times=[float(time) for time in times], **options)


def numbers(clip) -> list[int]:
    return [round((float(frame.mean()) - 8) / STEP) for frame in clip.frames]


def on_view(times: np.ndarray, moments: np.ndarray) -> list[int]:
    """The rule: the last frame whose time is not later, the first of all where there is none."""
    return [max(int(np.flatnonzero(times <= moment + 1e-6)[-1:].sum()), 0) for moment in moments]


def draw(seed: int, count: int, seconds: float) -> np.ndarray:
    """Sorted times in whole ms from 0 on, many of them just before, on and just after the moments of frames."""
    rng = np.random.default_rng(seed)
    middles = rng.integers(0, int(seconds), 3 * count) + 0.5 + rng.choice([-0.002, -0.001, 0, 0.001, 0.002], 3 * count)
    return np.append(0, np.sort(rng.choice(np.unique(np.append(middles, rng.integers(1, 1000 * seconds, count) / 1000)),
                                           count - 1, replace=False))).round(3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
def test_each_frame_is_the_last_one_not_later_than_the_middle_of_its_second(tmp_path, seed, codec):
    times = draw(seed, 50, 6)
    path = numbered(tmp_path / "a.mkv", times, 7, codec=codec, setup=lambda video, _: setattr(
        video, "options", {"bf": "3", "crf": "1"} if codec == "libx264" else {"qmin": "1", "qmax": "1"}))
    for start in (0.0, 1.0, 0.001, 0.25, 0.499, 0.5, 2.501):
        seconds = int(6 - start)
        assert numbers(ask(path, seconds, start=start)) == on_view(times, start + np.arange(seconds) + 0.5)


@pytest.mark.parametrize("rate", [10, 25, 29.97, 60])
def test_at_a_constant_rate_no_frame_is_off_by_half_its_length(tmp_path, rate):
    times = (np.arange(int(2 * rate)) / rate).round(3)
    path = write_clip(tmp_path / "a.mkv", [grey(8 + 2 * number) for number in range(len(times))], tone(2)[None],
                      fps=1000, times=[float(time) for time in times], codec="mjpeg")
    for start in np.arange(0, 0.9, 0.09):
        found = [(float(frame.mean()) - 8) / 2 for frame in ask(path, 1, start=float(start)).frames]
        assert found == pytest.approx(on_view(times, np.array([start + 0.5])), abs=0.49)


def test_only_the_wanted_frames_come_in_their_order(tmp_path):
    path = numbered(tmp_path / "a.mkv", np.arange(0, 6, 0.2), 6)
    every = numbers(ask(path, 6))
    for wanted in (range(0, 6), range(2, 3), range(1, 6, 2), range(5, 6)):
        assert numbers(ask(path, 6, wanted=wanted)) == [every[second] for second in wanted]


def test_a_picture_reaches_to_the_end_of_its_last_frame(tmp_path):
    for times, end in (([0, 0.5, 1.0, 1.5], 2.0), ([0, 0.1, 0.2], 0.3), ([0, 1.5, 1.75], 2.0)):
        clip = ask(numbered(tmp_path / "a.mkv", times, 4), 4, pad="tile")
        assert clip.video_seconds == pytest.approx(end, abs=0.002)
        shown = max(math.ceil(end - 0.5), 1)
        assert numbers(clip) == [on_view(np.array(times), np.array([second % shown + 0.5]))[0] for second in range(4)]


def test_a_lone_frame_is_shown_as_long_as_the_file_says_but_no_longer_than_a_minute(tmp_path):
    for length, end in ((3.0, 3.0), (0.25, 0.25), (90.0, 0.04)):
        class Stream:
            index, time_base, average_rate, sample_aspect_ratio = 0, Fraction(1, 1000), 0, None

            class codec_context:
                has_b_frames, field_order = False, 0

        sink = picture.Picture(picture.Track(Stream, 0.0, [0.0]), 4, range(4), SIZE)
        assert sink.end == -math.inf
        frame = av.VideoFrame(SIZE, SIZE)
        frame.pts, frame.duration = 0, round(length * 1000)
        sink.held, sink.last = frame, 0.0
        assert sink.end == pytest.approx(end)


@pytest.mark.parametrize("seconds", [1, 2, 3, 4, 5])
def test_pairs_cover_what_a_clip_reaches_without_a_hole_and_no_further(seconds):
    recipe = Spectrogram(**vars(RECIPE) | {"seconds": seconds})
    for reach in np.arange(seconds, 10.001, 0.05).round(3).tolist():
        begins = pair_begins(reach, recipe)
        assert begins[0] == 0 and begins == sorted(set(begins))
        assert all(later - begin <= seconds for begin, later in zip(begins, begins[1:], strict=False))
        assert reach - 0.1 - 1e-6 <= begins[-1] + seconds <= reach + 1e-6
        assert begins[:-1] == [seconds * number for number in range(len(begins) - 1)]
    assert pair_begins(seconds / 2, recipe) == [0]
    assert pair_begins(3.3, Spectrogram(**vars(recipe) | {"pairs": "one", "offset": 3})) == [3]


@pytest.mark.parametrize("seconds", [1, 2, 5])
def test_every_pair_has_its_frame_among_those_that_are_decoded(seconds):
    recipe = Spectrogram(**vars(RECIPE) | {"seconds": seconds, "pairs": "every"})
    begins = pair_begins(3.3, recipe)
    assert begins == list(range(0, 10, seconds))
    assert [frame_second(begin, recipe) for begin in begins] == list(frames_of_pairs(recipe))


@pytest.mark.parametrize("length", [0.6, 1.0, 2.0, 2.5, 3.05, 3.2, 6.0])
def test_a_clip_that_is_cut_out_ends_where_it_is_cut(tmp_path, length):
    """Of a film that changes each second, nothing from behind the cut is seen, and it is repeated where it is short."""
    path = numbered(tmp_path / "a.mkv", np.arange(0, 20), 20)
    begin, shown = 4.0, max(math.ceil(length - 0.5), 1)
    frames, sound, begins = read_clip(path, RECIPE, frame_size=SIZE, begin=begin, length=length)
    assert begins == pair_begins(length, RECIPE) and len(sound) == len(begins)
    assert {second: round((float(frame.mean()) - 8) / STEP) for second, frame in frames.items()} == {
        frame_second(at, RECIPE): int(begin) + frame_second(at, RECIPE) % shown for at in begins}


@pytest.mark.parametrize("size, times, kept", [
    (50, [0.0, 0.05, 0.02, 0.03, 0.08, 0.13], [50, 50, 50, 0, 50, 50]),  # the fourth would be 120 ms late
    (200, [0.0, 0.2, 0.28, 0.48], [200, 200, 80, 200]),
    (48, [0.0] * 20, [48] * 3 + [0] * 11 + [48] * 6)])  # a clock that stands still tells nothing
def test_sound_that_overlaps_what_was_there_does_not_get_late(size, times, kept):
    """Frames of so many ms, each full of its number."""
    class Overlapping:
        begins, waiting = [], iter(times)

        def decode(self, packet):
            frame = av.AudioFrame.from_ndarray(np.full((1, size), packet / 100, np.float32), "flt", "mono")
            frame.sample_rate = 1000
            return [frame]

        def own_time(self, frame, default):
            return next(self.waiting)

    sink = Sound(Overlapping(), 1, 1000)
    for number in range(1, len(times) + 1):
        sink.take(number)
    waveform = sink.finish(repeat=False)
    assert [np.count_nonzero(np.isclose(waveform, number / 100)) for number in range(1, len(times) + 1)] == kept
    assert sink.end == pytest.approx(sum(kept) / 1000)
