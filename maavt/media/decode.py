"""One media file -> the frames and the waveform of a clip (PyAV), or a rejection with its reason.

Both streams are read in one pass and live on one clock, the clip's: 0 is `start` seconds after the container's own
start time. Of the headers only the layout is believed (tracks, time bases, start time, rotation, aspect ratio),
never a duration or a rate: every frame goes by its own time. Memory does not grow with the file's length: one decoded
picture is held at a time, and only the chosen ones are converted.
"""

import math
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.format import Flags

from maavt.media.picture import MAX_PIXELS, Picture, check_size
from maavt.media.rejected import REASONS, Rejected
from maavt.media.sound import SILENT, Listener, Sound, power
from maavt.media.track import Track

__all__ = ["MIN_COVERAGE", "REASONS", "Media", "Rejected", "decode"]

MIN_COVERAGE = 0.5  # of the asked seconds: how far picture and sound must each reach (with pad="silence")
MAX_PACKETS = 1_000_000  # read from one file: ten hours of video, or a file that never ends
MAX_FRAMES = 200_000  # pictures decoded from one file: two hours at 30 per second, when it cannot be sought in
MAX_LAG = 60.0  # seconds by which one track may be stored behind the other, or a picture stand still
SEEK_FROM = 10.0  # seconds: a clip that starts later is sought
# Seconds decoded ahead of a sought clip, so that decoders have settled and both tracks are there; where that was not
# enough, for the next whole picture came too late, the next number.
PREROLLS = 2.0, 12.0, 60.0
# Seconds of its tracks that are listened to where a file has several of sound; of a longer file, in so many places.
LISTEN, PLACES = 300.0, 30
APART = 10.0  # seconds by which one track of sound may be stored behind another
# Grey levels by which all frames of a picture that shows nothing may differ. A still picture that shows something is
# none: a photograph with sound can carry the label.
UNIFORM = 8
PLAYLISTS = {"concat", "dash", "hls", "imf", "sdp", "tty", "webm_dash_manifest"}  # other files, or plain text

av.logging.set_level(None)  # a broken file is a rejection, not a page of messages


@dataclass(frozen=True)
class Media:
    """A decoded clip; the two lengths say how far into it picture and sound reach, in seconds, before any padding.

    Where one of them is `absent` ("sound" or "picture"), its length is 0, and it is zeros: silent, or black.
    `sound_track` is sound_track() of the file.
    """

    frames: np.ndarray  # (those wanted, size, size, 3) uint8 RGB
    waveform: np.ndarray  # (seconds * sample_rate,) float32 mono in [-1, 1]
    video_seconds: float
    audio_seconds: float
    width: int  # of the pictures as they are stored
    height: int
    frame_rate: float  # by the header
    absent: str = ""
    sound_track: int = 0

    @property
    def seconds(self) -> float:
        """How far into the clip all that is there reaches."""
        reach = {"picture": self.video_seconds, "sound": self.audio_seconds}
        return min(length for kind, length in reach.items() if kind != self.absent)


def decode(path: str | os.PathLike, *, seconds: int, frame_size: int, sample_rate: int, start: float = 0.0,
           pad: str = "silence", wanted: range | None = None, keep: bool = False) -> Media:
    """Decode `seconds` of a file from `start`: one frame per second and the sound, on one clock.

    Frame s is the one on view at start + s + 0.5: the last whose own time is not later, or the first of all when
    there is none. It is shown as a player would (rotation, mirroring, pixel shape), its short side scaled to
    frame_size and its centre square kept. Time without sound is silence. `wanted` says which frames are needed, by
    their numbers; picture is decoded no further than that.

    A picture that ends early (before the last frame that is needed) is held and sound that ends early is followed by
    silence (pad="silence"), provided that both reach MIN_COVERAGE of the clip. With pad="tile" both are repeated from
    the beginning instead, and one frame and some sound are enough.

    With `keep` one of the two may be absent: no track, no decoder, nothing decoded, or nothing to hear or see from end
    to end (silence, one uniform colour).

    Raises Rejected, and for a wrong argument ValueError; nothing else.
    """
    if seconds < 1 or frame_size < 1 or sample_rate < 1 or not 0 <= start < math.inf or pad not in ("silence", "tile"):
        raise ValueError(f"wrong arguments: {seconds=} {frame_size=} {sample_rate=} {start=} {pad=}")
    wanted = range(seconds) if wanted is None else wanted
    if not wanted or min(wanted) < 0 or max(wanted) >= seconds:
        raise ValueError(f"{wanted=}: expected some of {seconds} seconds")
    try:
        _check_file(path)
        without, alone = set(), None
        while True:
            read = partial(_read, path, seconds, frame_size, sample_rate, start, wanted, without, alone, keep)
            for preroll in (*(PREROLLS if start > SEEK_FROM else ()), None):  # None: from the beginning
                picture, sound, landed = read(preroll=preroll)
                if landed:
                    break
            tracks = [sink.track for sink in (picture, sound) if sink]
            if empty := {track.index for track in tracks if track.empty and track.others}:
                without |= empty  # the first programme of a broadcast, say, of which nothing was kept
                continue
            if keep and (picture and picture.decoded or sound and sound.inside):
                picture = picture if picture and picture.decoded else None
                sound = sound if sound and sound.inside else None
            _check_decoded(picture, sound, seconds)
            waveform = sound.finish(repeat=pad == "tile") if sound else np.zeros(seconds * sample_rate, np.float32)
            if not sound or (alone := sound.cancelled) is None:
                break
        whole = picture is not None and picture.done  # finishing it makes it so
        frames = picture.finish(repeat=pad == "tile") if picture else \
            np.zeros((len(wanted), frame_size, frame_size, 3), np.uint8)
        if keep:
            picture = picture if picture and _shows(picture) else None
            sound = sound if (power(waveform, sample_rate) > SILENT).any() else None
        _check_reach(picture, sound, seconds if pad == "silence" else 0, whole)
        return Media(
            video_seconds=0.0 if not picture else float(seconds) if whole else max(picture.end, 0.0),
            audio_seconds=min(sound.end, float(seconds)) if sound else 0.0,
            width=picture.held.width if picture else 0,
            height=picture.held.height if picture else 0,
            frame_rate=picture.rate if picture else 0.0,
            frames=frames if picture else np.zeros_like(frames),
            waveform=waveform if sound else np.zeros_like(waveform),
            absent="" if picture and sound else "sound" if picture else "picture",
            sound_track=sound.number if sound else 0,
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


def _read(path: str | os.PathLike, seconds: int, frame_size: int, sample_rate: int, start: float, wanted: range,
          without: set[int], alone: int | None, keep: bool, *, preroll: float | None):
    """(picture, sound, whether a seek to `preroll` seconds before the clip landed early enough) after one pass over
    the file, as short as possible; the tracks `without` are passed over, and of the sound the channel `alone` is
    taken. With `keep` picture or sound is None where there is no such track that can be decoded."""
    with _open(path) as container:
        if container.format.name in PLAYLISTS:
            raise Rejected("not media", f"a file of the kind {container.format.name}")
        (video, more_video), (audio, more_audio) = _choose_both(container, path, without, keep)
        streams = [stream for stream in (video, audio) if stream]
        if video:
            check_size(video.codec_context.width, video.codec_context.height)
        for stream in container.streams:
            stream.discard = av.stream.Discard.default if stream in streams else av.stream.Discard.all
        for stream in streams:
            stream.codec_context.thread_count = 1  # the parallel unit is the clip: least CPU time, least memory
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        begin = _origin(container, streams) + start
        joints = [0.0]
        picture = video and Picture(Track(video, begin, joints, more_video), seconds, wanted, frame_size)
        sound = audio and Sound(Track(audio, begin, joints, more_audio), seconds, sample_rate, alone,
                                _number(container, audio.index))
        if preroll is not None and not _sought(container, streams[0], begin - preroll, path):
            return picture, sound, False
        _fill(container, picture, sound, seconds)
        return picture, sound, preroll is None or (not picture or picture.begin <= 0.5) and (
            not sound or sound.begin <= 0)


def _open(path: str | os.PathLike) -> InputContainer:
    try:  # "file:", lest a colon in a name be taken for a protocol
        container = av.open(f"file:{os.fspath(Path(path).absolute())}", metadata_errors="ignore",
                            container_options={"protocol_whitelist": "file"})
    except Exception as error:  # even a MemoryError: it is a broken header that asks for so much
        raise Rejected("not media", str(error)) from None
    container.flags &= ~av.container.Flags.gen_pts.value  # it reads ahead without bound to make up times
    return container


def _choose_both(container: InputContainer, path: str | os.PathLike, without: set[int], keep: bool) -> list[tuple]:
    """The choice of picture and of sound, None for one that cannot be had where the other can and `keep` is set."""
    chosen, lacking = [], []
    for kind in ("video", "audio"):
        try:
            chosen.append(_choose(container, path, kind, without))
        except Rejected as rejected:
            chosen.append((None, False))
            lacking.append(rejected)
    if lacking and (not keep or len(lacking) == 2 or lacking[0].reason == "encrypted"):
        raise lacking[0]
    return chosen


def _choose(container: InputContainer, path: str | os.PathLike, kind: str, without: set[int]):
    """The track a player would take, but for one of sound that is silent beside others; and whether there are
    others."""
    usable = [stream for stream in _usable(container, kind) if stream.index not in without]
    chosen = usable[0] if usable else None
    if kind == "audio" and len(usable) > 1:
        sounding = _sounding(*_identity(path))
        chosen = next((stream for stream in usable if stream.index == sounding), chosen)
    if not chosen:
        raise Rejected(f"no {kind} {'decoder' if _tracks(container, kind, without) else 'stream'}")
    if _tag(chosen) in ("encv", "enca", "drmi", "drms"):  # else each packet says so
        raise Rejected("encrypted", f"the {kind} track")
    return chosen, len(usable) > 1


def _tracks(container: InputContainer, kind: str, without: Collection[int] = ()) -> list:
    no_picture = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    return [stream for stream in container.streams if stream.type == kind and not stream.disposition & no_picture
            and stream.index not in without]


def _usable(container: InputContainer, kind: str) -> list:
    """The tracks with a decoder, in the order in which players take them: the default ones first."""
    usable = [stream for stream in _tracks(container, kind) if stream.codec_context is not None]
    return sorted(usable, key=lambda stream: not stream.disposition & av.stream.Disposition.default)


def sound_track(path: str | os.PathLike) -> int:
    """The number, from 1 on, of the sound track that decode() takes since those before it are silent; 0 where it takes
    the one that players do."""
    with _open(path) as container:
        usable = _usable(container, "audio")
        return _number(container, _sounding(*_identity(path))) if len(usable) > 1 else 0


def _number(container: InputContainer, index: int) -> int:
    usual = _usable(container, "audio")[0].index == index
    return 0 if usual else 1 + [stream.index for stream in _tracks(container, "audio")].index(index)


def _identity(path: str | os.PathLike) -> tuple[str, int, int]:
    """What tells one file from another of the same name."""
    status = os.stat(path)
    return os.fspath(Path(path).absolute()), status.st_size, status.st_mtime_ns


@lru_cache(1000)
def _sounding(path: str, *_: int) -> int:
    """The index of the first sound track, in the order in which players take them, that is more than silence anywhere;
    where all are silent, of the first one that can be decoded. Of long files only PLACES are listened to, and no longer
    than it takes until the first track sounds."""
    with _open(path) as container:
        tracks = {stream.index: stream for stream in _usable(container, "audio")}
        silent, decoded = list(tracks), set()  # the tracks before the first one that sounds; those with any sound
        sounding = None
        for stream in container.streams:
            stream.discard = av.stream.Discard.default if stream.index in tracks else av.stream.Discard.all
        for stream in tracks.values():
            stream.codec_context.thread_count = 1
        length, origin = (container.duration or 0) / av.time_base, _origin(container, tracks.values())
        places = [length * number / PLACES for number in range(PLACES)] if length > LISTEN else [0.0]
        span = LISTEN / len(places)
        for place in places:
            try:
                if place:
                    container.seek(int((origin + place) * av.time_base))
            except Exception:  # a file without an index, say
                break
            heard = {index: Listener() for index in silent}
            for packet in _packets(container, *(tracks[index] for index in silent)):
                index = packet.stream.index
                if index not in silent:
                    continue
                for frame in Track(packet.stream, 0.0, [0.0]).decode(packet):
                    heard[index].hear(frame)
                    decoded.add(index)
                if heard[index].sounds:
                    sounding, silent = index, silent[: silent.index(index)]
                lengths = [heard[index].seconds for index in silent]
                if min(lengths, default=span) >= span or max(lengths) >= span + APART:
                    break
            if not silent:
                break
        return next((index for index in tracks if index == sounding or sounding is None and index in decoded),
                    next(iter(tracks)))


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


def _sought(container: InputContainer, stream, time: float, path: str | os.PathLike) -> bool:
    if container.format.flags & Flags.ts_discont.value:
        if _is_joined(*_identity(path)):
            return False
    try:
        container.seek(int(time / stream.time_base), stream=stream)
    except Exception:  # a file without an index, say
        return False
    return True


@lru_cache(1000)
def _is_joined(path: str, *_: int) -> bool:
    """Whether a file is several recordings, whose clocks start anew: then a time alone is no place in it. Its packets
    are looked through without decoding them; further arguments tell one file from another of the same name."""
    with _open(path) as container:
        first = min((s for s in container.streams if s.type in ("video", "audio")), key=lambda s: s.type != "video")
        track = Track(first, 0.0, [0.0])
        for packet in _packets(container, first):
            track.join(packet)
            if track.recording:
                return True
    return False


def _fill(container: InputContainer, picture: Picture | None, sound: Sound | None, seconds: int) -> None:
    """Give both sinks their packets until they have what they need, or there is no more."""
    sinks = {sink.track.stream.index: sink for sink in (picture, sound) if sink}
    for packet in _packets(container, *(sink.track.stream for sink in sinks.values())):
        sink = sinks[packet.stream.index]
        sink.track.join(packet)
        if not sink.done:
            sink.take(packet)
            if all(one.done for one in sinks.values()) or picture and picture.decoded >= MAX_FRAMES:
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
        except Exception:  # the end, or an error of a broken file (MemoryError: an absurd size): keep what there is
            return
        if packet.has_sidedata("encryption_info"):
            raise Rejected("encrypted", f"the {packet.stream.type} track")
        if packet.size:
            yield packet


def _check_decoded(picture: Picture | None, sound: Sound | None, seconds: int) -> None:
    if picture and not picture.decoded:
        raise Rejected("no frame decoded", picture.track.error)
    if sound and not sound.decoded:
        raise Rejected("no sound decoded", sound.track.error)
    if sound and not sound.inside:
        _check_reach(picture, sound, seconds, picture is not None and picture.done)


def _shows(picture: Picture) -> bool:
    """Whether there is anything to see, in a frame or between frames."""
    lowest, highest = (extreme([extreme(frame, axis=(0, 1)) for frame in picture.frames], axis=0)
                       for extreme in (np.min, np.max))
    return bool((highest - lowest > UNIFORM).any())


def _check_reach(picture: Picture | None, sound: Sound | None, seconds: int, whole: bool) -> None:
    """Raise Rejected where what there is does not reach MIN_COVERAGE of so many seconds; a `whole` picture does."""
    if not picture and not sound:
        raise Rejected("nothing to see or hear")
    ends = [sink.end for sink in (picture, sound) if sink and (sink is sound or not whole)]
    if min(ends, default=math.inf) < MIN_COVERAGE * seconds:
        reach = ", ".join(f"{name} to {max(sink.end, 0):.2f} s"
                          for name, sink in (("picture", picture), ("sound", sound)) if sink)
        raise Rejected("too short", f"{reach} of {seconds or (picture or sound).seconds} s")
