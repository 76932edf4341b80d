"""A table of one's own clips: its rows, with every mistake in it told at once."""

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os.path import normpath
from pathlib import Path

from maavt.clips import SEVERAL
from maavt.errors import UserError
from maavt.fetch.tree import on_disk, shown
from maavt.params import Folder
from maavt.sources.lists import SPLIT_NAMES, number
from maavt.work import read_table as read_spreadsheet

SLACK = 0.5  # seconds by which a time may lie beyond the end: a label goes by the middle of its second
OPTIONAL = ("split", "start", "end", "from", "to")
COLUMNS = ("path", "label", *OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row; times are seconds of the recording, None where nothing is said."""

    where: str
    path: str
    label: str
    split: str
    group: str
    start: float | None
    end: float | None
    begin: float | None
    to: float | None

    @property
    def clip(self) -> tuple:
        """Rows with the same one are events of the same clip."""
        return self.path, self.begin, self.to


def read_table(root: Path, settings: Folder) -> list[Row]:
    """The rows of the table. Raises UserError with every mistake."""
    table, mistakes, rows = root / settings.table, [], []
    if not Path(normpath(table)).is_relative_to(normpath(root)):
        raise UserError(f"folder.table: {table} is not in folder.root, where changes of it would be noticed; expected "
                        "a CSV in there")
    first: dict[tuple, Row] = {}
    events: dict[tuple, list[Row]] = {}
    groups: dict[str, str] = {}  # the first of several ways to write a group's name in Unicode
    for where, fields in _rows(table, settings):
        try:
            row = _row(where, fields, root, settings)
            if settings.group:
                row = replace(row, group=groups.setdefault(unicodedata.normalize("NFC", row.group), row.group))
            rows.append(row)
            _check_beside(row, first.setdefault(row.clip, row), events.setdefault(row.clip, []))
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        more = f"\n  and {len(mistakes) - 20} more" if len(mistakes) > 20 else ""
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise UserError(f"{count} in {table}:\n  " + "\n  ".join(mistakes[:20]) + more)
    if not rows:
        raise UserError(f"{table} has a header and no row; expected one for every clip")
    return rows


def _row(where: str, fields: dict, root: Path, settings: Folder) -> Row:
    if None in fields:
        raise UserError(f"{where}: more fields than the header has columns, from {fields[None][0]!r} on; expected "
                        "quotes around what holds the character that separates them")
    path, label = (_filled(fields, column, where) for column in ("path", "label"))
    if "\0" in path:
        raise UserError(f"{where}: the path {path!r} holds a zero byte, which no file name can")
    path = fields["path"] if (root / fields["path"]).is_file() else on_disk(root, path)
    whole = normpath(root / path)  # else a file spelt in two ways would be two clips
    path = os.path.relpath(whole, root) if Path(whole).is_relative_to(normpath(root)) else normpath(path)
    label = unicodedata.normalize("NFC", label)
    if len(label.splitlines()) > 1:
        raise UserError(f"{where}: the label {label[:40]!r} goes on over lines; expected a closing quote before")
    if shown(label) != label:
        raise UserError(f"{where}: the label {label[:40]!r} holds a control character; remove it")
    if SEVERAL in label:
        label = SEVERAL.join(sorted({part.strip() for part in label.split(SEVERAL)} - {""}))
        if not label:
            raise UserError(f"{where}: the labels {fields['label']!r}; expected a name between every two {SEVERAL!r}")
    split = (fields.get("split") or "").strip()
    if split and split.lower() not in SPLIT_NAMES:
        raise UserError(f"{where}: the split {split!r}; expected {', '.join(SPLIT_NAMES)} or nothing")
    times = {key: number(fields[key], f"{where}, {key}") if (fields.get(key) or "").strip() else None
             for key in ("start", "end", "from", "to")}
    row = Row(where=where, path=path, label=label, split=SPLIT_NAMES.get(split.lower(), ""),
              group=_filled(fields, settings.group, where) if settings.group else path,
              start=times["start"], end=times["end"], begin=times["from"], to=times["to"])
    if row.start is not None and row.end is not None and row.start >= row.end:
        raise UserError(f"{where}: the event goes from {row.start:g} to {row.end:g} s; expected a later end")
    if settings.span == "table":
        begin = row.begin or 0.0
        if row.to is not None and row.to <= begin:
            raise UserError(f"{where}: the clip goes from {begin:g} to {row.to:g} s; expected a later end")
        last = row.to or 1e7
        start, end = (begin if row.start is None else row.start), (last if row.end is None else row.end)
        for name, time, inside in (("starts", start, begin - SLACK <= start < last),
                                   ("ends", end, begin < end <= last + SLACK)):
            if not inside:
                to = "its end" if row.to is None else f"{row.to:g} s"
                raise UserError(f"{where}: the event {name} at {time:g} s, outside the clip from {begin:g} s to {to}; "
                                "expected start and end in seconds of the recording, as from and to are")
    return row


def _check_beside(row: Row, first: Row, events: list[Row]) -> None:
    """Raise UserError where a row contradicts another one of the same clip."""
    line = first.where.rpartition(", ")[2]
    if row is not first and (row.start is row.end is None or first.start is first.end is None):
        raise UserError(f"{row.where}: {row.path!r} is in {line} already; expected each clip once, or each of its "
                        "events with start and end")
    for name in ("split", "group"):
        if getattr(row, name) != getattr(first, name):
            raise UserError(f"{row.where}: {row.path!r} has the {name} {getattr(row, name)!r}, but "
                            f"{getattr(first, name)!r} in {line}; expected the same")
    for other in events:
        if (other.start, other.end, other.label) == (row.start, row.end, row.label):
            raise UserError(f"{row.where}: the same as {other.where.rpartition(', ')[2]}; expected each event once")
        begin = max(row.start or 0, other.start or 0)
        end = min(1e7 if one.end is None else one.end for one in (row, other))
        if begin < end and row.label != other.label:
            raise UserError(f"{row.where}: {row.label!r} from {begin:g} s on, when {other.label!r} of "
                            f"{other.where.rpartition(', ')[2]} goes on; expected one label at a time")
    events.append(row)


def _rows(table: Path, settings: Folder) -> Iterator[tuple[str, dict]]:
    """(where, row) for each row of the table, which must have the columns."""
    needed = ["path", "label", *([settings.group] if settings.group else [])]
    try:
        names, rows = read_spreadsheet(table, _known(settings))
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{table}: the column {twice[0]!r} is there twice; expected each once")
        wrong = [f"{name!r} looks like {near!r}" for name in names if (near := _near(name, names, needed))]
        if missing := [column for column in needed if column not in names]:
            raise UserError(f"{table}: no column {', '.join(missing)} in {names}"
                            + (f" ({'; '.join(wrong)})" if wrong else "") + "; expected path and label, and as you "
                            f"like {', '.join(OPTIONAL)} and the column that folder.group names")
        if wrong:
            raise UserError(f"{table}: the column {'; '.join(wrong)}; expected that name, or one that is less like "
                            "it if the column means something else")
        if settings.span != "table" and (cut := {"from", "to"} & set(names)):
            raise UserError(f"{table}: the column {sorted(cut)[0]} says where to cut clips out of recordings; "
                            f"expected folder.span: table with it, not {settings.span}")
        for line, row in rows:
            yield f"{table.name}, line {line}", row
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"folder.table: no {table}; expected a CSV in folder.root") from None
    except csv.Error as error:
        raise UserError(f"{table} is no CSV ({error}); export it as one, in UTF-8") from None


def unread(table: Path, settings: Folder) -> list[str]:
    """Columns that nothing reads."""
    names, _ = read_spreadsheet(table, _known(settings))
    return [name for name in names if name not in _known(settings)]


def _known(settings: Folder) -> list[str]:
    return [*COLUMNS, *([settings.group] if settings.group else [])]


def _near(name: str, names: list[str], needed: list[str]) -> str:
    """The known column that an unknown one is a slip of the pen away from, where that one is not there; or ""."""
    if name in (*COLUMNS, *needed):
        return ""
    for column in (*COLUMNS, *needed):
        if column not in names and (name.strip().lower() == column.lower()
                                    or len(column) > 2 and _one_slip(name.strip().lower(), column.lower())):
            return column
    return ""


def _one_slip(one: str, other: str) -> bool:
    """Whether a letter too many, too few or wrong, or two that have changed places, make the one from the other."""
    begin = len(os.path.commonprefix([one, other]))
    one, other = one[begin:], other[begin:]
    end = len(os.path.commonprefix([one[::-1], other[::-1]]))
    one, other = one[: len(one) - end], other[: len(other) - end]
    return len(one) <= 1 and len(other) <= 1 or len(one) == 2 and one == other[::-1]


def _filled(row: dict, column: str, where: str) -> str:
    if not (value := (row[column] or "").strip()):
        raise UserError(f"{where}: {column} is empty; expected a value")
    return value
