"""CREMA-D (Cao et al., 2014): 7,442 clips of 1 to 4 s, 91 actors, 6 emotions; picture and sound are two files."""

import re
from pathlib import Path

from maavt.clips import Clip, Labels
from maavt.errors import UserError
from maavt.params import Params
from maavt.sources.lists import (
    WHOLE,
    annotations_folder,
    check_label,
    choose_split,
    read_classes,
    read_packaged,
    read_rows,
)

# The data set's own README says so of these.
KNOWN_BAD = {"1064_IEO_DIS_MD", "1064_TIE_SAD_XX", "1076_MTI_NEU_XX", "1076_MTI_SAD_XX"}


def labels(params: Params) -> Labels:
    """The six emotions in the order of the published code."""
    return Labels(classes=read_classes("cremad_classes.txt"), background=False)


def clips(params: Params, annotations: Path | None = None) -> list[Clip]:
    """One Clip per row: in the published lists with some actors of train held out for validation, or by actor.

    Four clips are known to be bad: they are listed as failed, and never fetched.
    """
    if annotations:
        rows = _published(annotations_folder(annotations, "cremad"))
    else:
        rows = ((row["clip"], row["label"], row["split"]) for row in read_packaged("cremad.csv"))
    return [_clip(*row, params) for row in rows]


def _clip(name: str, label: str, split: str, params: Params) -> Clip:
    actor = name.partition("_")[0]
    if params.cremad.split == "actors":
        split = choose_split(actor, val=params.cremad.val_share, test=params.cremad.test_share)
    elif split == "train":
        split = choose_split(actor, val=params.cremad.val_share)
    failure = {"status": "failed", "reason": "content: known bad clip"} if name in KNOWN_BAD else {}
    return Clip(key=name, path=f"clips/{name}.mkv", label=label, split=split, start=0, end=WHOLE,
                source=f"actor {actor}", **failure)


def _published(folder: Path):
    """(clip, emotion, split) from train.csv and test.csv."""
    classes = read_classes("cremad_classes.txt")
    for split in ("train", "test"):
        for where, (name, label) in read_rows(folder / f"{split}.csv", 2):
            if not re.fullmatch(r"\d{4}_[A-Z]{3}_[A-Z]{3}_[A-Z]{2}", name):
                raise UserError(f"{where}: {name!r} is no clip's name; expected such as 1001_DFA_ANG_XX")
            yield name, check_label(label, classes, where), split
