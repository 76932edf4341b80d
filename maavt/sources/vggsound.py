"""VGGSound (Chen et al., ICASSP 2020): about 200,000 clips of 10 s from YouTube, 309 classes, one label per clip."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from maavt.clips import Clip, Labels
from maavt.errors import UserError
from maavt.fetch import SESSION, STOPPING, TRANSIENT, Failed, youtube
from maavt.fetch.http import FRUITLESS, Http
from maavt.params import Params
from maavt.progress import progress
from maavt.sources.archives import fetch_archives, take_local
from maavt.sources.lists import (
    WHOLE,
    annotations_folder,
    check_label,
    choose_split,
    each_once,
    number,
    read_classes,
    read_packaged,
    read_rows,
    video_id,
)
from maavt.sources.store import Store
from maavt.work import project_root

SECONDS = 10
SHORTEST = 5.0  # seconds


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
        full, test = folder / "vggsound.csv", folder / "test.csv"
        rows = _test(test) if test.exists() and not full.exists() else _full(full)
    else:
        rows = (("", f"{row['id']}_{row['start']}", (row["id"], int(row["start"]), row["label"], "test"))
                for row in read_packaged("vggsound_test.csv"))
    return [_clip(*row, params.vggsound.val_share) for row in each_once(rows)]


def annotations(params: Params, folder: Path, http: Http) -> Path:
    """The folder with vggsound.csv: one's own, or `folder`, into which it is fetched once."""
    if params.vggsound.local:
        return project_root() / Path(params.vggsound.local).expanduser()
    if not (path := folder / "vggsound.csv").exists():
        http.file(params.vggsound.annotations, fetched := folder / "fetched.csv")
        try:
            if not sum(1 for _ in _full(fetched)):
                raise UserError(f"{params.vggsound.annotations} is empty; expected the list of VGGSound's clips")
            os.replace(fetched, path)
        finally:
            fetched.unlink(missing_ok=True)
    return folder


def fetch(params: Params, store: Store, http: Http) -> str:
    """Get the clips from the archives on the hub, or a folder of one's own, and what is left from YouTube if asked.

    Returns the reason of the others.
    """
    settings, reason = params.vggsound, "permanent: not in the archives"
    if settings.local:
        take_local(settings.local, store, "vggsound.local", _spellings)
    elif store.missing():
        from maavt.fetch import hub  # its client takes its time

        found = hub.archives(http, settings.hub, settings.repository, settings.revision, settings.archives)
        results = fetch_archives(found, store, http, partial(hub.fetch, http), _spellings)
        if any(isinstance(result, Failed) for result in results.values()):
            reason = "transient: not in the archives that could be had"
    if settings.youtube and (missing := store.missing()):
        _fill_gaps(missing, settings.youtube_url, store)
    return reason


def _fill_gaps(missing: list[Clip], url: str, store: Store) -> None:
    """One video at a time: YouTube turns away those who hurry."""
    youtube.check_tools()
    vain = 0
    for clip in progress(missing, label="YouTube", unit="clip"):
        start = int(PurePosixPath(clip.path).stem.rpartition("_")[2])
        try:
            path = store.place(clip.path)
            youtube.section(url.format(id=clip.source), start, SECONDS, path, store.parts)
            store.budget.take(path.stat().st_size)
            store.note(clip.path)
            vain = 0
        except Failed as failed:
            store.note(clip.path, failed)
            vain = vain + 1 if failed.kind == TRANSIENT else 0
            if failed.kind in STOPPING:
                raise
            if vain == FRUITLESS:
                raise Failed(SESSION, f"{vain} videos in a row failed; wait a while, or check the network") from failed


def _spellings(stem: str) -> Iterator[str]:
    """What the list calls a file that names its second otherwise, or the end of its seconds, too: ID_30, ID_30_40,
    ID_30000_40000, ID_000030_000040."""
    time = r"[_. -](\d+(?:\.\d+)?)"
    if both := re.fullmatch(f"(.+?){time}{time}", stem, re.DOTALL):
        video, begin, end = both[1], float(both[2]), float(both[3])
        for unit in (1, 1000):  # seconds or milliseconds
            if unit / 2 <= end - begin <= (SECONDS + 0.5) * unit:
                yield f"{video}_{int(begin / unit):06d}"
    if one := re.fullmatch(f"(.+){time}", stem, re.DOTALL):
        for unit in (1, 1000):
            if float(one[2]) % unit == 0 or unit == 1:
                yield f"{one[1]}_{int(float(one[2]) / unit):06d}"


def _clip(video: str, start: int, label: str, split: str, val_share: float) -> Clip:
    name = f"{video}_{start:06d}"
    if split == "train":
        split = choose_split(video, val=val_share)
    return Clip(key=f"vgg-{name}", path=f"video/{name}.mp4", label=label, split=split, start=0, end=WHOLE,
                source=video)


def _full(path: Path):
    """(where, clip, (video, start, label, split)) from vggsound.csv."""
    classes = set(read_classes("vggsound_classes.txt"))
    for where, (video, start, label, split) in read_rows(path, 4):
        if split not in ("train", "test"):
            raise UserError(f"{where}: the split {split!r}; expected train or test")
        start = int(number(start, where))
        yield where, f"{video}_{start:06d}", (video_id(video, where), start, check_label(label, classes, where), split)


def _test(path: Path):
    """(where, clip, (video, start, label, "test")) from test.csv."""
    classes = set(read_classes("vggsound_classes.txt"))
    for where, (name, label) in read_rows(path, 2):
        video, _, start = name.removesuffix(".mp4").rpartition("_")
        start = int(number(start, where))
        yield where, f"{video}_{start:06d}", (video_id(video, where), start, check_label(label, classes, where), "test")
