"""VGGSound (Chen et al., ICASSP 2020): about 200,000 clips of 10 s from YouTube, 309 classes, one label per clip."""

from pathlib import Path

from maavt.clips import Clip, Labels
from maavt.errors import UserError
from maavt.params import Params
from maavt.sources.lists import (
    WHOLE,
    annotations_folder,
    check_label,
    choose_split,
    number,
    read_classes,
    read_packaged,
    read_rows,
    video_id,
)


def labels(params: Params) -> Labels:
    """The 309 classes in the order of the alphabet."""
    return Labels(classes=read_classes("vggsound_classes.txt"), background=False)


def clips(params: Params, annotations: Path | None = None) -> list[Clip]:
    """One Clip per row; of the videos in train, some are held out for validation.

    `annotations` holds the published vggsound.csv, or at least test.csv. Without it the packaged test split alone is
    known: the full list is a part of the download. One video may have several clips: the key names its second too.
    """
    if annotations:
        folder = annotations_folder(annotations, "vggsound")
        full = folder / "vggsound.csv"
        rows = _full(full) if full.exists() else _test(folder / "test.csv")
    else:
        rows = ((row["id"], int(row["start"]), row["label"], "test") for row in read_packaged("vggsound_test.csv"))
    return [_clip(*row, params.vggsound.val_share) for row in rows]


def _clip(video: str, start: int, label: str, split: str, val_share: float) -> Clip:
    name = f"{video}_{start:06d}"
    if split == "train":
        split = choose_split(video, val=val_share)
    return Clip(key=f"vgg-{name}", path=f"video/{name}.mp4", label=label, split=split, start=0, end=WHOLE,
                source=video)


def _full(path: Path):
    """(video, start, label, split) from vggsound.csv."""
    classes = set(read_classes("vggsound_classes.txt"))
    for where, (video, start, label, split) in read_rows(path, 4):
        if split not in ("train", "test"):
            raise UserError(f"{where}: the split {split!r}; expected train or test")
        yield video_id(video, where), int(number(start, where)), check_label(label, classes, where), split


def _test(path: Path):
    """(video, start, label, "test") from test.csv."""
    classes = set(read_classes("vggsound_classes.txt"))
    for where, (name, label) in read_rows(path, 2):
        video, _, start = name.removesuffix(".mp4").rpartition("_")
        yield video_id(video, where), int(number(start, where)), check_label(label, classes, where), "test"
