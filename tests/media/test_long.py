"""Clips out of the middle of long recordings, which cost no more than clips from their beginning."""

from pathlib import Path

import numpy as np
import pytest

from maavt.media.decode import Media, decode
from maavt.media.track import Track
from maavt.workers import fan_out
from tests.media.reference import RATE, SIZE, off_view, run, shown
from tests.media.test_decode import peak_memory

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-bf", "2", "-c:a", "aac")


def make(path: Path, seconds: int, hue: int = 0) -> Path:
    """A picture that shows its second, and noise."""
    run("-v", "error", "-f", "lavfi", "-i", f"testsrc2=s=160x120:r=10:d={seconds},hue={hue}", "-f", "lavfi", "-i",
        f"anoisesrc=d={seconds}:r={RATE}:seed={hue}:a=0.5", *H264, path)
    return path


def looped(folder: Path, suffix: str) -> Path:
    """Two hours, all minutes the same."""
    run("-v", "error", "-stream_loop", 119, "-i", make(folder / "minute.mp4", 60), "-c", "copy",
        folder / f"long.{suffix}")
    return folder / f"long.{suffix}"


def ask(path: Path, start: float, seconds: int = 10) -> Media:
    return decode(path, seconds=seconds, frame_size=SIZE, sample_rate=RATE, start=start)


def cost(task: tuple[Path, float]) -> float:
    return peak_memory(lambda: ask(*task))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_clip_at_5000_s_of_two_hours_costs_what_one_near_the_beginning_does(tmp_path, monkeypatch, suffix):
    path = looped(tmp_path, suffix)
    early, late = (next(fan_out(cost, [(path, start)], workers=1))[1] for start in (20.0, 5000.0))
    assert late < early + 10  # MB
    decoded = []
    track_decode = Track.decode
    monkeypatch.setattr(Track, "decode", lambda *args: decoded.append(1) or track_decode(*args))
    clip = ask(path, 5000.0)
    assert clip.video_seconds == clip.audio_seconds == 10
    assert len(decoded) < 1500  # of 184,500 packets
    if suffix != "ts":  # where ffmpeg seeks to any picture
        assert all(apart <= least + 0.1 for _, apart, least in off_view(clip.frames, path, 5000.0))


def test_clip_of_joined_recordings_is_found_on_the_clock_of_the_whole(tmp_path):
    parts = [make(tmp_path / f"{number}.ts", 25, hue=90 * number) for number in (0, 1)]
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    times, pictures = shown(parts[1], seconds=11)
    found = [times[np.abs(pictures - frame.astype(np.float32)).mean((1, 2, 3)).argmin()]
             for frame in ask(tmp_path / "joined.ts", 30, 5).frames]
    assert np.allclose(found, np.arange(5) + 5.5, atol=0.2)
