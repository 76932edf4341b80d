"""The files below a folder of the user's, with links followed, and a short sum of them that shows any change."""

import functools
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = {"__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "thumbs.db",
          "desktop.ini", "system volume information"}  # what systems and network disks leave, in small letters
UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # control characters, separators of lines


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, by its path below the root; `reason` says why it is none to take, "" is one that may be taken.

    A name that is not UTF-8 holds surrogates: shown() makes it readable, and open() takes it as it is.
    """

    name: str
    size: int = 0
    changed: int = 0  # nanoseconds
    reason: str = ""


def shown(name: str) -> str:
    """A file name as people can read and any file can hold it: what is no UTF-8, control characters and separators of
    lines as escapes."""
    return UNREADABLE.sub(lambda found: ascii(found[0])[1:-1], os.fsencode(name).decode("utf-8", "backslashreplace"))


def on_disk(root: Path, name: str) -> str:
    """The name of a file below `root` as the disk has it, where that differs in the composition of letters alone (é as
    one character or as two) or in slashes; `name` as it is where the file is there, is not, or is two."""
    if os.path.lexists(root / name):
        return name
    for slashes in dict.fromkeys((name, name.replace("\\", "/"))):
        found = [root]
        for part in Path(slashes).parts:
            found = [path / other for path in found for other in _spelt(path, part)]
        if len(found) == 1:
            return os.path.relpath(found[0], root) if not os.path.isabs(slashes) else str(found[0])
    return name


def _spelt(folder: Path, part: str) -> list[str]:
    """The names in a folder that are `part` itself, or else those that are composed of the same letters."""
    if os.path.lexists(folder / part):
        return [part]
    try:
        names = _names(folder, os.stat(folder).st_mtime_ns)
    except OSError:
        return []
    return names.get(unicodedata.normalize("NFC", part), [])


@functools.lru_cache(1000)
def _names(folder: Path, changed: int) -> dict[str, list[str]]:
    """The names in a folder by their composed form; `changed` is when the folder did last."""
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return found


def walk(root: Path, *, hidden: bool = True) -> Iterator[Entry]:
    """Every file below `root`; what is hidden or the system's without a look at it, or not at all without `hidden`.

    A link to a folder is followed, unless that is in the tree already or around it.
    """
    seen = {os.path.realpath(root)}
    waiting = [("", "")]
    while waiting:
        below, reason = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            yield Entry(below, reason="an unreadable folder")
            continue
        for entry in entries:
            name, why = below + entry.name, reason
            if entry.name.startswith("."):
                why = why or "hidden"
            elif entry.name.lower() in SYSTEM:
                why = why or "the system's"
            if why and not hidden:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((f"{name}/", why))
            elif why:
                yield Entry(name, reason=why)
            else:
                yield from _look(entry, name, seen, waiting)


def _look(entry: os.DirEntry, name: str, seen: set[str], waiting: list) -> Iterator[Entry]:
    try:
        facts = entry.stat()
    except OSError:
        yield Entry(name, reason="a broken link" if entry.is_symlink() else "unreadable")
        return
    if stat.S_ISDIR(facts.st_mode):
        real = os.path.realpath(entry.path)
        if any(_around(real, other) or _around(other, real) for other in seen):
            yield Entry(name, reason="a link to a folder that is looked at anyway, or around it")
        else:
            seen.add(real)
            waiting.append((f"{name}/", ""))
    elif stat.S_ISREG(facts.st_mode):
        yield Entry(name, facts.st_size, facts.st_mtime_ns)
    else:
        yield Entry(name, reason="no regular file")


def _around(folder: str, other: str) -> bool:
    return folder == other or other.startswith(folder.rstrip("/") + "/")


def fingerprint(root: Path, named: Iterable[str] = ()) -> dict:
    """The number of files in or at `root`, and of those elsewhere that are `named`, and a hash of their names, sizes
    and times: seconds for 100,000 of them."""
    entries = {entry.name: entry for entry in walk(root, hidden=False)} if root.is_dir() else {}
    for name, path in [(root.name, root), *((name, root / name) for name in named if name not in entries)]:
        if path.is_file():
            facts = path.stat()
            entries[name] = Entry(name, facts.st_size, facts.st_mtime_ns)
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        digest.update(f"{name}\0{entry.size}\0{entry.changed}\0{entry.reason}\n".encode(errors="surrogateescape"))
    return {"files": len(entries), "sha256": digest.hexdigest()}
