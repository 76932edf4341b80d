"""Sound with many gaps (lossy streams, calls): silence where it is missing, at no cost that grows with the gaps."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from maavt.media.track import Track
from maavt.workers import fan_out
from tests.media.reference import run
from tests.media.test_decode import RATE, ask, peak_memory

STEP = 0.01  # seconds of the blocks in which loudness is measured
KINDS = [("webm", "libopus", "libvpx"), ("webm", "libvorbis", "libvpx"), ("mkv", "aac", "libx264"),
         ("mp4", "aac", "libx264"), ("ts", "aac", "libx264"), ("mkv", "libmp3lame", "mpeg4")]


def record(path: Path, seconds: float, acodec: str, codec: str) -> Path:
    """A tone without an end, beside a small picture."""
    run("-v", "error", "-f", "lavfi", "-i", f"testsrc2=s=64x48:r=10:d={seconds}", "-f", "lavfi", "-i",
        f"sine=f=440:d={seconds}:r=48000", "-af", "volume=12dB", "-c:v", codec, "-bf", 0, "-c:a", acodec, path)
    return path


def changed(source: Path, target: Path, change) -> Path:
    """A copy whose packets of sound are at change(time) instead, or lost where that is None."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.size and packet.stream.type == "audio":
                time = float(packet.pts * packet.time_base) - old.start_time / av.time_base
                if (at := change(time)) is None:
                    continue
                packet.pts = packet.dts = packet.pts + round((at - time) / packet.time_base)
            if packet.size:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target


def without(source: Path, target: Path, gaps: list[tuple[float, float]]) -> Path:
    return changed(source, target, lambda time: None if any(begin <= time < end for begin, end in gaps) else time)


def wrongly(waveform: np.ndarray, gaps: list[tuple[float, float]], edge: float = 0.04) -> tuple[float, float]:
    """The shares of time in gaps that is loud, and outside of them that is silent, but for the edges: codecs take a
    frame or two to begin again."""
    loud = np.sqrt(np.square(waveform.reshape(-1, round(STEP * RATE))).mean(1)) > 0.1
    times = (np.arange(len(loud)) + 0.5) * STEP
    inside = np.any([(begin + edge < times) & (times < end) for begin, end in gaps], axis=0)
    outside = np.all([(times < begin) | (times > end + edge) for begin, end in gaps], axis=0) & (times > edge)
    return float(loud[inside].mean()), float(1 - loud[outside].mean())


@pytest.mark.parametrize("suffix, acodec, codec", KINDS)
def test_lost_packets_are_silence_at_their_times(tmp_path, suffix, acodec, codec):
    whole = record(tmp_path / f"whole.{suffix}", 9, acodec, codec)
    for length in (0.06, 0.25, 2.0):
        gaps = [(begin, begin + length) for begin in np.arange(0.3, 8, 2 * length + 0.2)]
        path = without(whole, tmp_path / f"{length}.{suffix}", gaps)
        clip = ask(path, 8)
        loud, silent = wrongly(clip.waveform, gaps)
        assert clip.audio_seconds == 8 and loud < 0.03 and silent < (0.2 if "mp3" in acodec else 0.03)


@pytest.mark.parametrize("suffix, acodec, codec", KINDS)
def test_jitter_of_a_few_ms_leaves_the_sound_as_it_was(tmp_path, suffix, acodec, codec):
    whole, rng = record(tmp_path / f"whole.{suffix}", 5, acodec, codec), np.random.default_rng(0)
    path = changed(whole, tmp_path / f"jitter.{suffix}", lambda time: time + rng.uniform(-0.004, 0.004) * (time > 0.1))
    expected, found = ask(whole, 4).waveform, ask(path, 4).waveform
    assert np.array_equal(expected, found)


def test_a_slow_clock_does_not_cut_the_sound_up(tmp_path):
    whole = record(tmp_path / "whole.mkv", 5, "aac", "mpeg4")
    path = changed(whole, tmp_path / "slow.mkv", lambda time: 1.005 * time)
    assert np.array_equal(ask(whole, 4).waveform, ask(path, 4).waveform)


def test_a_pause_at_the_end_of_a_clip_does_not_end_its_sound(tmp_path):
    whole = record(tmp_path / "whole.mkv", 12, "aac", "mpeg4")
    path = without(whole, tmp_path / "a.mkv", [(2.5, 7.0)])
    for start, silence in ((0.0, 2.5), (3.0, 0.0)):
        clip = ask(path, 4, start=start, pad="tile")
        assert clip.audio_seconds == 4 and not clip.waveform[round((silence + 0.05) * RATE) :].any()


def cost(path: str) -> tuple[float, int]:
    """MB that decoding a clip takes, and the threads it has started."""
    threads = [len(os.listdir("/proc/self/task"))]
    decode = Track.decode

    def counted(*args):
        threads.append(len(os.listdir("/proc/self/task")))
        return decode(*args)

    Track.decode = counted
    return peak_memory(lambda: ask(path, 8)), max(threads) - threads[0]


def test_gaps_cost_neither_threads_nor_memory(tmp_path):
    whole = record(tmp_path / "whole.mkv", 8, "aac", "mpeg4")
    every = without(whole, tmp_path / "a.mkv", [(begin, begin + 0.02) for begin in np.arange(0.1, 8, 0.04)])
    (few, _), (many, threads) = (next(fan_out(cost, [str(path)], workers=1))[1] for path in (whole, every))
    assert threads == 0 and many < few + 10
