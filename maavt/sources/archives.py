"""Data sets that come as a few large archives: fetched in parallel, unpacked, removed, and remembered as done."""

import filecmp
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from maavt.clips import Clip
from maavt.errors import UserError, redacted
from maavt.fetch import Archive, Failed
from maavt.fetch.http import Http
from maavt.fetch.tree import shown, walk
from maavt.progress import progress
from maavt.sources.lists import SUFFIXES
from maavt.sources.store import Store
from maavt.sources.unpack import Unpacked, unpack
from maavt.work import atomic, project_root

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
Spellings = Callable[[str], Iterable[str]]  # name without its ending -> what the list may call it instead


def fetch_archives(archives: list[Archive], store: Store, http: Http, get: Callable[[Archive, Path], None],
                   spellings: Spellings = lambda stem: ()) -> dict[str, Failed | Unpacked]:
    """Bring the clips that are missing into the store, with archives that `get` puts where it is told.

    Returns what came of each archive that was not done yet, by name.
    """
    todo = [archive for archive in archives if not _done(store, archive)]
    total = sum(archive.size for archive in todo) if all(archive.size for archive in todo) else None
    place, results = Places(store, store.missing(), spellings), {}
    with progress(total=total, label="archives", unit="B", scale=True) as bar:

        def count(received: int) -> None:
            if total is None:
                bar.total = sum(http.sizes.values()) or None
            bar.update(received)

        http.on_bytes = count

        def work(archive: Archive) -> Unpacked:
            file = _file(store, archive)
            if not file.exists():
                get(archive, file)
            return take(file, store, place, bar)

        for archive, result in http.each(work, todo):
            results[archive.name] = result
            if isinstance(result, Failed):
                print(f"warning: {archive.name}: {result}", file=sys.stderr)
                continue
            _warn_if_broken(archive.name, result)
            if archive.sha256 or not (result.broken or result.skipped["damaged"]):  # else another try may bring all
                note = {"of": _identity(archive), "kept": result.kept, "skipped": result.skipped,
                        "broken": result.broken}
                with atomic(_mark(store, archive)) as path:
                    path.write_text(json.dumps(note, indent=1) + "\n")
            store.budget.give(_file(store, archive).stat().st_size)
            _file(store, archive).unlink()
    store.refresh()
    return results


def take_local(setting: str, store: Store, name: str, spellings: Spellings = lambda stem: ()) -> None:
    """Bring clips into the store from a folder of one's own, with clips or archives in it, or an archive.

    What failed before, or has changed, is looked at again. Videos that match no clip are told.
    """
    root = project_root() / Path(setting).expanduser()
    if not root.exists():
        raise UserError(f"{name}: there is no {root}; expected a folder or an archive")
    names = [] if root.is_file() else sorted(entry.name for entry in walk(root, hidden=False) if not entry.reason)
    places = Places(store, store.absent(), spellings)
    files: dict[str, list[str]] = defaultdict(list)
    for file in names:
        if path := places.find(file):
            files[path].append(file)
    with progress(label="taking clips", unit="clip") as bar:
        here = {clip.path for clip in store.clips if clip.status == "ok"}
        for path, file in choose(files, places.rank, root, name).items():
            if path in here:
                copy(root / file, store.place(path), store, path)
                bar.update()
        store.refresh()
        places.wanted = {clip.path for clip in store.absent()}
        for file in [root] if root.is_file() else [root / each for each in names if each.lower().endswith(ARCHIVES)]:
            result = take(file, store, places, bar, places.rank)
            _warn_if_broken(file, result)
            for path, (one, other) in result.twice.items():
                store.budget.give(path.stat().st_size)
                path.unlink()  # else the next run would not tell
                raise UserError(f"{name}: {file} has {one} and {other}, which differ and may both be "
                                f"{path.relative_to(store.raw)}; expected one of them. Remove the other")
    store.refresh()
    if places.unknown:
        print(f"warning: {name}: {places.unknown} of {places.videos} videos match no clip of the list, such as "
              f"{shown(places.example)}; expected names such as {store.clips[0].path}", file=sys.stderr)
    elif not places.videos:
        print(f"warning: {name}: there is no video in {root}, nor in an archive there ({', '.join(ARCHIVES)})",
              file=sys.stderr)


def choose(files: dict[str, list[str]], rank: Callable[[str], int], root: Path, setting: str) -> dict[str, str]:
    """Of the files below `root` that may be a clip, that in the documented place, for each clip.

    Raises UserError where that is more than one, and they differ.
    """
    chosen, mistakes = {}, []
    for path, names in files.items():
        lowest = min(map(rank, names))
        first, *others = [name for name in names if rank(name) == lowest]
        chosen[path] = first
        if other := next((name for name in others if not filecmp.cmp(root / first, root / name, shallow=False)), ""):
            mistakes.append(f"{shown(first)} and {shown(other)} differ and may both be {path}")
    if mistakes:
        raise UserError("\n  ".join([f"{setting}: {len(mistakes)} clips are in {root} more than once; expected one "
                                     "file of each. Remove the other:", *mistakes[:20]]))
    return chosen


def copy(file: Path, path: Path, store: Store, clip: str = "") -> None:
    """Copy a clip of one's own, unless it is there already and has not changed since. With `clip`, its path in the
    list, it is to be looked into anew."""
    facts = file.stat()
    if path.exists() and (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns):
        return
    if clip:
        store.doubt(clip)
    store.budget.take(facts.st_size)
    with atomic(path) as temporary:
        shutil.copyfile(file, temporary)
        os.utime(temporary, ns=(facts.st_atime_ns, facts.st_mtime_ns))


class Places:
    """Which clip of the list a file is, by its name, and where it belongs if the clip is wanted.

    Folders, capitals and the kind of video (.mkv, .webm) may differ from the list, and what `spellings` knows.
    """

    def __init__(self, store: Store, wanted: list[Clip], spellings: Spellings):
        self.store, self.spellings = store, spellings
        self.wanted = {clip.path for clip in wanted}
        self.videos, self.unknown, self.example = 0, 0, ""
        self.exact = {PurePosixPath(clip.path).stem: clip.path for clip in store.clips}
        self.folded: dict[str, set[str]] = defaultdict(set)
        for stem, path in self.exact.items():
            self.folded[stem.casefold()].add(path)

    def find(self, name: str) -> str | None:
        """The path in the list of the clip that a file is, None for what is no video or no clip; each is counted."""
        file = PurePosixPath(name.replace("\\", "/"))
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            return None
        found = self._match(file.stem)
        self.videos += 1
        self.unknown += not found
        self.example = self.example or ("" if found else name)
        return found

    def _match(self, stem: str) -> str | None:
        stems = [stem, *self.spellings(stem)]
        if found := next((self.exact[each] for each in stems if each in self.exact), None):
            return found
        alike = set().union(*(self.folded.get(each.casefold(), ()) for each in stems))
        return alike.pop() if len(alike) == 1 else None

    def __call__(self, name: str) -> Path | None:
        path = self.find(name)
        return self.store.place(path) if path in self.wanted else None

    def rank(self, name: str) -> int:
        """How far a file is from where the data set's authors put it: 0 is there."""
        name = name.replace("\\", "/")
        return rank(name, self._match(PurePosixPath(name).stem) or "")


def rank(name: str, documented: str) -> int:
    """How far a file is from its documented place: 0 there, 1 with folders above, 2 with that name alone, 3 with
    another."""
    return (0 if name == documented else 1 if name.endswith(f"/{documented}") else
            2 if PurePosixPath(name).name == PurePosixPath(documented).name else 3)


def take(file: Path, store: Store, place: Places, bar, rank: Callable[[str], int] | None = None) -> Unpacked:
    """Unpack the clips that are missing from an archive that is here."""
    count = [0]

    def one() -> None:
        count[0] += 1
        bar.set_postfix(clips=count[0], of=file.name, refresh=False)

    return unpack(file, place, store.budget, one, rank)


def _warn_if_broken(name: str | Path, result: Unpacked) -> None:
    if result.broken:
        print(f"warning: {name} is damaged ({result.broken}); the {result.kept} clips before that are kept",
              file=sys.stderr)


def _file(store: Store, archive: Archive) -> Path:
    return store.parts / archive.name.replace("/", "_")  # the name is the server's


def _mark(store: Store, archive: Archive) -> Path:
    return store.folder / "archives" / f"{archive.name.replace('/', '_')}.json"


def _identity(archive: Archive) -> str:
    """What tells this archive from others: its hash, or its URL without secrets, since the note is kept."""
    return archive.sha256 or redacted(archive.url)


def _done(store: Store, archive: Archive) -> bool:
    try:
        return json.loads(_mark(store, archive).read_text())["of"] == _identity(archive)
    except (FileNotFoundError, ValueError, KeyError):
        return False
