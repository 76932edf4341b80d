"""Data sets that come as a few large archives: fetched in parallel, unpacked, removed, and remembered as done."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from maavt.errors import UserError, redacted
from maavt.fetch import Archive, Failed
from maavt.fetch.http import Http
from maavt.progress import progress
from maavt.sources.store import Store
from maavt.sources.unpack import Unpacked, unpack
from maavt.work import atomic, project_root


def fetch_archives(archives: list[Archive], store: Store, http: Http,
                   get: Callable[[Archive, Path], None]) -> dict[str, Failed | Unpacked]:
    """Bring the clips that are missing into the store, with archives that `get` puts where it is told.

    Returns what came of each archive that was not done yet, by name.
    """
    todo = [archive for archive in archives if not _done(store, archive)]
    total = sum(archive.size for archive in todo) if all(archive.size for archive in todo) else None
    place, results = placing(store), {}
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


def take_local(setting: str, store: Store, name: str) -> None:
    """Bring missing clips into the store from a folder of one's own, with clips or archives in it, or an archive."""
    root = project_root() / Path(setting).expanduser()
    if not root.exists():
        raise UserError(f"{name}: there is no {root}; expected a folder or an archive")
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    place = placing(store)
    with progress(label="taking clips", unit="clip") as bar:
        for file in files:
            if root.is_file() or file.name.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
                result = take(file, store, place, bar)
                _warn_if_broken(file, result)
            elif path := place(file.name):
                copy(file, path, store)
                bar.update()
    store.refresh()


def copy(file: Path, path: Path, store: Store) -> None:
    """Copy a clip of one's own, unless it is there already and has not changed since."""
    facts = file.stat()
    if path.exists() and (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns):
        return
    store.budget.take(facts.st_size)
    with atomic(path) as temporary:
        shutil.copyfile(file, temporary)
        os.utime(temporary, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def placing(store: Store) -> Callable[[str], Path | None]:
    """Member name -> where the missing clip of that file name belongs."""
    places = {PurePosixPath(clip.path).name: store.place(clip.path) for clip in store.missing()}
    return lambda name: places.get(PurePosixPath(name).name)


def take(file: Path, store: Store, place: Callable[[str], Path | None], bar) -> Unpacked:
    """Unpack the clips that are missing from an archive that is here."""
    count = [0]

    def one() -> None:
        count[0] += 1
        bar.set_postfix(clips=count[0], of=file.name, refresh=False)

    return unpack(file, place, store.budget, one)


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
