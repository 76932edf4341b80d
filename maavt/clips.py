"""A clip and the manifest clips.csv: which clips a data set has, what they show, and what became of each."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from maavt.errors import UserError
from maavt.work import atomic, write_table

SPLITS = ("train", "val", "test")
BACKGROUND = "background"
KEY = re.compile(r"[A-Za-z0-9_-]+")  # a part of names in tars, whose first dot ends it


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of clips.csv. The event lasts from second `start` to second `end` of the clip.

    `path` is relative to the folder of clips.csv; `status` is ok or failed, with the `reason` of a failure.
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

    def __post_init__(self):
        if not KEY.fullmatch(self.key):
            raise ValueError(f"key {self.key!r}: expected letters, digits, - and _")
        if self.split not in SPLITS:
            raise ValueError(f"clip {self.key}: split {self.split!r}; expected one of {', '.join(SPLITS)}")

    def second_labels(self, seconds: int) -> list[str]:
        """The label of each of the clip's seconds: its own inside the event, `background` outside."""
        return [self.label if self.start <= second < self.end else BACKGROUND for second in range(seconds)]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes in their fixed order, and whether the data set labels background seconds."""

    classes: tuple[str, ...]
    background: bool


def write_manifest(folder: Path, clips: Iterable[Clip], labels: Labels) -> None:
    """Write clips.csv and classes.json into `folder`."""
    write_table(folder / "clips.csv", (field.name for field in fields(Clip)), map(vars, clips))
    with atomic(folder / "classes.json") as path:
        path.write_text(json.dumps(asdict(labels), indent=1) + "\n")


def read_manifest(folder: Path) -> tuple[list[Clip], Labels]:
    """The clips and labels of a raw folder; raises UserError when they are missing or make no sense."""
    try:
        labels = json.loads((folder / "classes.json").read_text())
        labels = Labels(classes=tuple(labels["classes"]), background=labels["background"])
        with open(folder / "clips.csv", newline="") as file:
            clips = [
                Clip(**{**row, "start": float(row["start"]), "end": float(row["end"])})
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}; run the download stage first (dvc repro download)") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: the manifest is damaged ({error}); run the download stage again") from None
    unknown = {clip.label for clip in clips} - set(labels.classes)
    if unknown:
        raise UserError(f"{folder / 'clips.csv'}: labels {sorted(unknown)} are not in classes.json")
    return clips, labels
