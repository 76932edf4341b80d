"""Clips of one's own: folders named like the classes, with or without folders of the splits above, or a table."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maavt.clips import SPLITS, Clip, Labels
from maavt.errors import UserError
from maavt.fetch import PERMANENT, Failed
from maavt.fetch.http import Http
from maavt.params import Params
from maavt.progress import progress
from maavt.sources.archives import copy
from maavt.sources.lists import WHOLE, choose_split, number, safe_key
from maavt.sources.store import Store
from maavt.work import project_root

SHORTEST = 0.1  # seconds
SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
            ".webm", ".wmv"}


@dataclass(frozen=True)
class Own:
    """A clip and the user's file that it is made from."""

    clip: Clip
    file: Path


def labels(params: Params) -> Labels:
    """The classes in the order of their names; background where the table has start and end."""
    found = own(params)
    return Labels(classes=tuple(sorted({item.clip.label for item in found})),
                  background=any(item.clip.end != WHOLE for item in found))


def clips(params: Params, annotations: Path | None = None) -> list[Clip]:
    """One Clip per file; there are no published lists."""
    return [item.clip for item in own(params)]


def fetch(params: Params, store: Store, http: Http) -> str:
    """Copy the user's files; the reason of those that are not there."""
    for item in progress(own(params), label="copying clips", unit="clip"):
        try:
            copy(item.file, store.place(item.clip.path), store)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            store.note(item.clip.path, Failed(PERMANENT, "no such file"))
    store.refresh()
    return "permanent: no such file"


def own(params: Params) -> list[Own]:
    """The clips with their files, in the order of the table or of the names.

    Raises UserError with every mistake in the table.
    """
    settings = params.folder
    root = project_root() / Path(settings.root).expanduser()
    if not root.is_dir():
        raise UserError(f"folder.root: {root} is no folder; expected the one that holds your clips")
    found = list(_from_table(root, params) if settings.table else _from_folders(root, params))
    if not found:
        raise UserError(f"no clips in {root}; expected <class>/<clip>, <train|val|test>/<class>/<clip>, or a table")
    return found


def _from_folders(root: Path, params: Params) -> Iterator[Own]:
    tops = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    given = bool(tops) and {top.name for top in tops} <= set(SPLITS)
    for folder in sorted(path for top in tops for path in top.iterdir() if path.is_dir()) if given else tops:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file():
                name = file.relative_to(root).as_posix()
                yield _own(name, file, label=folder.name, split=folder.parent.name if given else "", group=name,
                           params=params)


def _from_table(root: Path, params: Params) -> Iterator[Own]:
    table, column = root / params.folder.table, params.folder.group
    mistakes, seen = [], {}
    for where, row in _rows(table, ["path", "label", *([column] if column else [])]):
        try:
            name, split = _filled(row, "path", where), (row.get("split") or "").strip()
            if split and split not in SPLITS:
                raise UserError(f"{where}: the split {split!r}; expected {', '.join(SPLITS)} or nothing")
            if name in seen:
                raise UserError(f"{where}: {name!r} is in {seen[name]} already; expected each clip once")
            times = [number(row[key], f"{where}, {key}") if row.get(key) else None for key in ("start", "end")]
            if times[0] is not None and times[1] is not None and times[0] > times[1]:
                raise UserError(f"{where}: the event ends at {times[1]:g} s, before it starts")
            seen[name] = where.rpartition(", ")[2]
            yield _own(name, root / name, label=_filled(row, "label", where), split=split,
                       group=_filled(row, column, where) if column else name, times=times, params=params)
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        more = f"\n  and {len(mistakes) - 20} more" if len(mistakes) > 20 else ""
        raise UserError(f"{len(mistakes)} mistakes in {table}:\n  " + "\n  ".join(mistakes[:20]) + more)


def _rows(table: Path, columns: list[str]) -> Iterator[tuple[str, dict]]:
    """(where, row) for each row of the table, which must have the columns."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if missing := [column for column in columns if column not in (rows.fieldnames or [])]:
                raise UserError(f"{table}: no column {', '.join(missing)} in {rows.fieldnames}; expected path and "
                                "label, and as you like split, start, end and the column that folder.group names")
            for row in rows:
                yield f"{table.name}, line {rows.line_num}", row
    except FileNotFoundError:
        raise UserError(f"folder.table: no {table}; expected a CSV in folder.root") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no CSV in UTF-8 ({error}); export it as one") from None


def _filled(row: dict, column: str, where: str) -> str:
    if not (value := (row[column] or "").strip()):
        raise UserError(f"{where}: {column} is empty; expected a value")
    return value


def _own(name: str, file: Path, *, label: str, split: str, group: str, params: Params, times=(None, None)) -> Own:
    key = safe_key(name.removesuffix(file.suffix), identity=name)
    split = split or choose_split(group, val=params.folder.val_share, test=params.folder.test_share)
    start, end = 0.0 if times[0] is None else times[0], WHOLE if times[1] is None else times[1]
    suffix = file.suffix.lower() if file.suffix.lower() in SUFFIXES else ""
    return Own(Clip(key=key, path=f"clips/{key}{suffix}", label=label, split=split, start=start, end=end,
                    source=group), file)
