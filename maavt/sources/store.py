"""The clips of a data set that are here already, and what became of the others.

The folder of a store has raw/ with the clips and nothing else, parts/ with what is unfinished, and journal.csv with
one line for every file that was looked at: the last line of a file counts. A clip that is in raw/ is whole.
"""

import csv
import math
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import av

from maavt.clips import Clip
from maavt.fetch import CONTENT, FINAL, Failed
from maavt.fetch.budget import Budget
from maavt.media.decode import MAX_PACKETS, Rejected
from maavt.progress import progress
from maavt.work import UnixLines
from maavt.workers import fan_out

OK = "ok"
TIME_LIMIT = 60.0  # seconds to look into one file


class Store:
    """What of `clips` is in `folder`. Files whose last failure is final are not wanted, but for kinds in `retry`."""

    def __init__(self, folder: Path, clips: list[Clip], budget: Budget, *, retry: Collection[str] = ()):
        self.folder, self.raw, self.parts = folder, folder / "raw", folder / "parts"
        for needed in (self.raw, self.parts):
            needed.mkdir(parents=True, exist_ok=True)
        self.clips = clips
        self.budget = budget
        self.present = {path for path, _ in _files(self.raw) if not _unfinished(path)}
        self._states = _read_journal(folder / "journal.csv")
        self._retry = retry
        self._lock = threading.Lock()
        self._journal = open(folder / "journal.csv", "a", newline="", buffering=1)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_) -> None:
        self._journal.close()

    def missing(self) -> list[Clip]:
        """The clips to be fetched, one for each file."""
        wanted = {clip.path: clip for clip in reversed(self.clips) if clip.status == OK and self._wanted(clip.path)}
        return list(reversed(wanted.values()))

    def absent(self) -> list[Clip]:
        """The clips that are not here, one for each file, whatever was said of them: a copy on this disk may have been
        mended since."""
        wanted = {clip.path: clip for clip in reversed(self.clips)
                  if clip.status == OK and clip.path not in self.present}
        return list(reversed(wanted.values()))

    def _wanted(self, path: str) -> bool:
        kind = self._states.get(path, ("", ""))[0]
        return path not in self.present and (kind not in FINAL or kind in self._retry)

    def place(self, path: str) -> Path:
        """Where the file belongs."""
        return self.raw / path

    def note(self, path: str, failure: Failed | None = None) -> None:
        """Keep in mind that a file has come, or why not."""
        with self._lock:
            if failure is None:
                self.present.add(path)
                self._states.pop(path, None)
                return
            self._states[path] = (failure.kind, failure.reason)
            csv.writer(UnixLines(self._journal)).writerow((path, failure.kind, failure.reason))

    def refresh(self) -> None:
        """Look again which files are there, after others have put some."""
        self.present = {path for path, _ in _files(self.raw) if not _unfinished(path)}

    def inspect(self, shortest: float, *, keep: bool = False) -> None:
        """Remove new files that are no clips with picture and sound (with `keep`: with either), or shorter than that
        many seconds."""
        wanted = {clip.path for clip in self.clips}
        new = sorted(path for path in self.present & wanted if self._states.get(path, ("", ""))[0] != OK)
        paths = [(str(self.place(path)), shortest) for path in new]
        if not new:
            return
        found = fan_out(partial(look_into, keep=keep), paths, time_limit=TIME_LIMIT, label=lambda item: item[0],
                        tolerant=True)
        results = zip(new, found, strict=True)
        for path, (_, result) in progress(results, total=len(new), label="looking into clips", unit="clip"):
            if isinstance(result, Rejected) and result.reason == "failed here":
                continue  # a mistake of ours is no verdict on the file, which was long in coming
            if isinstance(result, Rejected):
                self.budget.give(self.place(path).stat().st_size)
                self.place(path).unlink()
                self.present.discard(path)
                self.note(path, Failed(CONTENT, result.reason))
            else:
                self.accept(path)

    def doubt(self, path: str) -> None:
        """Forget what was found in a file: another one takes its place."""
        with self._lock:
            self._states[path] = ("", "")
            csv.writer(UnixLines(self._journal)).writerow((path, "", ""))

    def accept(self, path: str) -> None:
        """Keep in mind that a file was looked into and found good."""
        with self._lock:
            self._states[path] = (OK, "")
            csv.writer(UnixLines(self._journal)).writerow((path, OK, ""))

    def manifest(self, otherwise: str) -> list[Clip]:
        """All clips with their last state; `otherwise` is the reason of those that nothing is known of."""
        return [self._judged(clip, otherwise) for clip in self.clips]

    def _judged(self, clip: Clip, otherwise: str) -> Clip:
        if clip.status != OK or clip.path in self.present:
            return clip
        kind, reason = self._states.get(clip.path, (OK, ""))
        return replace(clip, status="failed", reason=otherwise if kind in (OK, "") else f"{kind}: {reason}")

    def tidy(self) -> None:
        """Remove files from raw/ that belong to no clip."""
        wanted = {clip.path for clip in self.clips if clip.status == OK}
        for path, size in list(_files(self.raw)):
            if path not in wanted:
                self.place(path).unlink()
                self.budget.give(size)


def look_into(item: tuple[str, float], *, keep: bool = False) -> None:
    """Read the headers of the file item[0], which must last item[1] seconds, and have picture and sound, or with `keep`
    either; raises Rejected. Where they say that it is too short, its packets have the last word."""
    path, shortest = item
    if not os.path.getsize(path):
        raise Rejected("empty file")
    try:
        with av.open(f"file:{path}", metadata_errors="ignore",
                     container_options={"protocol_whitelist": "file"}) as container:
            kinds = {stream.type for stream in container.streams}
            seconds = (container.duration or 0) / av.time_base
            if 0 < seconds < shortest:
                seconds = _length(container, shortest)
    except (av.FFmpegError, ValueError) as error:
        raise Rejected("not media", str(error)) from None
    for kind in ("video", "audio"):
        if kind not in kinds and not (keep and kinds & {"video", "audio"}):
            raise Rejected(f"no {kind} stream")
    if 0 < seconds < shortest:
        raise Rejected("too short", f"{seconds:.2f} s of {shortest:g} s")


def _length(container: av.container.InputContainer, enough: float) -> float:
    """How many seconds a file's packets reach, as far as `enough`."""
    first, last = math.inf, -math.inf
    with suppress(av.FFmpegError):  # a file that breaks off
        for packet in islice(container.demux(), MAX_PACKETS):
            if packet.pts is not None and packet.time_base:
                first = min(first, float(packet.pts * packet.time_base))
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if last - first >= enough:
                    break
    return max(last - first, 0.0)


def summary(clips: list[Clip]) -> str:
    """How many clips there are, and of the others how many for each reason, and the classes that miss most."""
    failed = [clip for clip in clips if clip.status != OK]
    lines = [f"{len(clips) - len(failed)} of {len(clips)} clips"]
    lines += [f"{count:8d}  {reason}" for reason, count in Counter(clip.reason for clip in failed).most_common(20)]
    classes = defaultdict(lambda: [0, 0])
    for clip in clips:
        classes[clip.label][0] += clip.status == OK
        classes[clip.label][1] += 1
    worst = sorted((got / all, label, got, all) for label, (got, all) in classes.items() if got < all)
    if worst:
        lines.append(f"incomplete classes: {len(worst)}, most of all")
        lines += [f"{share:8.0%}  {label} ({got} of {all})" for share, label, got, all in worst[:10]]
    return "\n".join(lines)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, size) of every file below a folder, the path relative to it."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{below}{entry.name}/")
                else:
                    yield f"{below}{entry.name}", entry.stat(follow_symlinks=False).st_size


def _unfinished(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def _read_journal(path: Path) -> dict[str, tuple[str, str]]:
    """Path -> (kind, reason); a line that a kill cut off is removed."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    if not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)
    with open(path, newline="") as file:
        return {row[0]: (row[1], row[2]) for row in csv.reader(file) if len(row) == 3}
