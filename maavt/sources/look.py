"""What a file of the user's is: a clip, or what else, found by opening it; its name says nothing."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import av

from maavt.media.decode import PLAYLISTS
from maavt.media.length import SHORTEST
from maavt.media.rejected import Rejected
from maavt.media.track import Track
from maavt.progress import progress
from maavt.work import default_workers
from maavt.workers import fan_out

TIME_LIMIT = 60.0  # seconds for one file
BELIEVED = 256 << 20  # bytes: of a larger file the header is asked how long it is, of others every packet
STARTS = {b"\xff\xd8\xff": "a picture", b"\x89PNG": "a picture", b"GIF8": "a picture", b"BM": "a picture",
          b"II*\0": "a picture", b"MM\0*": "a picture", b"8BPS": "a picture", b"%PDF": "a document",
          b"PK\3\4": "an archive", b"\x1f\x8b": "an archive", b"Rar!": "an archive", b"7z\xbc\xaf": "an archive",
          b"\xfd7zXZ": "an archive", b"BZh": "an archive", b"\x93NUMPY": "an array", b"\x89HDF": "an array"}


@dataclass(frozen=True, slots=True)
class Look:
    """How long a clip is in seconds (what it has of picture and sound), 0 where that cannot be told, or why a file is
    none."""

    seconds: float = 0.0
    reason: str = ""


def look_at(paths: Iterable[str], *, keep: bool = False) -> dict[str, Look]:
    """A look at each file, in worker processes of this machine: a cluster need not see the user's folder. With `keep`
    picture or sound alone is a clip, too."""
    paths = list(paths)
    found = fan_out(partial(look, keep=keep), paths, workers=default_workers(), time_limit=TIME_LIMIT, tolerant=True)
    found = progress(found, total=len(paths), label="looking at files", unit="file")
    return {path: Look(reason=result.reason) if isinstance(result, Rejected) else result for path, result in found}


def look(path: str, *, keep: bool = False) -> Look:
    """One file, by its first bytes, its header and the times of its packets; nothing is decoded."""
    try:
        if not os.path.isfile(path):  # to open a pipe would wait for somebody to write into it
            return Look(reason="no regular file" if os.path.exists(path) else "no such file")
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return Look(reason="unreadable file")
    if kind := _kind(head):
        return Look(reason=kind)
    try:
        with av.open(f"file:{path}", metadata_errors="ignore",
                     container_options={"protocol_whitelist": "file"}) as container:
            return _of_container(container, keep)
    except Exception:  # whatever FFmpeg or PyAV does with a broken file, it is this file's fault
        return Look(reason="not media")


def header_length(path: str) -> float:
    """How many seconds a file's header says that it has, 0 where it does not: for files at which look() fails."""
    with av.open(f"file:{path}", metadata_errors="ignore",
                 container_options={"protocol_whitelist": "file"}) as container:
        return (container.duration or 0) / av.time_base


def _kind(head: bytes) -> str:
    if not head:
        return "empty file"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a picture"
    for start, kind in STARTS.items():
        if head.startswith(start):
            return kind
    try:
        text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not a letter that the end cuts
            return ""
        text = ""
    return "" if any(ord(letter) < 9 for letter in text) else "text"


def _of_container(container, keep: bool) -> Look:
    if container.format.name in PLAYLISTS:
        return Look(reason="not media")
    if container.format.name.endswith("_pipe") or container.format.name in ("image2", "gif", "apng"):
        return Look(reason="a picture")
    no_picture = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams if stream.type in ("video", "audio")
               and not stream.disposition & no_picture]
    kinds = {stream.type for stream in streams}
    if not kinds:
        return Look(reason="not media")
    for kind in ("video", "audio"):
        if kind not in kinds and not keep:
            return Look(reason=f"no {kind} stream")
    seconds = _seconds(container, streams)
    if 0 < seconds < SHORTEST:
        return Look(reason=f"too short (under {SHORTEST:g} s)")
    return Look(seconds=round(seconds, 3))


def _seconds(container, streams: list) -> float:
    header = (container.duration or 0) / av.time_base
    if header and container.size > BELIEVED:
        return header
    container.flags &= ~av.container.Flags.gen_pts.value  # it reads ahead without bound to make up times
    joints, begin = [0.0], math.inf
    tracks = {stream.index: Track(stream, 0.0, joints) for stream in streams}
    try:
        for packet in container.demux(streams):
            track = tracks[packet.stream.index]
            track.join(packet)
            begin = min(begin, track.own_time(packet, math.inf))
    except Exception:  # the end of a damaged file
        pass
    kinds = {stream.type: [track.reach for track in tracks.values() if track.stream.type == stream.type]
             for stream in streams}
    end = min(max(reaches) for reaches in kinds.values())
    if math.isinf(end):
        return header
    return max(end - (begin if container.start_time is None else container.start_time / av.time_base), 0.0)
