"""The sound track of a media file -> a mono waveform, in place on the clip's clock."""

import math
from collections import Counter
from functools import lru_cache

import av
import numpy as np

from maavt.media.track import Track

SILENT = 1e-6  # power below which sound is silence: -60 dBFS
STRETCH = 0.05  # seconds: sound is silent or not in blocks of this length
MAX_RATE = 768_000  # samples per second
BLOCK = 16384  # samples that are mixed at once
MAX_OFF = 0.002  # seconds by which the time of a frame may be rounded
MAX_JITTER = 0.1  # seconds by which a sound's time may differ from the end of the sound before without a gap

# How loud each channel is in the mono mix (ITU-R BS.775, as FFmpeg has it), before they are scaled to sum to 1.
MIX = {"FL": 0.5**0.5, "FR": 0.5**0.5, "FLC": 0.5**0.5, "FRC": 0.5**0.5, "FC": 1.0,
       "BL": 0.5, "BR": 0.5, "BC": 0.5, "SL": 0.5, "SR": 0.5, "LFE": 0.0, "LFE2": 0.0}
MIXED = -1  # beside the numbers of channels: their mix
CANCELLED = 0.01  # of the power that the loudest channel has in the mix: with less, they cancel each other out


class _Stretch:
    """Sound without a gap, of one rate, format and layout, mixed and resampled as it comes: many frames at once, which
    is three times as fast as one by one, but no more than stay in the processor's cache."""

    def __init__(self, begin: float, kind: tuple[int, str, str], rate: int, alone: int | None, power: Counter):
        self.begin = begin  # seconds
        self.alone, self.power = alone, power
        self.kind = kind
        self.queue = av.AudioFifo()
        self.resampler = None if kind[0] == rate else av.AudioResampler("flt", "mono", rate)
        self.chunks: list[np.ndarray] = []  # each (samples,) float32

    def add(self, frame: av.AudioFrame) -> None:
        frame.pts = None  # the queue holds no clock
        self.queue.write(frame)
        if self.queue.samples >= BLOCK:
            self._empty_queue()

    def _empty_queue(self) -> None:
        samples = _to_mono(self.queue.read(), self.alone, self.power)
        if not np.isfinite(samples).all():
            samples = np.nan_to_num(samples)
        self._keep(samples.clip(-1, 1, out=samples))

    def _keep(self, samples: np.ndarray | None) -> None:
        if self.resampler is None:
            self.chunks += [] if samples is None else [samples]
            return
        frame = None
        if samples is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
            frame.sample_rate = self.kind[0]
        self.chunks += [frame.to_ndarray()[0] for frame in self.resampler.resample(frame)]

    def finish(self) -> np.ndarray:
        """(samples,) float32, after the last frame."""
        if self.queue.samples:
            self._empty_queue()
        self._keep(None)
        return np.concatenate(self.chunks)


class Sound:
    """Gathers the stretches of sound within the clip as mono, each with its beginning on the clip's clock: the mix of
    all channels, or the one of the number `alone`."""

    def __init__(self, track: Track, seconds: int, rate: int, alone: int | None = None):
        self.track = track
        self.seconds = seconds
        self.rate = rate
        self.alone = alone
        self.power: Counter = Counter()  # sum of squares of each channel in the mix, and of MIXED
        self.stretches: list[_Stretch] = []
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
            time, joint = self.track.own_time(frame, default=self.last), False
            if self.decoded == 0:
                self.begin = time
            elif self.track.begins and time >= self.track.begins[0] - MAX_OFF:  # another recording, with its picture
                self.track.begins.pop(0)
                joint = True
            elif time < self.last + MAX_JITTER:  # rounded, or the clock ran backwards: go on from here
                time = self.last
            gap = joint or time != self.last
            self.last = time + frame.samples / frame.sample_rate
            self.decoded += 1
            if self.last > 0 and time < self.seconds:
                kind = frame.sample_rate, frame.format.name, frame.layout.name
                if gap or not self.stretches or self.stretches[-1].kind != kind:
                    self.stretches.append(_Stretch(time, kind, self.rate, self.alone, self.power))
                self.stretches[-1].add(frame)
                self.end = self.last

    def finish(self, *, repeat: bool) -> np.ndarray:
        """(seconds * rate,) float32, after the last packet."""
        waveform = np.zeros(self.seconds * self.rate, np.float32)
        for stretch in self.stretches:
            samples = stretch.finish()
            begin = round(stretch.begin * self.rate)
            samples = samples[max(-begin, 0):][:max(len(waveform) - max(begin, 0), 0)]
            waveform[max(begin, 0):max(begin, 0) + len(samples)] = samples
        if repeat:
            waveform = np.resize(waveform[:max(round(self.end * self.rate), 1)], len(waveform))
        return waveform.clip(-1, 1)

    @property
    def cancelled(self) -> int | None:
        """When finished: the loudest channel where the mix has lost what is in it, as of a plug wired wrongly."""
        if self.alone is not None or len(self.power) < 2:
            return None
        loudest = max(self.power.keys() - {MIXED}, key=self.power.get)
        return loudest if self.power[MIXED] < CANCELLED * self.power[loudest] else None


def power(waveform: np.ndarray, rate: int) -> np.ndarray:
    """The mean squares of a waveform (samples,) in blocks of STRETCH, without a rest at its end."""
    size = max(round(STRETCH * rate), 1)
    blocks = waveform[: len(waveform) // size * size].reshape(-1, size)
    return np.einsum("ij,ij->i", blocks, blocks) / size


def _to_mono(frame: av.AudioFrame, alone: int | None, power: Counter) -> np.ndarray:
    """(samples,) float32, nominally in [-1, 1], from any sample format and layout; their squares are added to `power`,
    as are those of the channels."""
    channels = tuple(channel.name for channel in frame.layout.channels)
    if len(channels) >= 8 and frame.format.is_planar or frame.format.name.startswith("s64"):
        (frame,) = av.AudioResampler("flt").resample(frame)  # PyAV reads beyond eight planes, and knows no s64
    stored = frame.to_ndarray()  # (channels, samples), or packed: (1, samples * channels)
    if not frame.format.is_planar:
        stored = stored.reshape(-1, len(channels)).T
    with np.errstate(all="ignore"):  # sound stored as floats may be anything
        samples = stored.astype(np.float32, copy=False)
        if stored.dtype == np.uint8:
            samples -= 128
        if stored.dtype.kind in "ui":
            samples /= 2.0 ** (8 * stored.itemsize - 1)
        weights = _weights(channels)
        if len(channels) == 1 or alone is not None:
            return np.ascontiguousarray(samples[alone if alone and alone < len(channels) else 0])
        mixed = weights @ samples
        power[MIXED] += float(mixed @ mixed)
        power.update(dict(enumerate((np.einsum("ij,ij->i", samples, samples) * weights**2).tolist())))
        return mixed


@lru_cache
def _weights(channels: tuple[str, ...]) -> np.ndarray:
    weights = np.array([MIX.get(name, 1.0) for name in channels], np.float32)
    return weights / weights.sum() if weights.any() else weights + 1 / len(weights)
