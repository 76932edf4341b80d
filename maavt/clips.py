"""A clip and the manifest clips.csv: which clips a data set has, what they show, and what became of each."""

import csv
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from maavt.errors import UserError
from maavt.work import atomic, write_table

SPLITS = ("train", "val", "test")
BACKGROUND = "background"
ABSENT = ("", "sound", "picture")  # what a clip may lack; in batches a number, the place here
SEVERAL = ";"  # between the labels of a clip that has several
KEY = re.compile(r"[A-Za-z0-9_-]+")  # a part of names in tars, whose first dot ends it


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of clips.csv. The event lasts from second `start` to second `end` of the clip.

    `path` is relative to the folder of clips.csv; `status` is ok or failed, with the `reason` of a failure. A clip that
    is cut out of a longer recording begins at second `begin` of that file; None: it is the file, from its beginning.
    `seconds` is how long the clip is, 0 where nobody has measured. `events` are further ones: (label, start, end).
    Clips of one `source` (a recording, a speaker, a group of folder.group) are alike: intervals count them together.
    `slot` is the clip's place among those of its split for good, -1 before it has one, and `batch` the first slot of
    those that came with it: shards are made of neighbours of a batch.
    """

    key: str
    path: str
    label: str
    split: str
    start: float
    end: float
    source: str
    status: str = "ok"
    reason: str = ""
    begin: float | None = None
    seconds: float = 0.0
    events: tuple[tuple[str, float, float], ...] = ()
    batch: int = 0
    slot: int = -1

    def __post_init__(self):
        if not KEY.fullmatch(self.key):
            raise ValueError(f"key {self.key!r}: expected letters, digits, - and _")
        if self.split not in SPLITS:
            raise ValueError(f"clip {self.key}: split {self.split!r}; expected one of {', '.join(SPLITS)}")

    def second_labels(self, seconds: int) -> list[str | None]:
        """The label of each of the clip's seconds: that of the event on its middle, None for background.

        An event too short for the middle of any second labels the one that it is in. None, for a class may have any
        name: "background" is one, too.
        """
        found: list[str | None] = [None] * seconds
        events = [(label, start, min(end, seconds))
                  for label, start, end in ((self.label, self.start, self.end), *self.events)]
        for label, start, end in events:
            if start < end and not _middles(start, end, seconds):
                found[int((start + end) / 2)] = label
        for label, start, end in events:
            for second in _middles(start, end, seconds):
                found[second] = label
        return found

    def row(self) -> dict:
        """The clip as a row of clips.csv."""
        values = {field.name: getattr(self, field.name) for field in fields(Clip)}
        return values | {"begin": "" if self.begin is None else self.begin,
                         "events": json.dumps(self.events) if self.events else ""}


def _middles(start: float, end: float, seconds: int) -> range:
    """The seconds whose middle lies from `start` to `end`."""
    return range(max(math.ceil(start - 0.5), 0), min(max(math.ceil(end - 0.5), 0), seconds))


def pair_label(labels: Sequence[str | None], begin: float, seconds: int,
               events: Sequence[tuple[str, float, float]] = ()) -> str | None:
    """The label of a pair of so many seconds, given those of its clip's seconds: that at its middle. Where this lies
    between two seconds, and the later one is background, it is that of the earlier one.

    Of several `events` (label, start, end) in the clip it is the one that covers most of the pair, the earliest of
    equals.
    """
    middle = begin + seconds / 2
    found = labels[int(middle)]
    found = labels[int(middle) - 1] if found is None and middle == int(middle) else found
    covered = Counter()
    for label, start, end in sorted(events, key=lambda event: event[1]):
        covered[label] += max(min(end, begin + seconds) - max(start, begin), 0.0)
    return covered.most_common(1)[0][0] if found is not None and covered.total() else found


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes in their fixed order, whether the data set labels background seconds, and whether its clips have
    several labels (a;b)."""

    classes: tuple[str, ...]
    background: bool
    multilabel: bool = False

    def of(self, label: str) -> list[str]:
        """The classes that a label names: itself, or where clips have several labels its parts."""
        return label.split(SEVERAL) if self.multilabel else [label]


def placed(clips: list[Clip], earlier: Iterable[Clip], seed: int) -> list[Clip]:
    """The clips with a place each, but for failed ones: that of an earlier clip of their key, or one after all others.

    Those that are new are mixed by the seed. Where more than half of the earlier ones are gone all begins anew.
    """
    slots = {(clip.key, clip.split): (clip.batch, clip.slot) for clip in earlier if clip.slot >= 0}
    here = {(clip.key, clip.split) for clip in clips if clip.status == "ok"}
    if 2 * len(slots.keys() & here) < len(slots):
        slots = {}
    for split in SPLITS:
        new = [(clip.key, split) for clip in clips
               if clip.split == split and clip.status == "ok" and (clip.key, split) not in slots]
        batch = 1 + max((slot for (_, other), (_, slot) in slots.items() if other == split), default=-1)
        random.Random(f"{seed} {split}").shuffle(new)
        slots |= {key: (batch, batch + number) for number, key in enumerate(new)}
    return [replace(clip, batch=slots[clip.key, clip.split][0], slot=slots[clip.key, clip.split][1])
            if clip.status == "ok" else clip for clip in clips]


def write_manifest(folder: Path, clips: Iterable[Clip], labels: Labels) -> None:
    """Write clips.csv and classes.json into `folder`."""
    write_table(folder / "clips.csv", (field.name for field in fields(Clip)), (clip.row() for clip in clips))
    with atomic(folder / "classes.json") as path:
        path.write_text(json.dumps(asdict(labels), indent=1) + "\n")


def read_manifest(folder: Path) -> tuple[list[Clip], Labels]:
    """The clips and labels of a raw folder; raises UserError when they are missing or make no sense."""
    try:
        labels = json.loads((folder / "classes.json").read_text())
        labels = Labels(classes=tuple(labels["classes"]), background=labels["background"],
                        multilabel=labels.get("multilabel", False))
        with open(folder / "clips.csv", newline="") as file:
            clips = [
                Clip(**{**row, "start": float(row["start"]), "end": float(row["end"]), "seconds": float(row["seconds"]),
                        "begin": float(row["begin"]) if row["begin"] else None,
                        "events": tuple(map(tuple, json.loads(row["events"] or "[]"))),
                        "batch": int(row.get("batch") or 0), "slot": int(row.get("slot") or -1)})
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}; run the download stage first (dvc repro download)") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: the manifest is damaged ({error}); run the download stage again") from None
    named = {label for clip in clips for label in (clip.label, *(event[0] for event in clip.events))}
    unknown = {part for label in named for part in labels.of(label)} - set(labels.classes)
    if unknown:
        raise UserError(f"{folder / 'clips.csv'}: labels {sorted(unknown)} are not in classes.json")
    return clips, labels
