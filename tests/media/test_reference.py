"""Every shared file is shown and heard as ffmpeg shows and plays it."""

from pathlib import Path

import numpy as np
import pytest

from maavt.media.decode import Media, decode
from tests.media.reference import RATE, SIZE, heard, off_view, run, shown

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
SYNTHETIC = 9  # levels: edges and colours without a slope, which two ways of scaling do not make the same

# by how many levels our frames may differ from ffmpeg's, whose scaling rounds otherwise
CLIPS = {"clips/duck.mp4": 1, "clips/nasa.mp4": 1, "clips/pancake.mkv": 1, "clips/rabbit.mp4": 1,
         "clips/shorter_audio.mp4": 1, "clips/surround_rotated.mp4": 1, "clips/video_starts_late.mp4": 1,
         "clips/silent_black.mp4": 1, "clips/fps_1000.flv": 1, "faults/12_last_frame_lasts_9s.mp4": 1,
         "faults/11_mvhevc_turned_180.mov": 3, "faults/01_rotated_phone_clip.mp4": SYNTHETIC,
         "faults/base.mp4": SYNTHETIC, "faults/02_joined_clock_restarts.mpg": SYNTHETIC,
         "faults/09_h264_bframes_5fps.avi": SYNTHETIC, "faults/10_xvid_packed_bframes.avi": SYNTHETIC,
         "faults/13_interlaced.ts": SYNTHETIC, "faults/15_header_says_50_ms.flv": SYNTHETIC}


def read(name: str) -> Media:
    return decode(SHARED / name, seconds=10, frame_size=SIZE, sample_rate=RATE, pad="tile")


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_on_view(name):
    clip = read(name)
    for _, apart, least in off_view(clip.frames[: max(int(clip.video_seconds + 0.5), 1)], SHARED / name):
        assert apart < CLIPS[name] and apart <= least + 0.05


@pytest.mark.parametrize("name", [name for name in CLIPS if "mpg" not in name])
def test_sound_is_in_its_place(name):
    clip, expected = read(name), heard(SHARED / name)
    length = min(len(expected), int(clip.audio_seconds * RATE))
    ours, expected = clip.waveform[:length], expected[:length]
    if expected.std() < 0.001:
        assert ours.std() < 0.001
    else:  # whole milliseconds are rounded in one way and in the other
        assert max(np.corrcoef(ours, np.roll(expected, step))[0, 1] for step in range(-24, 25)) > 0.9


def test_programme_with_packets_is_shown():
    times, pictures = shown(SHARED / "faults/16_first_program_without_packets.ts", track="0:v:1")
    for second, frame in enumerate(read("faults/16_first_program_without_packets.ts").frames[:4]):
        apart = np.abs(pictures - frame.astype(np.float32)).mean((1, 2, 3))
        assert abs(times[apart.argmin()] - second - 0.5) < 0.1


@pytest.mark.parametrize("options", [("-bf", 2), ("-bf", 0), ("-bf", 8, "-b_strategy", 0)])
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov", "flv", "nut"])
def test_any_container_shows_what_is_on_view(tmp_path, suffix, options):
    path = tmp_path / f"a.{suffix}"
    run("-i", SHARED / "clips/rabbit.mp4", "-t", 4, "-c:v", "libx264", "-preset", "ultrafast", *options, "-c:a", "aac",
        path)
    for _, apart, least in off_view(read(path).frames[:4], path):
        assert apart < 1 and apart <= least + 0.05


@pytest.mark.parametrize("codec, top", [("mpeg2video", 1), ("mpeg2video", 0), ("libx264", 1), ("mpeg4", 1)])
def test_interlaced_picture_is_that_of_its_first_field(tmp_path, codec, top):
    """Of 50 pictures per second every other row, so that each frame holds two of them."""
    lines = f"testsrc2=s=360x288:r=50:d=2,interlace=scan={'tff' if top else 'bff'}"
    run("-f", "lavfi", "-i", lines, "-f", "lavfi", "-i", "sine=d=2", "-c:v", codec, "-flags", "+ildct+ilme", "-b:v",
        "4M", "-c:a", "mp2", tmp_path / "a.mkv")
    run("-f", "lavfi", "-i", "testsrc2=s=360x288:r=25:d=2", "-c:v", "ffv1", tmp_path / "whole.mkv")
    times, pictures = shown(tmp_path / "whole.mkv")
    for second, frame in enumerate(read(tmp_path / "a.mkv").frames[:2]):
        apart = np.abs(pictures - frame.astype(np.float32)).mean((1, 2, 3))
        assert abs(times[apart.argmin()] - second - 0.48) < 0.041 and apart.min() < SYNTHETIC
