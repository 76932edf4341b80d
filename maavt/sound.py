"""The sound track of a media file -> a mono waveform, in place on the clip's clock."""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import av
import numpy as np

from maavt.track import Track

MAX_RATE = 768_000  # samples per second
MAX_JITTER = 0.1  # seconds by which a sound's time may differ from the end of the sound before without a gap

# How loud each channel is in the mono mix (ITU-R BS.775, as FFmpeg has it), before they are scaled to sum to 1.
MIX = {"FL": 0.5**0.5, "FR": 0.5**0.5, "FLC": 0.5**0.5, "FRC": 0.5**0.5, "FC": 1.0,
       "BL": 0.5, "BR": 0.5, "BC": 0.5, "SL": 0.5, "SR": 0.5, "LFE": 0.0, "LFE2": 0.0}


class Sound:
    """Gathers the stretches of sound within the clip as mono, each with its beginning on the clip's clock."""

    @dataclass
    class Stretch:
        begin: float  # seconds
        rate: int
        chunks: list[np.ndarray] = field(default_factory=list)  # each (samples,) float32

    def __init__(self, track: Track, seconds: int):
        self.track = track
        self.seconds = seconds
        self.stretches: list[Sound.Stretch] = []
        self.decoded = 0
        self.begin = math.inf
        self.last = 0.0  # end of the last decoded frame
        self.end = -math.inf  # end of the last sound within the clip

    @property
    def done(self) -> bool:
        return self.decoded > 0 and self.last >= self.seconds

    def take(self, packet: av.Packet | None) -> None:
        for frame in self.track.decode(packet):
            if not frame.samples or not 0 < frame.sample_rate <= MAX_RATE:
                continue
            time = self.track.own_time(frame, default=self.last)
            if self.decoded == 0:
                self.begin = time
            elif time < self.last + MAX_JITTER:  # rounded, or the clock ran backwards: go on from here
                time = self.last
            gap = time != self.last
            self.last = time + frame.samples / frame.sample_rate
            self.decoded += 1
            if self.last > 0 and time < self.seconds:
                if gap or not self.stretches or self.stretches[-1].rate != frame.sample_rate:
                    self.stretches.append(Sound.Stretch(time, frame.sample_rate))
                self.stretches[-1].chunks.append(_to_mono(frame))
                self.end = self.last

    def finish(self, rate: int, *, repeat: bool) -> np.ndarray:
        """(seconds * rate,) float32, after the last packet."""
        waveform = np.zeros(self.seconds * rate, np.float32)
        for stretch in self.stretches:
            samples = np.nan_to_num(np.concatenate(stretch.chunks)).clip(-1, 1)
            samples = _resample(samples, stretch.rate, rate)
            begin = round(stretch.begin * rate)
            samples = samples[max(-begin, 0):][:max(len(waveform) - max(begin, 0), 0)]
            waveform[max(begin, 0):max(begin, 0) + len(samples)] = samples
        if repeat:
            waveform = np.resize(waveform[:max(round(self.end * rate), 1)], len(waveform))
        return waveform.clip(-1, 1)


def _to_mono(frame: av.AudioFrame) -> np.ndarray:
    """(samples,) float32, nominally in [-1, 1], from any sample format and layout."""
    channels = tuple(channel.name for channel in frame.layout.channels)
    if len(channels) >= 8 and frame.format.is_planar or frame.format.name.startswith("s64"):
        (frame,) = av.AudioResampler("flt").resample(frame)  # PyAV reads beyond eight planes, and knows no s64
    stored = frame.to_ndarray()  # (channels, samples), or packed: (1, samples * channels)
    if not frame.format.is_planar:
        stored = stored.reshape(-1, len(channels)).T
    with np.errstate(all="ignore"):  # sound stored as floats may be anything
        samples = stored.astype(np.float32)
        if stored.dtype == np.uint8:
            samples -= 128
        if stored.dtype.kind in "ui":
            samples /= 2.0 ** (8 * stored.itemsize - 1)
        return _weights(channels) @ samples


@lru_cache
def _weights(channels: tuple[str, ...]) -> np.ndarray:
    weights = np.array([MIX.get(name, 1.0) for name in channels], np.float32)
    return weights / weights.sum() if weights.any() else weights + 1 / len(weights)


def _resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """(samples,) float32 at another rate."""
    if rate == new_rate:
        return samples
    resampler = av.AudioResampler("flt", "mono", new_rate)
    frame = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
    frame.sample_rate = rate
    frames = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])
