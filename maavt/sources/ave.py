"""AVE (Tian et al., ECCV 2018): 4,143 clips of 10 s, 28 classes, and background outside each clip's event."""

import re
from collections.abc import Iterator
from pathlib import Path

from maavt.clips import SPLITS, Clip, Labels
from maavt.errors import UserError
from maavt.fetch import SESSION, Archive, Failed
from maavt.fetch.http import Http
from maavt.params import Params
from maavt.sources.archives import fetch_archives, take_local
from maavt.sources.lists import (
    annotations_folder,
    check_label,
    number,
    read_classes,
    read_packaged,
    read_rows,
    video_id,
)
from maavt.sources.store import Store

SECONDS = 10
SHORTEST = 5.0  # seconds


def labels(params: Params) -> Labels:
    """The 28 classes in the order of the annotations."""
    return Labels(classes=read_classes("ave_classes.txt"), background=True)


def clips(params: Params, annotations: Path | None = None) -> list[Clip]:
    """One Clip per row, in the official splits: from `annotations` as published, or as packaged.

    45 videos have two rows or more, and some names begin with a dash: the row number leads the key.
    """
    rows = _published(annotations_folder(annotations, "ave")) if annotations else read_packaged("ave.csv")
    return [
        Clip(key=f"{place:04d}-{row['id']}", path=f"AVE/{row['id']}.mp4", label=row["label"], split=row["split"],
             start=float(row["start"]), end=float(row["end"]), source=row["id"])
        for place, row in enumerate(rows)
    ]


def fetch(params: Params, store: Store, http: Http) -> str:
    """Get the clips from the zip on Google Drive, or from a zip or folder of one's own; the reason of the others."""
    if params.ave.local:
        take_local(params.ave.local, store, "ave.local", _spellings)
    elif store.missing():
        from maavt.fetch import drive  # gdown takes its time

        archive = Archive(name="AVE.zip", url=params.ave.url)
        try:
            outcome = fetch_archives([archive], store, http, lambda archive, path: drive.fetch(
                http, archive.url, path), _spellings).get(archive.name)
        except Failed as failed:
            if failed.kind == SESSION and "ave.local" not in failed.reason:
                raise Failed(SESSION, f"{failed.reason}; or fetch the zip by other means and set ave.local"
                             ) from None
            raise
        if isinstance(outcome, Failed):
            raise UserError(f"{params.ave.url}: {outcome.reason}; fetch the zip by other means and set ave.local")
        if outcome and (outcome.broken or outcome.skipped["damaged"]):
            return "transient: not in the damaged archive"
    return "permanent: not in the archive"


def _spellings(stem: str) -> Iterator[str]:
    """What the list calls a file that names begin and end in AudioSet, too: ID_30_40, ID_30000_40000, ID_30."""
    for _ in range(2):
        stem, times = re.fullmatch(r"(.*?)([_. -]\d+(?:\.\d+)?)?", stem, re.DOTALL).groups()
        if times:
            yield stem


def _published(folder: Path) -> list[dict]:
    """The rows of Annotations.txt with their splits, from *Set.txt or from *_order.h5."""
    rows, classes = [], read_classes("ave_classes.txt")
    for where, row in read_rows(folder / "Annotations.txt", 5, delimiter="&", quotechar=None, quoting=3):
        if row[0] == "Category":  # some copies have a header
            continue
        start, end = number(row[3], where), number(row[4], where)
        if not start <= end <= SECONDS:
            raise UserError(f"{where}: an event from {row[3]} to {row[4]}; expected times within {SECONDS} s")
        rows.append({"id": video_id(row[1], where), "label": check_label(row[0], classes, where), "start": start,
                     "end": end})
    if (folder / "train_order.h5").exists():
        splits = _orders(folder)
    else:
        rows = [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)]
        splits = _sets(folder, rows)
    if sorted(splits) != list(range(len(rows))):
        raise UserError(f"{folder}: the splits hold {len(splits)} of {len(rows)} rows of Annotations.txt; expected "
                        "each row once. Do the files belong together?")
    return [row | {"split": splits[place]} for place, row in enumerate(rows)]


def _orders(folder: Path) -> dict[int, str]:
    """Split of each row number, from the files train_order.h5 and so on."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{folder}: the splits are HDF5 files here; pip install h5py to read them, or give the "
                        "folder that holds trainSet.txt, valSet.txt and testSet.txt") from None
    splits = {}
    for split in SPLITS:
        try:
            with h5py.File(folder / f"{split}_order.h5") as file:
                for place in map(int, file["order"][:]):
                    if splits.setdefault(place, split) != split:
                        raise UserError(f"{folder / f'{split}_order.h5'}: row {place} of Annotations.txt is in "
                                        f"{splits[place]}_order.h5, too; expected it in one split")
        except (OSError, KeyError) as error:
            raise UserError(f"{folder / f'{split}_order.h5'} is no order of rows ({error})") from None
    return splits


def _sets(folder: Path, rows: list[dict]) -> dict[int, str]:
    """Split of each row number, from the files trainSet.txt and so on."""
    places = {tuple(row.values()): place for place, row in enumerate(rows)}
    splits = {}
    for split in SPLITS:
        for where, row in read_rows(folder / f"{split}Set.txt", 5, delimiter="&", quotechar=None, quoting=3):
            if row[0] == "Category":
                continue
            facts = (row[1], row[0], number(row[3], where), number(row[4], where))
            if facts not in places:
                raise UserError(f"{where}: there is no such row in Annotations.txt; do the files belong together?")
            if splits.setdefault(places[facts], split) != split:
                raise UserError(f"{where}: the row is in {splits[places[facts]]}Set.txt, too; expected it in one split")
    return splits
