"""Real files that were once read wrongly, each for its kind, held to their source as ffmpeg decodes it."""

import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from maavt.media.decode import Media, decode
from maavt.sources.look import look
from maavt.sources.store import look_into

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
FAULTS = Path(__file__).parents[3] / "shared" / "faults"
pytestmark = pytest.mark.skipif(not FAULTS.exists(), reason="needs ../shared/faults")
SIZE, RATE = 112, 16000


def ffmpeg(path: Path, *options: str) -> bytes:
    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, *options, "-"], check=True,
                          capture_output=True).stdout


@lru_cache
def pictures(path: Path) -> np.ndarray:
    """Every 1/25 s of a film, as ffmpeg shows it."""
    made = ffmpeg(path, "-vf", f"fps=25,scale='if(gt(iw,ih),-2,{SIZE})':'if(gt(iw,ih),{SIZE},-2)',crop={SIZE}:{SIZE}",
                  "-f", "rawvideo", "-pix_fmt", "rgb24")
    return np.frombuffer(made, np.uint8).reshape(-1, SIZE, SIZE, 3).astype(np.float32)


@lru_cache
def sound(path: Path) -> np.ndarray:
    return np.frombuffer(ffmpeg(path, "-ac", "1", "-ar", str(RATE), "-f", "f32le"), np.float32)


def read(name: str, **options) -> Media:
    return decode(FAULTS / name, **{"seconds": 10, "frame_size": SIZE, "sample_rate": RATE, "pad": "silence"} | options)


def seconds_shown(clip: Media, source: Path) -> list[float]:
    """Which second of the source each frame looks like most."""
    return [np.abs(pictures(source) - frame.astype(np.float32)).mean((1, 2, 3)).argmin() / 25 for frame in clip.frames]


def delays(clip: Media, source: Path) -> list[float]:
    """By how many seconds the half second around each s + 0.5 is later than in the source."""
    found, whole = [], sound(source)
    power = np.sqrt(np.convolve(whole**2, np.ones(RATE // 2), "valid") + 1e-9)
    for begin in range(RATE // 4, len(clip.waveform), RATE):
        likeness = np.correlate(whole, clip.waveform[begin : begin + RATE // 2], "valid") / power
        found.append((begin - likeness.argmax()) / RATE)
    return found


@pytest.mark.parametrize("name", ["base.mp4", "02_joined_clock_restarts.mpg", "02_joined_clock_restarts.ts",
                                  "03_joined_overlap.ts"])
def test_joined_recordings_go_on_at_the_sources_seconds(name):
    clip = read(name)
    assert np.allclose(seconds_shown(clip, FAULTS / "base.mp4"), np.arange(10) + 0.48, atol=0.05)
    late = delays(clip, FAULTS / "base.mp4")
    assert max(late) < 0.04 and max(late) - min(late) < 0.02  # but for what encoders put before sound


@pytest.mark.parametrize("name, seconds", [("01_rotated_phone_clip.mp4", 2), ("11_mvhevc_turned_180.mov", 1)])
def test_turned_pictures_are_upright(name, seconds):
    clip = read(name, seconds=seconds)
    shown = pictures(FAULTS / name)
    off = np.abs(shown[min(12, len(shown) - 1)] - clip.frames[0]).mean()
    assert off < 15 and off < np.abs(shown[min(12, len(shown) - 1)] - clip.frames[0][::-1, ::-1]).mean() / 2


def test_a_last_frame_is_shown_as_long_as_the_file_says():
    clip = read("12_last_frame_lasts_9s.mp4")
    red, blue = clip.frames[0].mean((0, 1)), clip.frames[1:].mean((1, 2))
    assert red.argmax() == 0 and (blue.argmax(1) == 2).all() and clip.video_seconds == 10


def test_interlaced_pictures_have_no_comb():
    def comb(frame: np.ndarray) -> float:
        """How much a row differs from both its neighbours, beside how much they differ."""
        grey = frame.astype(np.float32).mean(2)
        return np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean() / np.abs(grey[:-2] - grey[2:]).mean()

    path = FAULTS / "13_interlaced.ts"
    woven = np.frombuffer(ffmpeg(path, "-vf", "crop=288:288", "-f", "rawvideo", "-pix_fmt", "rgb24"), np.uint8)
    woven = woven.reshape(-1, 288, 288, 3)[12::25]
    single = read(path.name, seconds=4, frame_size=288).frames
    assert max(map(comb, single)) < 0.7 * min(map(comb, woven))


def test_a_header_that_says_too_little_is_not_believed():
    look_into((str(FAULTS / "15_header_says_50_ms.flv"), 0.5))
    clip = read("15_header_says_50_ms.flv", seconds=4)
    assert np.allclose(seconds_shown(clip, FAULTS / "base.mp4"), np.arange(4) + 0.48, atol=0.05)


def test_a_programme_without_packets_is_passed_over():
    clip = read("16_first_program_without_packets.ts", seconds=4)
    assert clip.video_seconds == 4 and clip.frames.std() > 1 and np.abs(clip.waveform).max() > 0.01


@pytest.mark.parametrize("name", ["02_joined_clock_restarts.ts", "02_joined_clock_restarts.mpg",
                                  "03_joined_overlap.ts"])
def test_joined_recordings_are_as_long_as_all_of_them(name):
    media = read(name)
    assert look(str(FAULTS / name)).seconds == pytest.approx(min(media.video_seconds, media.audio_seconds), abs=0.3)
