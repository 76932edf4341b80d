"""The sound track of a media file -> a mono waveform, in place on the clip's clock."""

import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import av
import numpy as np
from av.filter import Graph

from maavt.media.track import Track

SILENT = 1e-6  # power below which sound is silence: -60 dBFS
STRETCH = 0.05  # seconds: sound is silent or not in blocks of this length
MAX_RATE = 768_000  # samples per second
BLOCK = 16384  # samples that are mixed at once
MAX_OFF = 0.002  # seconds by which the time of a frame may be rounded
# A frame that comes late is a gap where packets were lost: where its time is most of a frame's length (and MIN_GAP at
# least) after the end of the frame before, or after MAX_JITTER. What is less is jitter: its sound follows at once.
LOST, MIN_GAP = 0.75, 0.01
MAX_JITTER = 0.1  # seconds by which a sound's time may differ from the end of the sound before
MAX_OVERLAP = 0.5  # seconds of sound that are dropped since they were there before; of more, the clock is wrong

# How loud each channel is in the mono mix (ITU-R BS.775, as FFmpeg has it), before they are scaled to sum to 1.
MIX = {"FL": 0.5**0.5, "FR": 0.5**0.5, "FLC": 0.5**0.5, "FRC": 0.5**0.5, "FC": 1.0,
       "BL": 0.5, "BR": 0.5, "BC": 0.5, "SL": 0.5, "SR": 0.5, "LFE": 0.0, "LFE2": 0.0}
MIXED = -1  # beside the numbers of channels: their mix
CANCELLED = 0.01  # of the power that the loudest channel has in the mix: with less, they cancel each other out


class _Stretch:
    """Sound of one rate, format and layout, mixed and resampled as it comes, with silence where there is a gap: many
    frames at once, which is three times as fast as one by one, but no more than stay in the processor's cache."""

    def __init__(self, begin: float, kind: tuple[int, str, str], rate: int, alone: int | None, power: Counter):
        self.begin = begin  # seconds
        self.alone, self.power = alone, power
        self.kind = kind
        self.samples = 0  # so far, at the rate of its kind
        self.queue = av.AudioFifo()
        self.resampler = None if kind[0] == rate else _converter((kind[0], "flt", "mono"), (rate, "flt", "mono"))
        self.chunks: list[np.ndarray] = []  # each (samples,) float32

    def add(self, frame: av.AudioFrame, time: float, skipped: int) -> None:
        """Add a frame, without its first `skipped` samples, at a time; between it and the one before is silence."""
        silence = round((time - self.begin) * self.kind[0]) - self.samples
        silence = silence if silence > 1 else 0  # one sample is rounding
        if silence or skipped:
            self._empty_queue()
        for begin in range(0, silence, BLOCK):
            self._keep(np.zeros(min(silence - begin, BLOCK), np.float32))
        self.samples += silence + frame.samples - skipped
        frame.pts = None  # the queue holds no clock
        self.queue.write(frame)
        if skipped:
            self.queue.read(skipped)
        if self.queue.samples >= BLOCK:
            self._empty_queue()

    def _empty_queue(self) -> None:
        if not self.queue.samples:
            return
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
        self.chunks += [made.to_ndarray()[0] for made in _converted(self.resampler, frame)]

    def finish(self) -> np.ndarray:
        """(samples,) float32, after the last frame."""
        self._empty_queue()
        self._keep(None)
        return np.concatenate(self.chunks)


class Sound:
    """Gathers the sound within the clip as mono, in its place on the clip's clock: the mix of all channels, or the one
    of the number `alone`.

    There is one resampler at a time, which starts no thread, however many gaps there are and whatever the number of
    processors.
    """

    def __init__(self, track: Track, seconds: int, rate: int, alone: int | None = None, number: int = 0):
        self.track = track
        self.number = number  # as Media.sound_track
        self.seconds = seconds
        self.rate = rate
        self.alone = alone
        self.power: Counter = Counter()  # sum of squares of each channel in the mix, and of MIXED
        self.waveform = np.zeros(seconds * rate, np.float32)
        self.stretch: _Stretch | None = None  # the last one, not yet in the waveform
        self.decoded = 0
        self.begin = math.inf
        self.last = 0.0  # end of the last decoded frame, where its sound lies
        self.stamped = 0.0  # the same, by its own time
        self.dropped = 0.0  # seconds just dropped, since they overlap what is there
        self.end = -math.inf  # end of the last sound within the clip

    @property
    def done(self) -> bool:
        return self.decoded > 0 and self.last >= self.seconds

    @property
    def inside(self) -> bool:
        """Whether the clip has sound, or a pause with sound before and after it."""
        return self.end > -math.inf

    def take(self, packet: av.Packet | None) -> None:
        for frame in self.track.decode(packet):
            if not frame.samples or not 0 < frame.sample_rate <= MAX_RATE:
                continue
            length = frame.samples / frame.sample_rate
            time, joint, skipped = self.track.own_time(frame, default=self.last), False, 0
            late, self.stamped = time - self.stamped, time + length
            lost = max(LOST * length, MIN_GAP)
            back = time < self.last - MAX_JITTER
            self.dropped = self.dropped if back else 0.0
            if self.decoded == 0:
                self.begin = time
            elif self.track.begins and time >= self.track.begins[0] - MAX_OFF:  # another recording, with its picture
                self.track.begins.pop(0)
                joint = True
            elif back and self.dropped < MAX_OVERLAP:  # take what has not been there before
                skipped = min(round((self.last - time) * frame.sample_rate), frame.samples)
                self.dropped += skipped / frame.sample_rate
                time = self.last
            elif time - self.last < (min(lost, MAX_JITTER) if late >= lost else MAX_JITTER):
                time = self.last  # jitter, or a clock that tells nothing
            self.decoded += 1
            if skipped == frame.samples:
                continue
            self.last = time + length - skipped / frame.sample_rate
            if self.last > 0 and time < self.seconds:
                kind = frame.sample_rate, frame.format.name, frame.layout.name
                if joint or not self.stretch or self.stretch.kind != kind:
                    self._place()
                    self.stretch = _Stretch(time, kind, self.rate, self.alone, self.power)
                self.stretch.add(frame, time, skipped)
                self.end = self.last
            elif time >= self.seconds > self.begin:  # a pause ends the clip, not the sound
                self.end = float(self.seconds)

    def _place(self) -> None:
        """Put the last stretch into the waveform."""
        if self.stretch:
            samples, begin = self.stretch.finish(), round(self.stretch.begin * self.rate)
            samples = samples[max(-begin, 0):][:max(len(self.waveform) - max(begin, 0), 0)]
            self.waveform[max(begin, 0):max(begin, 0) + len(samples)] = samples

    def finish(self, *, repeat: bool) -> np.ndarray:
        """(seconds * rate,) float32, after the last packet."""
        self._place()
        waveform = self.waveform
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
    size = _block(rate)
    blocks = waveform[: len(waveform) // size * size].reshape(-1, size)
    return np.einsum("ij,ij->i", blocks, blocks) / size


def _block(rate: int) -> int:
    return max(round(STRETCH * rate), 1)


class Listener:
    """Whether sound is more than silence, in any channel that is in the mix, as it comes in frames."""

    def __init__(self):
        self.rest = np.zeros((0, 0), np.float32)  # shorter than a block
        self.seconds = 0.0
        self.sounds = False

    def hear(self, frame: av.AudioFrame) -> None:
        if not frame.samples or not 0 < frame.sample_rate <= MAX_RATE:
            return
        with np.errstate(all="ignore"):
            samples = _channels(frame)[_weights(_names(frame)) > 0]
            if len(samples) == len(self.rest):
                samples = np.concatenate([self.rest, samples], axis=1)
            self.sounds |= any((power(channel, frame.sample_rate) > SILENT).any() for channel in samples)
        block = _block(frame.sample_rate)
        self.rest = samples[:, samples.shape[1] // block * block :]
        self.seconds += frame.samples / frame.sample_rate


def _names(frame: av.AudioFrame) -> tuple[str, ...]:
    return tuple(channel.name for channel in frame.layout.channels)


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """(channels, samples) float32, nominally in [-1, 1], from any sample format and layout."""
    count = len(frame.layout.channels)
    if count >= 8 and frame.format.is_planar or frame.format.name.startswith("s64"):
        kind = frame.sample_rate, frame.format.name, frame.layout.name  # PyAV reads beyond eight planes, knows no s64
        (frame,) = _converted(_converter(kind, (kind[0], "flt", kind[2])), frame)
    stored = frame.to_ndarray()  # (channels, samples), or packed: (1, samples * channels)
    if not frame.format.is_planar:
        stored = stored.reshape(-1, count).T
    with np.errstate(all="ignore"):  # sound stored as floats may be anything
        samples = stored.astype(np.float32, copy=False)
        if stored.dtype == np.uint8:
            samples -= 128
        if stored.dtype.kind in "ui":
            samples /= 2.0 ** (8 * stored.itemsize - 1)
    return samples


def _to_mono(frame: av.AudioFrame, alone: int | None, power: Counter) -> np.ndarray:
    """(samples,) float32; the squares of the mix are added to `power`, as are those of the channels."""
    samples, weights = _channels(frame), _weights(_names(frame))
    if len(samples) == 1 or alone is not None:
        return np.ascontiguousarray(samples[alone if alone and alone < len(samples) else 0])
    with np.errstate(all="ignore"):
        mixed = weights @ samples
        power[MIXED] += float(mixed @ mixed)
        power.update(dict(enumerate((np.einsum("ij,ij->i", samples, samples) * weights**2).tolist())))
    return mixed


def _converter(kind: tuple[int, str, str], target: tuple[int, str, str]) -> Graph:
    """What makes sound of one rate, format and layout into sound of another. av.AudioResampler would start a thread for
    each processor, whose stacks count as memory."""
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add("abuffer", sample_rate=str(kind[0]), sample_fmt=kind[1], channel_layout=kind[2]),
        graph.add("aformat", sample_rates=str(target[0]), sample_fmts=target[1], channel_layouts=target[2]),
        graph.add("abuffersink")).configure()
    return graph


def _converted(graph: Graph, frame: av.AudioFrame | None) -> Iterator[av.AudioFrame]:
    """The frames that are ready after a frame, or after the last one (None)."""
    graph.push(frame)
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


@lru_cache
def _weights(channels: tuple[str, ...]) -> np.ndarray:
    weights = np.array([MIX.get(name, 1.0) for name in channels], np.float32)
    return weights / weights.sum() if weights.any() else weights + 1 / len(weights)
