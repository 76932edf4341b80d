"""CREMA-D (Cao et al., 2014): 7,442 clips of 1 to 4 s, 91 actors, 6 emotions; picture and sound are two files."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath

import av

from maavt.clips import Clip, Labels
from maavt.errors import UserError
from maavt.fetch import CONTENT, ENVIRONMENT, PERMANENT, SESSION, STOPPING, Failed, lfs
from maavt.fetch.http import Http
from maavt.fetch.tree import shown, walk
from maavt.media.decode import Rejected
from maavt.params import Params
from maavt.progress import progress
from maavt.sources.archives import choose, rank
from maavt.sources.lists import (
    SUFFIXES,
    WHOLE,
    annotations_folder,
    check_label,
    choose_split,
    each_once,
    read_classes,
    read_packaged,
    read_rows,
)
from maavt.sources.store import Store
from maavt.work import atomic, project_root
from maavt.workers import fan_out

SHORTEST = 0.1  # seconds
Joint = tuple[Clip, Path, Path, Path]  # picture, sound, and where both go
SOUNDS = {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus"}
BATCH = 20  # clips whose LFS pointers are followed with one request

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
        rows = each_once(_published(annotations_folder(annotations, "cremad")))
    else:
        rows = ((row["clip"], row["label"], row["split"]) for row in read_packaged("cremad.csv"))
    return [_clip(*row, params) for row in rows]


def fetch(params: Params, store: Store, http: Http) -> str:
    """Get picture and sound of each clip from the mirror, or from a clone of one's own, and join them into one file.

    Returns the reason of the others.
    """
    missing = store.absent() if params.cremad.local else store.missing()
    with progress(total=len(missing), label="CREMA-D", unit="clip") as bar:

        received = [0]

        def count(size: int) -> None:
            received[0] += size
            bar.set_postfix(received=f"{received[0] / 1e6:.0f} MB", refresh=False)

        http.on_bytes = count

        def fail(clip: Clip, failed: Failed) -> None:
            store.note(clip.path, failed)
            bar.update()

        if params.cremad.local:
            found = _from_clone(project_root() / Path(params.cremad.local).expanduser(), missing, store, fail)
        else:
            found = _from_mirror(params, missing, store, http, fail)
        for (clip, picture, sound, path), result in fan_out(join, found, time_limit=60.0, label=str):
            if isinstance(result, Rejected):
                fail(clip, Failed(CONTENT, result.reason))
            else:
                store.budget.take(path.stat().st_size)
                store.note(clip.path)
                bar.update()
            for part in (picture, sound):
                if part.is_relative_to(store.parts):
                    store.budget.give(part.stat().st_size)
                    part.unlink()
    return "transient: not fetched yet"


def join(item: Joint) -> None:
    """Picture of item[1] and sound of item[2] as they are, in one file item[3]; raises Rejected.

    NUT takes any codec and keeps each frame's own time.
    """
    _, picture, sound, path = item
    for part in (picture, sound):
        if not part.stat().st_size:
            raise Rejected("empty file", part.name)
    try:
        with (av.open(f"file:{picture}") as first, av.open(f"file:{sound}") as second, atomic(path) as temporary,
              av.open(str(temporary), "w", format="nut", options={"fflags": "+bitexact"}) as joined):
            if not first.streams.video:
                raise Rejected("no video stream", picture.name)
            if not second.streams.audio:
                raise Rejected("no audio stream", sound.name)
            packets = []
            for stream in (first.streams.video[0], second.streams.audio[0]):
                copied = joined.add_stream_from_template(stream)
                own = [packet for packet in stream.container.demux(stream) if packet.size]  # the last one is empty
                _time(own)
                packets += [(packet.dts * packet.time_base, copied, packet) for packet in own]
            if len({copied.index for _, copied, _ in packets}) < 2:
                raise Rejected("too short", "picture or sound has no data")
            for _, copied, packet in sorted(packets, key=lambda entry: entry[0]):
                packet.stream = copied
                joined.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        raise Rejected("not media", str(error)) from None


def _time(packets: list[av.Packet]) -> None:
    """Give each packet a decoding time: Matroska leaves out those of the first ones, before frames that are shown
    earlier."""
    known = [number for number, packet in enumerate(packets) if packet.dts is not None]
    step = max(packets[known[0]].duration or 1, 1) if known else 1
    for number in reversed(range(known[0] if known else 0)):
        packets[number].dts = packets[number + 1].dts - step
    for before, packet in pairwise(packets):
        if packet.dts is None:
            packet.dts = before.dts + step if before.dts is not None else packet.pts


def _from_clone(root: Path, missing: list[Clip], store: Store,
                fail: Callable[[Clip, Failed], None]) -> Iterator[Joint]:
    """What `join` needs, for each clip whose files are in the clone."""
    if not root.is_dir():
        raise UserError(f"cremad.local: {root} is no folder; expected a clone of the data set's repository")
    listed, strange, count = {clip.key for clip in store.clips}, "", [0, 0]
    found: tuple[dict[str, list[str]], ...] = (defaultdict(list), defaultdict(list))  # pictures, sounds
    for name in sorted(entry.name for entry in walk(root, hidden=False) if not entry.reason):
        key, suffix = PurePosixPath(name).stem.upper().replace("-", "_"), PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES:
            count = [count[0] + 1, count[1] + (key not in listed)]
            strange = strange or (name if key not in listed else "")
        if key in listed and suffix in SUFFIXES | SOUNDS:
            found[suffix in SOUNDS][key].append(name)
    if strange:
        print(f"warning: cremad.local: {count[1]} of {count[0]} videos match no clip of the list, such as "
              f"{shown(strange)}; expected names such as {_files(store.clips[0])[0]}", file=sys.stderr)
    pictures, sounds = (choose(files, lambda name, part=part: rank(name, _documented(name, part)), root, "cremad.local")
                        for part, files in enumerate(found))
    for clip in missing:
        picture = pictures.get(clip.key, "")
        sound = sounds.get(clip.key) or (picture if not picture.lower().endswith(".flv") else "")
        if picture and sound:  # the .flv files of the repository have a sound of lower quality
            yield clip, _real(root / picture, root), _real(root / sound, root), store.place(clip.path)
        else:
            fail(clip, Failed(PERMANENT, "not in the clone"))


def _documented(name: str, part: int) -> str:
    """The place in the repository of a file's picture (part 0) or sound (1)."""
    return _paths(PurePosixPath(name).stem.upper().replace("-", "_"))[part]


def _real(path: Path, root: Path) -> Path:
    """The file, or the one in Git's own store that it points to."""
    if not (target := lfs.pointer(path)):
        return path
    real = root / ".git" / "lfs" / "objects" / target.oid[:2] / target.oid[2:4] / target.oid
    if not real.exists():
        raise Failed(ENVIRONMENT, f"{path} is a Git LFS pointer, not the clip; run `git lfs pull` in {root}")
    return real


def _from_mirror(params: Params, missing: list[Clip], store: Store, http: Http,
                 fail: Callable[[Clip, Failed], None]) -> Iterator[Joint]:
    """What `join` needs, for each clip as its files come in."""
    batches = (missing[begin : begin + BATCH] for begin in range(0, len(missing), BATCH))
    for batch, results in http.each(partial(_get, params=params, store=store, http=http), batches):
        for clip, result in zip(batch, results if isinstance(results, list) else [results] * len(batch), strict=True):
            if isinstance(result, Failed):
                fail(clip, result)
            else:
                yield clip, *result, store.place(clip.path)


def _get(clips: list[Clip], *, params: Params, store: Store, http: Http) -> list[tuple[Path, Path] | Failed]:
    """The two files of each clip, or why not. Pointers of all of them are followed with one request."""
    results: list = [_each_file(clip, params, store, http) for clip in clips]
    pointers = {file: target for result in results if not isinstance(result, Failed)
                for file in result if (target := lfs.pointer(file))}
    places = lfs.locate(http, params.cremad.lfs, list(pointers.values())) if pointers else {}
    for number, result in enumerate(results):
        for file in () if isinstance(result, Failed) else result:
            if file in pointers:
                try:
                    _follow(file, pointers[file], places[pointers[file].oid], params, store, http)
                except Failed as failed:
                    if failed.kind in STOPPING:
                        raise
                    results[number] = failed
                    break
    return results


def _each_file(clip: Clip, params: Params, store: Store, http: Http) -> tuple[Path, Path] | Failed:
    files = tuple(store.parts / PurePosixPath(name).name for name in _files(clip))
    try:
        for name, file in zip(_files(clip), files, strict=True):
            if not file.exists():
                http.file(params.cremad.files.format(path=name), file)
    except Failed as failed:
        if failed.kind in STOPPING:
            raise
        return failed
    return files


def _follow(file: Path, target: lfs.Pointer, place: lfs.Place | Failed, params: Params, store: Store,
            http: Http) -> None:
    size = file.stat().st_size
    try:
        _fetch(file, target, place, http)
    except Failed as failed:
        if failed.kind != SESSION:
            raise
        again = lfs.locate(http, params.cremad.lfs, [target])[target.oid]  # the address may have expired
        if again == place:
            raise
        _fetch(file, target, again, http)
    store.budget.give(size)


def _fetch(file: Path, target: lfs.Pointer, place: lfs.Place | Failed, http: Http) -> None:
    if isinstance(place, Failed):
        raise place
    http.file(place.url, file, size=target.size, sha256=target.oid, headers=place.headers)


def _files(clip: Clip) -> tuple[str, str]:
    return _paths(clip.key)


def _paths(key: str) -> tuple[str, str]:
    return f"VideoFlash/{key}.flv", f"AudioWAV/{key}.wav"


def _clip(name: str, label: str, split: str, params: Params) -> Clip:
    actor = name.partition("_")[0]
    if params.cremad.split == "actors":
        split = choose_split(actor, val=params.cremad.val_share, test=params.cremad.test_share)
    elif split == "train":
        split = choose_split(actor, val=params.cremad.val_share)
    failure = {"status": "failed", "reason": "content: known bad clip"} if name in KNOWN_BAD else {}
    return Clip(key=name, path=f"clips/{name}.nut", label=label, split=split, start=0, end=WHOLE,
                source=f"actor {actor}", **failure)


def _published(folder: Path):
    """(where, clip, (clip, emotion, split)) from train.csv and test.csv."""
    classes = read_classes("cremad_classes.txt")
    for split in ("train", "test"):
        for where, (name, label) in read_rows(folder / f"{split}.csv", 2):
            if not re.fullmatch(r"\d{4}_[A-Z]{3}_[A-Z]{3}_[A-Z]{2}", name):
                raise UserError(f"{where}: {name!r} is no clip's name; expected such as 1001_DFA_ANG_XX")
            yield where, name, (name, check_label(label, classes, where), split)
