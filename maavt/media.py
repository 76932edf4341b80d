"""One media file -> the frames and the waveform of a clip (PyAV), or a rejection with its reason.

Both streams are read in one pass and live on one clock, the clip's: 0 is `start` seconds after the container's own
start time. Of the headers only the layout is believed (tracks, time bases, start time, rotation, aspect ratio),
never a duration or a rate: every frame goes by its own time. Memory does not grow with the file's length: one decoded
picture is held at a time, and only the chosen ones are converted.
"""

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation

REASONS = {
    "missing file": "there is no such file",
    "unreadable file": "the file may not be read, or the disk fails",
    "empty file": "the file has no bytes",
    "not media": "not a file that FFmpeg takes for one recording",
    "encrypted": "a track is encrypted",
    "no video stream": "there is no picture track (a cover picture is none)",
    "no audio stream": "there is no sound track",
    "no video decoder": "FFmpeg here has no decoder for the picture track",
    "no audio decoder": "FFmpeg here has no decoder for the sound track",
    "unusable dimensions": "the picture is larger than MAX_PIXELS or longer than MAX_ASPECT times its short side",
    "no frame decoded": "not one picture could be decoded",
    "no sound decoded": "not one sample of sound could be decoded",
    "too short": "picture or sound reaches less than MIN_COVERAGE of the clip",
    "out of memory": "there was not enough memory to decode the file",
    "timed out": "decoding took longer than its time limit",
    "decoder crashed": "the decoding process died, or failed in a way that it should not",
}

MIN_COVERAGE = 0.5  # of the asked seconds: how far picture and sound must each reach (with pad="silence")
MAX_PIXELS = 8192 * 4352  # a picture of 8K, UHD or DCI, with its last macroblocks full
MAX_ASPECT = 16  # long side over short side, as displayed
MAX_RATE = 768_000  # samples per second
MAX_PACKETS = 1_000_000  # read from one file: ten hours of video, or a file that never ends
MAX_FRAMES = 200_000  # pictures decoded from one file: two hours at 30 per second, when it cannot be sought in
MAX_LAG = 60.0  # seconds by which one track may be stored behind the other, or a picture stand still
SEEK_FROM = 10.0  # seconds: a clip that starts later is sought
PREROLL = 2.0  # seconds decoded ahead of a sought clip, so that decoders have settled and both tracks are there
MAX_JITTER = 0.1  # seconds by which a sound's time may differ from the end of the sound before without a gap
PLAYLISTS = {"concat", "dash", "hls", "imf", "sdp", "tty", "webm_dash_manifest"}  # other files, or plain text

# Correct to the rounding, at 1 ms per 1080p frame; without the flags white comes out as 253.
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# How loud each channel is in the mono mix (ITU-R BS.775, as FFmpeg has it), before they are scaled to sum to 1.
MIX = {"FL": 0.5**0.5, "FR": 0.5**0.5, "FLC": 0.5**0.5, "FRC": 0.5**0.5, "FC": 1.0,
       "BL": 0.5, "BR": 0.5, "BC": 0.5, "SL": 0.5, "SR": 0.5, "LFE": 0.0, "LFE2": 0.0}

av.logging.set_level(None)  # a broken file is a rejection, not a page of messages


class Rejected(Exception):
    """A file or clip that cannot be used: `reason` is one of REASONS, `detail` is free text for people."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Media:
    """A decoded clip; the two lengths say how far into it picture and sound reach, in seconds, before any padding."""

    frames: np.ndarray  # (seconds, size, size, 3) uint8 RGB
    waveform: np.ndarray  # (seconds * sample_rate,) float32 mono in [-1, 1]
    video_seconds: float
    audio_seconds: float


def decode(path: str | os.PathLike, *, seconds: int, frame_size: int, sample_rate: int, start: float = 0.0,
           pad: str = "silence") -> Media:
    """Decode `seconds` of a file from `start`: one frame per second and the sound, on one clock.

    Frame s is the one on view at start + s + 0.5: the last whose own time is not later, or the first of all when
    there is none. It is shown as a player would (rotation, mirroring, pixel shape), its short side scaled to
    frame_size and its centre square kept. Time without sound is silence.

    A picture that ends early is held and sound that ends early is followed by silence (pad="silence"), provided that
    both reach MIN_COVERAGE of the clip. With pad="tile" both are repeated from the beginning instead, and one frame
    and some sound are enough.

    Raises Rejected, and for a wrong argument ValueError; nothing else.
    """
    if seconds < 1 or frame_size < 1 or sample_rate < 1 or not 0 <= start < math.inf or pad not in ("silence", "tile"):
        raise ValueError(f"wrong arguments: {seconds=} {frame_size=} {sample_rate=} {start=} {pad=}")
    try:
        _check_file(path)
        picture, sound, landed = _read(path, seconds, frame_size, start, seek=start > SEEK_FROM)
        if not landed:  # behind the first frame that is needed: read from the beginning instead
            picture, sound, _ = _read(path, seconds, frame_size, start, seek=False)
        _check_decoded(picture, sound, seconds if pad == "silence" else 0)
        return Media(
            video_seconds=float(seconds) if picture.done else max(picture.end, 0.0),
            audio_seconds=min(sound.end, float(seconds)),
            frames=picture.finish(repeat=pad == "tile"),
            waveform=sound.finish(sample_rate, repeat=pad == "tile"),
        )
    except Rejected:
        raise
    except MemoryError as error:
        raise Rejected("out of memory", str(error)) from None
    except Exception as error:  # whatever FFmpeg or PyAV does with a broken file, it is this file's fault
        raise Rejected("decoder crashed", f"{type(error).__name__}: {error}") from None


def _check_file(path: str | os.PathLike) -> None:
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            open(path, "rb").close()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise Rejected("missing file", os.fspath(path)) from None
    except OSError as error:
        raise Rejected("unreadable file", str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("not media", "not a regular file")
    if status.st_size == 0:
        raise Rejected("empty file")


def _read(path: str | os.PathLike, seconds: int, frame_size: int, start: float, *, seek: bool):
    """(picture, sound, whether a seek landed early enough) after one pass over the file, as short as possible."""
    try:  # "file:", lest a colon in a name be taken for a protocol
        container = av.open(f"file:{os.fspath(Path(path).absolute())}", metadata_errors="ignore",
                            container_options={"protocol_whitelist": "file"})
    except Exception as error:  # even a MemoryError: it is a broken header that asks for so much
        raise Rejected("not media", str(error)) from None
    with container:
        if container.format.name in PLAYLISTS:
            raise Rejected("not media", f"a file of the kind {container.format.name}")
        container.flags &= ~av.container.Flags.gen_pts.value  # it reads ahead without bound to make up times
        video, audio = _choose(container, "video"), _choose(container, "audio")
        _check_size(video.codec_context.width, video.codec_context.height)
        for stream in container.streams:
            stream.discard = av.stream.Discard.default if stream in (video, audio) else av.stream.Discard.all
        for stream in (video, audio):
            stream.codec_context.thread_count = 1  # the parallel unit is the clip: least CPU time, least memory
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        begin = _origin(container, (video, audio)) + start
        picture = _Picture(_Track(video, begin), seconds, frame_size)
        sound = _Sound(_Track(audio, begin), seconds)
        if seek and not _sought(container, video, begin - PREROLL):
            return picture, sound, False
        _fill(container, picture, sound, seconds)
        return picture, sound, not seek or (picture.begin <= 0.5 and sound.begin <= 0)


def _choose(container: InputContainer, kind: str):
    """The track a player would take: the first default one with a decoder, else the first with one."""
    no_picture = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in container.streams if s.type == kind and not s.disposition & no_picture]
    if not streams:
        raise Rejected(f"no {kind} stream")
    usable = [s for s in streams if s.codec_context is not None]
    if not usable:
        raise Rejected(f"no {kind} decoder")
    chosen = max(usable, key=lambda s: bool(s.disposition & av.stream.Disposition.default))  # the first of the best
    if _tag(chosen) in ("encv", "enca", "drmi", "drms"):  # else each packet says so
        raise Rejected("encrypted", f"the {kind} track")
    return chosen


def _tag(stream) -> str:
    try:
        return stream.codec_context.codec_tag
    except UnicodeDecodeError:  # a number, not four letters
        return ""


def _origin(container: InputContainer, streams) -> float:
    """The time that the file calls its beginning, in seconds."""
    if container.start_time is not None:
        return container.start_time / av.time_base
    starts = [float(s.start_time * s.time_base) for s in streams if s.start_time is not None and s.time_base]
    return min(starts, default=0.0)


def _sought(container: InputContainer, video, time: float) -> bool:
    try:
        container.seek(int(time / video.time_base), stream=video)
    except Exception:  # a file without an index, say
        return False
    return True


def _fill(container: InputContainer, picture: "_Picture", sound: "_Sound", seconds: int) -> None:
    """Give both sinks their packets until they have what they need, or there is no more."""
    sinks = {sink.track.stream.index: sink for sink in (picture, sound)}
    for packet in _packets(container, picture.track.stream, sound.track.stream):
        sink = sinks[packet.stream.index]
        if not sink.done:
            sink.take(packet)
            if picture.done and sound.done or picture.decoded >= MAX_FRAMES:
                return
        elif sink.track.own_time(packet, default=-math.inf) > seconds + MAX_LAG:
            break  # the other track has ended, or is stored too far away
    for sink in sinks.values():
        if not sink.done:
            sink.take(None)  # what the decoder still holds


def _packets(container: InputContainer, *streams) -> Iterator[av.Packet]:
    packets = container.demux(*streams)
    for _ in range(MAX_PACKETS):
        try:
            packet = next(packets)
        except MemoryError:
            raise
        except Exception:  # StopIteration at the end of the file, or an error of a file cut off: keep what there is
            return
        if packet.has_sidedata("encryption_info"):
            raise Rejected("encrypted", f"the {packet.stream.type} track")
        if packet.size:
            yield packet


class _Track:
    """A stream and its frames, with their times in seconds on the clip's clock."""

    def __init__(self, stream, begin: float):
        self.stream = stream
        self.tick = float(stream.time_base or 0)
        self.origin = begin
        self.error = ""

    def own_time(self, item, default: float | None = None) -> float | None:
        stamp = item.dts if item.pts is None else item.pts
        return default if stamp is None or not self.tick else stamp * self.tick - self.origin

    def decode(self, packet: av.Packet | None) -> list:
        """The frames that come out for a packet (None: at the end); a broken packet costs only itself."""
        try:
            return self.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except Exception as error:
            self.error = str(error)
            return []


class _Picture:
    """Chooses the frames on view at 0.5, 1.5, ... as decoded frames come, holding one of them at a time."""

    def __init__(self, track: _Track, seconds: int, size: int):
        self.track = track
        self.seconds = seconds
        self.size = size
        self.frames: list[np.ndarray] = []
        self.held: av.VideoFrame | None = None
        self.matrix: list[int] | None = None
        self.decoded = 0
        self.begin = math.inf
        self.last = -math.inf  # time of the held frame
        self.step = 0.04  # seconds between the last two frames; at first a guess

    @property
    def done(self) -> bool:
        return len(self.frames) == self.seconds

    @property
    def end(self) -> float:
        return self.last + self.step

    def take(self, packet: av.Packet | None) -> None:
        for frame in self.track.decode(packet):
            time = self.track.own_time(frame)
            if self.held is None:
                self.last = self.begin = 0.0 if time is None else time
                self.step = frame.duration * self.track.tick if frame.duration > 0 else self.step
            else:
                if time is None or time <= self.last:  # missing, or the clock ran backwards: go on from here
                    time = self.end
                self._show(before=time)
                self.step, self.last = time - self.last, time
            self.held = frame
            self.decoded += 1

    def _show(self, before: float) -> None:
        count = min(self.seconds, math.ceil(before - 0.5 - 1e-6))  # 1e-6: times are rounded, being floats
        if count > len(self.frames):
            rgb = _to_rgb(self.held, self.track.stream, self.size)
            if self.matrix is None:
                self.matrix = _display_matrix(rgb)
            image = _upright(_centre(rgb.to_ndarray(), self.size), self.matrix)
            self.frames += [image] * (count - len(self.frames))

    def finish(self, *, repeat: bool) -> np.ndarray:
        """(seconds, size, size, 3) uint8, after the last packet."""
        if not self.done:
            self._show(before=max(self.end, 1.0) if repeat else self.seconds)
        return np.stack([self.frames[s % len(self.frames)] for s in range(self.seconds)])


class _Sound:
    """Gathers the stretches of sound within the clip as mono, each with its beginning on the clip's clock."""

    @dataclass
    class Stretch:
        begin: float  # seconds
        rate: int
        chunks: list[np.ndarray] = field(default_factory=list)  # each (samples,) float32

    def __init__(self, track: _Track, seconds: int):
        self.track = track
        self.seconds = seconds
        self.stretches: list[_Sound.Stretch] = []
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
                    self.stretches.append(_Sound.Stretch(time, frame.sample_rate))
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


def _check_decoded(picture: _Picture, sound: _Sound, seconds: int) -> None:
    if not picture.decoded:
        raise Rejected("no frame decoded", picture.track.error)
    if not sound.decoded:
        raise Rejected("no sound decoded", sound.track.error)
    if not sound.stretches or min(picture.end, sound.end) < MIN_COVERAGE * seconds:
        reach = f"picture to {max(picture.end, 0):.2f} s, sound to {max(sound.end, 0):.2f} s"
        raise Rejected("too short", f"{reach} of {seconds or picture.seconds} s")


def _check_size(width: float, height: float) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise Rejected("unusable dimensions", f"{width:g} x {height:g}")


def _to_rgb(frame: av.VideoFrame, stream, size: int) -> av.VideoFrame:
    """The picture with square pixels and its short side scaled, as RGB."""
    shape = float(stream.sample_aspect_ratio or 1)
    width = frame.width * (shape if 0.1 <= shape <= 10 else 1)
    _check_size(width, frame.height)
    scale = size / min(width, frame.height)
    width, height = max(round(width * scale), size), max(round(frame.height * scale), size)
    target = {"width": width, "height": height, "format": "rgb24", "interpolation": SCALING,
              "dst_color_range": ColorRange.JPEG, "threads": 1}
    try:
        return frame.reformat(**target)
    except OSError:  # a colour matrix that swscale does not know, or that is none
        return frame.reformat(**target, src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709)


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def _display_matrix(frame: av.VideoFrame) -> list[int]:
    """a, b, c, d of x' = a x + c y, y' = b x + d y, from stored to displayed.

    To be asked of one small frame only: a frame that was asked for its side data lives until the garbage collector
    comes, and a hundred pictures of 1080p pile up.
    """
    try:
        a, b, _, c, d = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)[:5].tolist()
    except (KeyError, ValueError):  # none, or there is side data of a kind that PyAV does not know
        return [1, 0, 0, 1]
    return [a, b, c, d]


def _upright(image: np.ndarray, matrix: list[int]) -> np.ndarray:
    """The square image as displayed; rotations are rounded to quarter turns."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


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
