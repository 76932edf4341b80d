"""Which of several tracks of sound is taken: the first one that sounds."""

from pathlib import Path

import av
import numpy as np
import pytest

from maavt.commands.probe import probe
from maavt.media import decode as media
from maavt.media.decode import sound_track
from maavt.recordings.windows import File, parts_of
from tests.media.reference import run
from tests.media.test_decode import RATE, ask, near
from tests.media.test_quality import measured
from tests.recordings.test_windows import config

SILENCE, QUIET = "anullsrc=r=48000:cl=stereo", "sine=f=440:r=48000,volume=-50dB"  # QUIET is below -60 dBFS
LOW, HIGH = "sine=f=440:r=48000", "sine=f=2000:r=48000"
LATE = f"{LOW}:d=2,adelay=3000"  # silent for three seconds
PLAIN, TWISTED = LOW, f"{LOW},pan=stereo|c0=c0|c1=-1*c0"


def film(path: Path, *sounds: str, seconds: float = 6, default: int = 0, acodec: str = "aac") -> Path:
    """A moving picture with these tracks of sound, of which the one of the number `default` is the default one."""
    inputs = [part for sound in sounds for part in ("-f", "lavfi", "-t", seconds, "-i", sound)]
    maps = [part for number in range(len(sounds)) for part in ("-map", f"{number + 1}:a")]
    flags = [part for number in range(len(sounds))
             for part in (f"-disposition:a:{number}", "default" if number == default else "0")]
    run("-v", "error", "-f", "lavfi", "-t", seconds, "-i", "testsrc2=s=64x48:r=5", *inputs, "-map", "0:v", *maps,
        *flags, "-c:v", "mpeg4", "-c:a", acodec, path)
    return path


def pitch(path: Path) -> int:
    """The loudest frequency of the sound that decode() finds, in Hz; 0 where there is silence."""
    sound = ask(path, 4).waveform[RATE // 2 :]
    return round(np.abs(np.fft.rfft(sound)).argmax() * RATE / len(sound), -1) if np.abs(sound).max() > 1e-3 else 0


@pytest.mark.parametrize("sounds, number, hertz", [
    ((SILENCE, LOW), 2, 440), ((QUIET, LOW), 2, 440), ((SILENCE, SILENCE, HIGH, LOW), 3, 2000),
    ((LOW, HIGH), 0, 440), ((HIGH, SILENCE), 0, 2000), ((LATE, HIGH), 0, 440), ((SILENCE, SILENCE), 0, 0),
    ((TWISTED, HIGH), 0, 440)])
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_the_first_track_that_sounds_is_taken(tmp_path, suffix, sounds, number, hertz):
    path = film(tmp_path / f"a.{suffix}", *sounds)
    assert sound_track(path) == ask(path, 4).sound_track == number
    assert pitch(path) == hertz


def test_a_default_track_comes_first_unless_it_is_silent(tmp_path):
    assert pitch(film(tmp_path / "a.mkv", LOW, HIGH, default=1)) == 2000
    silent = film(tmp_path / "b.mkv", LOW, SILENCE, default=1)
    assert (pitch(silent), sound_track(silent)) == (440, 1)


def test_a_track_that_cannot_be_decoded_or_has_no_packets_is_passed_over(tmp_path):
    whole = film(tmp_path / "whole.mkv", LOW, HIGH, acodec="flac")
    for name, payload in (("broken.mkv", lambda packet: bytes(packet.size)), ("empty.mkv", lambda packet: b"")):
        with av.open(str(whole)) as old, av.open(str(tmp_path / name), "w") as new:
            streams = [new.add_stream_from_template(stream) for stream in old.streams]
            for packet in old.demux():
                data = payload(packet) if packet.stream.index == 1 else bytes(packet)
                if data:
                    copy = av.Packet(data)
                    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                    copy.is_keyframe, copy.stream = packet.is_keyframe, streams[packet.stream.index]
                    new.mux(copy)
        assert (pitch(tmp_path / name), sound_track(tmp_path / name)) == (2000, 2)


def test_probe_shard_and_predict_take_the_same_track_and_say_so(tmp_path):
    paths = [film(tmp_path / "a.mkv", SILENCE, LOW), film(tmp_path / "b.mkv", LOW, HIGH)]
    assert [verdict.get("sound_track", 0) for verdict in probe(list(map(str, paths)))] == [2, 0]
    assert [measured(path, "folder").sound_track for path in paths] == [2, 0]
    parts = list(parts_of([File(str(path), named=True) for path in paths], config("synth"), workers=0))
    assert [part.sound_track for part in parts] == [2, 0] and not any(part.absent or part.failed for part in parts)


def test_a_long_recording_has_one_track_for_all_its_parts_and_is_listened_to_in_places(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "LISTEN", 6.0)
    monkeypatch.setattr(media, "PLACES", 3)
    path = film(tmp_path / "a.mkv", "aevalsrc=0.3*sin(2000*PI*t)*between(t\\,41\\,43):s=48000", LOW, seconds=60)
    decoded = []
    hear = media.Listener.hear
    monkeypatch.setattr(media.Listener, "hear", lambda *args: decoded.append(1) or hear(*args))
    for start in (0.0, 20.0, 40.0):
        assert ask(path, 4, start=start).sound_track == 0
    assert len(decoded) * 1024 / 48000 < 2 * 6 + 1  # seconds, once for all, of both tracks
    assert near([ask(path, 4, start=start).waveform.std() for start in (0.0, 40.0)], [0, 0.15], 0.01)
