"""Recordings of any length -> windows: pairs of a frame and a spectrogram, as those that a model was trained on.

The one place that says where they lie. A recording is read in parts, each by seeking to it, in worker processes: memory
grows neither with its length nor with the number of files.

W windows, S image size, T frames and F bins of a spectrogram.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from maavt.errors import UserError
from maavt.fetch.tree import walk
from maavt.media.decode import sound_track
from maavt.media.rejected import Rejected
from maavt.media.sample import frame_second, read_clip
from maavt.media.spectrogram import nothing_heard
from maavt.params import Spectrogram
from maavt.sources.look import Look, header_length, look
from maavt.workers import fan_out

PART = 60  # seconds of a recording that are read at once, about
AHEAD = 3  # parts of each worker that are being read, or wait behind one that takes long
LOOK_LIMIT, READ_LIMIT = 60.0, 300.0  # seconds for one file, and for one part
MEMORY_LIMIT = 2**30  # bytes for one part


@dataclass(frozen=True)
class File:
    """A file that was asked for, by its own name or as one of a folder."""

    path: str
    named: bool


@dataclass(frozen=True)
class Part:
    """What was read of one file at once, `length` of its `total` seconds from `begin` on. `last`: there are no more of
    the file. `failed` says why it has no windows.

    `total` is 0 where nobody knows: then only the first part is read, and a second one, of no length, fails if there is
    more."""

    path: str
    begin: float
    length: float
    total: float
    last: bool
    absent: str = ""  # sound or picture, of which zeros are here
    sound_track: int = 0  # as Media.sound_track
    times: list[tuple[float, float]] = field(default_factory=list)  # from and to, seconds of the recording
    frames: np.ndarray | None = None  # (W, S, S, 3) uint8
    spectrograms: np.ndarray | None = None  # (W, T, F) float16, not normalised
    failed: Rejected | None = None

    def windows(self) -> list[tuple[str, float, np.ndarray, np.ndarray, str]]:
        """(path, second, frame, spectrogram, what is absent) of each window."""
        return [(self.path, begin, frame, sound, self.absent) for (begin, _), frame, sound in
                zip(self.times, self.frames, self.spectrograms, strict=True)] if self.times else []

    def without_windows(self) -> "Part":
        """The part without what a model reads."""
        return replace(self, frames=None, spectrograms=None)


def files_of(names: Iterable[str | os.PathLike]) -> list[File]:
    """The files of these names, and those below the names that are folders, but for what is hidden or no file.

    Raises UserError for a folder without any.
    """
    found = []
    for name in map(os.fspath, names):
        if not os.path.isdir(name):
            found.append(File(name, named=True))
            continue
        inside = sorted(entry.name for entry in walk(Path(name), hidden=False) if not entry.reason)
        if not inside:
            raise UserError(f"{name}: no files in this folder; expected videos with sound")
        found += [File(os.path.join(name, entry), named=False) for entry in inside]
    return found


def parts_of(files: Sequence[File], config: dict, *, workers: int) -> Iterator[Part]:
    """The parts of these files in order, by the config.json of a model; with `workers` 0 they are read in this process.

    Files of a folder that are no videos are left out, unless their names say that they should be some.
    """
    read = _reader(config)
    recipe, glance = read.keywords["recipe"], partial(look, keep=read.keywords["keep"])
    if not workers:
        looks = ((file, glance(file.path)) for file in files)
        yield from (read(part) for part in _plan(looks, recipe))
        return
    looks = fan_out(glance, (file.path for file in files), workers=1, time_limit=LOOK_LIMIT, tolerant=True)
    plan = _plan(((file, _or_header(file.path, seen)) for file, (_, seen) in zip(files, looks, strict=True)), recipe)
    for part, result in fan_out(read, plan, workers=workers, in_flight=AHEAD, time_limit=READ_LIMIT,
                                memory_limit=MEMORY_LIMIT, tolerant=True, label=lambda part: part.path):
        yield replace(part, failed=result) if isinstance(result, Rejected) else result


def _or_header(path: str, seen: Look | Rejected) -> Look | Rejected:
    """The look at a file; where it has crashed or took too long, what the header says."""
    if not isinstance(seen, Rejected):
        return seen
    (_, length), = fan_out(header_length, [path], workers=1, time_limit=LOOK_LIMIT, tolerant=True)
    return Look(seconds=length) if isinstance(length, float) and length > 0 else seen


def read_windows(path: str, times: Iterable[tuple[float, float]], config: dict) -> Iterator[Part]:
    """Windows of a file that parts_of() named, each again as a part of its own, read in this process."""
    read = _reader(config)
    return (read(Part(path, begin, to - begin, to, last=True)) for begin, to in times)


def _reader(config: dict) -> partial:
    """What reads a part for the model of a config.json."""
    crop = config["image_size"] if config["augment"] == "crop" else config["frame_size"]
    return partial(_read, recipe=of_any_length(Spectrogram(**config["spectrogram"])), frame_size=config["frame_size"],
                   crop=crop, keep=config.get("missing") == "keep")


def of_any_length(recipe: Spectrogram) -> Spectrogram:
    """The recipe by which a part is read: one window after the other, whatever a clip has in training; the last one
    ends where the recording ends. A recording shorter than a window is repeated, and is one."""
    part = max(PART // recipe.seconds, 1) * recipe.seconds
    return replace(recipe, clip_seconds=part + recipe.seconds, pairs="covered", offset=0, pad="tile")


def _plan(looks: Iterable[tuple[File, Look | Rejected]], recipe: Spectrogram) -> Iterator[Part]:
    """The parts of files at which somebody has looked, still empty; no part is shorter than a window. Raises UserError
    where no file of folders is a recording."""
    from maavt.sources.folder import SUFFIXES

    step = recipe.clip_seconds - recipe.seconds
    left_out: list[str] = []
    planned = False
    for file, seen in looks:
        crashed = isinstance(seen, Rejected)  # or took too long: it may be a video
        suffix = PurePath(file.path).suffix.lower()
        if not crashed and seen.reason and not file.named and suffix not in SUFFIXES:
            left_out.append(os.path.dirname(file.path))
            continue
        planned = True
        total = 0.0 if crashed else seen.seconds
        unknown = not total and (crashed or not seen.reason)
        begins = [number * step for number in range(max(int((total - recipe.seconds) // step) + 1, 1))]
        for begin, end in zip(begins, [*begins[1:], total or recipe.clip_seconds], strict=True):
            yield Part(file.path, float(begin), end - begin, total, last=begin == begins[-1] and not unknown)
        if unknown:
            yield Part(file.path, float(recipe.clip_seconds), 0.0, 0.0, last=True)
    if left_out and not planned:
        raise UserError(f"no recordings among the {len(left_out)} files of {', '.join(sorted(set(left_out))[:5])}; "
                        "expected videos with sound")


def _read(part: Part, recipe: Spectrogram, frame_size: int, crop: int, keep: bool) -> Part:
    """A part with its windows, or with the reason why it has none."""
    try:
        found, sound, begins = read_clip(Path(part.path), recipe, frame_size=frame_size, begin=part.begin,
                                         length=part.length or recipe.seconds, keep=keep)
    except Rejected as rejected:
        return replace(part, failed=rejected if part.length else None)
    if not part.length:
        return replace(part, failed=Rejected("unknown length"))
    absent = "sound" if sound is None else "" if found else "picture"
    if absent == "sound":
        sound = nothing_heard(len(begins), recipe)
    nothing = np.zeros((frame_size, frame_size, 3), np.uint8)
    edge = (frame_size - crop) // 2
    middle = slice(edge, edge + crop)
    end = part.total or float("inf")
    return replace(
        part, spectrograms=sound, absent=absent, sound_track=sound_track(part.path) if absent != "sound" else 0,
        frames=np.stack([found.get(frame_second(begin, recipe), nothing)[middle, middle] for begin in begins]),
        times=[(round(part.begin + begin, 3), round(min(part.begin + begin + recipe.seconds, end), 3))
               for begin in begins],
    )
