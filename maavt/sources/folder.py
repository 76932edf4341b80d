"""Clips of one's own: folders named like the classes, with or without folders of the splits above, or a table."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import normpath, splitext

from maavt.clips import BACKGROUND, SEVERAL, Clip, Labels
from maavt.errors import UsageError, UserError
from maavt.fetch import CONTENT, PERMANENT, Failed
from maavt.fetch.http import Http
from maavt.fetch.tree import UNREADABLE, Entry, shown, walk
from maavt.media.length import REST, SHORTEST
from maavt.media.rejected import REASONS
from maavt.params import Params
from maavt.progress import progress
from maavt.sources.archives import copy
from maavt.sources.lists import SPLIT_NAMES, SUFFIXES, WHOLE, choose_split, safe_key, split_of, words_of
from maavt.sources.look import Look, look_at
from maavt.sources.splits import share_out
from maavt.sources.store import Store
from maavt.sources.table import SLACK, Row, read_table, unread
from maavt.work import project_root

LAYOUTS = ("<class>/<clip>, <train|val|test>/<class>/<clip>, <class>/<train|val|test>/<clip> (or training, valid, "
           "validation, dev, testing, eval), or a table (folder.table)")


@dataclass(frozen=True, kw_only=True)
class Own(Clip):
    """A clip and the user's file that it is made from."""

    file: str


@dataclass(frozen=True)
class Survey:
    """What is in the user's folder: the clips, the other files with the reason (path, reason), and what to tell."""

    clips: list[Own]
    not_taken: list[tuple[str, str]]
    notes: list[str]


@dataclass
class _Recording:
    """A file of the user's, or the part of it that rows of the table name, and what is said of it."""

    name: str
    label: str
    split: str
    group: str
    rows: list[Row] = field(default_factory=list)
    look: Look = Look()


def labels(params: Params, clips: Sequence[Clip] | None = None) -> Labels:
    """The classes in the order of their names; background where some second of some clip is outside its events. In a
    table a clip may have several labels, and has them where any has: a folder's name is one label, whatever it is."""
    clips = survey(params).clips if clips is None else clips
    named = {label for clip in clips for label in (clip.label, *(event[0] for event in clip.events))}
    several = bool(params.folder.table) and any(SEVERAL in label for label in named)
    named = {part for label in named for part in label.split(SEVERAL)} if several else named
    return Labels(classes=tuple(sorted(named)),
                  background=any(clip.events or clip.start > 0 or clip.end < WHOLE for clip in clips),
                  multilabel=several)


def clips(params: Params, annotations: Path | None = None) -> list[Clip]:
    """The clips that are in the folder; there are no published lists."""
    return survey(params).clips


def fetch(params: Params, store: Store, http: Http) -> str:
    """Copy the user's files; the reason of those that are not there."""
    files = {clip.path: clip.file for clip in store.clips if clip.status == "ok"}
    for path, file in progress(list(files.items()), label="copying clips", unit="clip"):
        try:
            copy(Path(file), store.place(path), store)
            store.accept(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            store.note(path, Failed(PERMANENT, "no such file"))
    store.refresh()
    return "permanent: no such file"


def survey(params: Params) -> Survey:
    """Look at every file below folder.root.

    Raises UserError when that makes no data set, with every mistake in the table.
    """
    settings, longest = params.folder, params.shard.spectrogram["folder"].clip_seconds
    if not settings.root:
        raise UsageError("folder.root is empty; set it in params.yaml to the folder that holds your clips")
    root = project_root() / Path(settings.root).expanduser()
    if not root.is_dir():
        raise UserError(f"folder.root: {root} is no folder; expected the one that holds your clips")
    notes: list[str] = []
    if settings.table:
        found, aside = _from_table(root, params, notes)
    else:
        found, aside = _from_folders(root, notes)
    looks = look_at(dict.fromkeys(str(root / recording.name) for recording in found),
                    keep=params.shard.missing == "keep")
    taken = []
    for recording in found:
        recording.look = looks[str(root / recording.name)]
        if recording.look.reason and not settings.table and _suffix(recording.name) not in SUFFIXES:
            aside.append(Entry(recording.name, reason=recording.look.reason))
        else:
            taken.append(recording)
    if not taken:
        raise UserError(f"no clips in {root}; expected {LAYOUTS}{_kinds(aside, ', but found ')}")
    _split(taken, settings.span, longest, params, notes)
    made, mistakes, cut = [], [], defaultdict(list)
    for recording in taken:
        try:
            own = list(_clips(recording, root, settings.span, longest, settings.overlap))
        except UserError as error:
            mistakes.append(str(error))
            continue
        made += own
        for clip in own:
            if clip.status == "ok":
                cut[clip.key].append(recording)
    if mistakes:
        raise UserError("\n  ".join([f"{len(mistakes)} events that nobody would see:", *mistakes[:20]]))
    if twice := [" and ".join(row.where for recording in same for row in recording.rows[:1]) + f": {same[0].name!r}"
                 for same in cut.values() if len(same) > 1]:
        raise UserError("\n  ".join([f"{len(twice)} clips are cut out twice; expected each once, with its events as "
                                     "rows of the same from and to:", *twice[:20]]))
    _tell_of_length(made, taken, longest, settings.span, notes)
    if (own := labels(params, made)).background and own.multilabel:
        raise UserError(f"{settings.table} has clips of several labels ({SEVERAL}) and events with start and end, "
                        "outside which is background; expected one of the two: leave start and end empty, or cut the "
                        "events out (folder.span: table with from and to)")
    if own.background and BACKGROUND in own.classes:
        raise UserError(f"the class {BACKGROUND!r} and the seconds outside all events, which are background too, could "
                        "not be told apart; rename the class, or leave its rows out, which says the same")
    not_taken = sorted((shown(entry.name), entry.reason) for entry in aside)
    if not_taken:
        notes.append(f"{len(not_taken)} files are not taken{_kinds(aside, ': ')}")
    return Survey(made, not_taken, notes)


def _kinds(aside: list[Entry], before: str) -> str:
    counts = Counter(entry.reason for entry in aside).most_common(8)
    return before + ", ".join(f"{count} {reason}" for reason, count in counts) if counts else ""


def _from_folders(root: Path, notes: list[str]) -> tuple[list[_Recording], list[Entry]]:
    entries = sorted(walk(root), key=lambda entry: entry.name)
    places = {entry.name: entry.name.split("/")[:-1] for entry in entries if not entry.reason}
    splits, level = _split_folders(root, places)
    found, aside = [], [entry for entry in entries if entry.reason]
    for entry in entries:
        if entry.reason:
            continue
        above = places[entry.name]
        split = splits.get(above[level], "") if len(above) > level else ""
        if len(above) < (2 if splits else 1):
            aside.append(replace(entry, reason="in no folder of a class"))
        elif splits and not split:
            aside.append(replace(entry, reason="in no folder of a split"))
        else:
            label = unicodedata.normalize("NFC", shown(above[1 - level if splits else 0]))
            found.append(_Recording(entry.name, label, split, entry.name))
    notes += _odd_folders(places, level if splits else None)
    return found, aside


def _split_folders(root: Path, places: dict[str, list[str]]) -> tuple[dict[str, str], int]:
    """The split of each folder that is named like one, and how many folders are above it: 0, or 1 where every class has
    folders of its own for the splits. Without such folders ({}, 0)."""
    tops = {above[0] for above in places.values() if above}
    inside: dict[str, set[str]] = defaultdict(set)
    for above in places.values():
        if len(above) > 1:
            inside[above[0]].add(above[1])
    above, below = _named_like_splits(tops), {}
    for top, names in inside.items():
        below |= _named_like_splits(names, words_of(shown(top)))
    loose = [name for name, above in places.items() if above and not (len(above) > 1 and above[1] in below)
             and _suffix(name) in SUFFIXES]
    advice = f"expected one kind alone: {LAYOUTS}. Move the others out, or name your clips in a table"
    if below and not loose and not (above and len(above) == len(tops)):
        splits, level = below, 1
        if len(tops) == 1 and any(len(above) > 2 for above in places.values()):
            top, = map(shown, tops)
            raise UserError(f"{root} holds one folder alone, {top}, with the folders of splits in it "
                            f"({_listed(map(shown, below))}); expected {LAYOUTS}. Set folder.root to {root / top}")
    elif above and len(above) < len(tops):
        raise UserError(f"{root} holds folders of splits ({_listed(map(shown, above))}) beside others "
                        f"({_listed(map(shown, tops - above.keys()))}); {advice}")
    elif above:
        if len(above) > 1 and len(below) > 1 and set.union(*inside.values()) == below.keys():
            raise UserError(f"{root} holds folders of splits ({_listed(map(shown, above))}) with folders of splits in "
                            f"them ({_listed(map(shown, below))}), so no class can be told; {advice}")
        splits, level = above, 0
    elif below:
        named = {"/".join(above[:2]) for above in places.values() if len(above) > 1 and above[1] in below}
        raise UserError(f"{root} holds classes with folders of splits in them ({_listed(map(shown, named))}) and "
                        f"{len(loose)} clips that are in none, such as {shown(loose[0])}; {advice}")
    else:
        return {}, 0
    if "train" not in splits.values():
        raise UserError(f"{root} holds the splits {_listed(map(shown, splits))}, but none to train on; expected "
                        f"{LAYOUTS}")
    return splits, level


def _named_like_splits(names: set[str], parent: Iterable[str] = ()) -> dict[str, str]:
    """Those of the folders beside each other that are named like splits, and which; `parent` are the words in the name
    of the folder that they are in."""
    shared = set.intersection(*(words_of(shown(name)) for name in names)) if len(names) > 1 else set()
    found = {name: split_of(shown(name), shared.union(parent)) for name in names}
    return {name: split for name, split in found.items() if split}


def _odd_folders(places: dict[str, list[str]], level: int | None) -> Iterator[str]:
    """Warnings of folders that are named like splits and are not read as such, and of names that cannot be printed."""
    counts: Counter = Counter()
    for above in places.values():
        for depth, folder in enumerate(above):
            if depth != level and split_of(shown(folder)):
                counts["/".join(above[: depth + 1])] += 1
    if counts:
        yield (f"warning: {sum(counts.values())} files are in folders named like splits that are not read as splits: "
               f"{_listed(map(shown, counts))}; a split is the first folder, or the one right below the class")
    tops = {above[0] for above in places.values() if above}
    meant = {SPLIT_NAMES[word] for top in tops for word in words_of(shown(top)) if word in SPLIT_NAMES}
    if level is None and len(meant) > 1:
        yield (f"warning: {_listed(map(shown, tops))} are read as classes, though some look like splits; if they are, "
               "name them train, val and test, and put the clips into folders of their classes")
    if level == 1 and any(len(above) > 2 for above in places.values()):
        yield (f"warning: the classes are {_listed(map(shown, tops))}, with the splits in them; folders below the "
               "splits are no classes")
    if odd := {folder for above in places.values() for folder in above if UNREADABLE.search(folder)}:
        yield (f"warning: the names of these folders hold control characters, which are written as escapes: "
               f"{_listed(map(shown, odd))}; rename them if that is a mistake")


def _listed(names) -> str:
    names = sorted(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _from_table(root: Path, params: Params, notes: list[str]) -> tuple[list[_Recording], list[Entry]]:
    rows, found = read_table(root, params.folder), {}
    for row in rows:
        found.setdefault(row.clip, _Recording(row.path, row.label, row.split, row.group)).rows.append(row)
    names = {row.path: None for row in rows}
    if others := unread(root / params.folder.table, params.folder):
        notes.append(f"columns of {params.folder.table} that nothing reads: {_listed(others)}")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        notes.append(f"warning: {len(missing)} files of {params.folder.table} are not in {root}: {_listed(missing)}")
    aside = []
    for entry in walk(root):
        if entry.name == normpath(params.folder.table):
            aside.append(replace(entry, reason="the table"))
        elif entry.name not in names:
            aside.append(replace(entry, reason=entry.reason or "not in the table"))
    return list(found.values()), aside


def _suffix(name: str) -> str:
    suffix = splitext(name)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ""


def _clips(recording: _Recording, root: Path, span: str, longest: int, overlap: float) -> Iterator[Own]:
    """The clips that a recording becomes. Raises UserError for an event in a part that is not read."""
    length, name = recording.look.seconds, recording.name
    stem = name.removesuffix(splitext(name)[1])
    key = safe_key(stem, identity=name)
    made = Own(key=key, path=f"clips/{key}{_suffix(name)}", label=recording.label, split=recording.split,
               start=0.0, end=WHOLE, source=shown(recording.group), seconds=length, file=str(root / name))
    if recording.look.reason:
        made = replace(made, status="failed", reason=_failure(recording.look.reason))
    for begin, seconds, rows in _spans(recording, span, longest, overlap):
        one = made
        if begin is not None:
            place = f"{round(begin * 1000):08d}-{round((begin + seconds) * 1000):08d}"
            one = replace(made, key=f"{key}-{place}", begin=begin, seconds=round(seconds, 3))
        try:
            if made.status == "ok":
                _check_times(rows, span, begin or 0.0, length, longest)
        except Failed as failed:
            yield replace(one, status="failed", reason=str(failed))
            continue
        yield _with_events(one, rows, begin or 0.0, seconds if begin is not None else 0.0)


def _failure(reason: str) -> str:
    if reason == "no such file":
        return f"{PERMANENT}: {reason}"
    return f"{CONTENT}: {reason if reason in REASONS or reason.startswith('too short') else 'not media'}"


def _spans(recording: _Recording, span: str, longest: int, overlap: float
           ) -> Iterator[tuple[float | None, float, list[Row]]]:
    """(begin, seconds, rows) of each clip of a recording; begin is None where the clip is the file."""
    length = recording.look.seconds
    if span == "table":
        _, begin, to = recording.rows[0].clip
        end = min(length or to or longest, to or length or longest)
        yield (None if begin is to is None else begin or 0.0), max(end - (begin or 0.0), 0.0), recording.rows
    elif span == "windows" and length > longest + REST:
        step, last = longest - overlap, length - longest
        count = int((last - REST) // step) + 1
        for begin in [*(number * step for number in range(count)), last]:  # the last one ends where the recording ends
            yield round(begin, 3), float(longest), recording.rows
    else:
        yield None, length, recording.rows


def _check_times(rows: list[Row], span: str, begin: float, length: float, longest: int) -> None:
    """Raise Failed for times beyond the end of the recording, UserError for those in a part that is not read."""
    for row in rows:
        late = [f"{name} {time:g} s" for name, time, latest in (
            ("to", row.to, length + SLACK), ("end", row.end, length + SLACK), ("start", row.start, length - 1e-3),
            ("from", row.begin, length - SHORTEST)) if time is not None and time > latest]
        if length and late:
            raise Failed(CONTENT, f"{row.where}: {late[0]}, but the recording ends at {length:g} s")
        event = [time - begin for time in (row.start, row.end) if time is not None]
        if span != "windows" and event and (max(event) > longest + SLACK or (row.start or 0.0) - begin >= longest):
            raise UserError(f"{row.where}: the event goes on to {max(event) + begin:g} s, but of each clip the first "
                            f"{longest} s are read (clip_seconds); expected folder.span: windows, or table with from "
                            "and to")


def _with_events(clip: Own, rows: list[Row], begin: float, seconds: float) -> Own:
    """The clip with the events of its rows, in its own seconds; `seconds` is 0 where it is the whole file."""
    if all(row.start is row.end is None for row in rows):
        return clip if not rows else replace(clip, label=rows[0].label)
    found = []
    for row in rows:
        start = max((row.start or 0.0) - begin, 0.0)
        end = WHOLE if row.end is None else row.end - begin
        if seconds and end >= seconds:
            end = WHOLE if not start else seconds
        if start < end and (not seconds or start < seconds) or not seconds and row.start == row.end:
            found.append((row.label, round(start, 3), round(end, 3)))
    if not found:
        return replace(clip, start=0.0, end=0.0)
    (label, start, end), *others = found
    return replace(clip, label=label, start=start, end=end, events=tuple(others))


def _tell_of_length(made: list[Own], taken: list[_Recording], longest: int, span: str, notes: list[str]) -> None:
    if span == "windows":
        cut = {clip.path for clip in made if clip.begin is not None}
        if cut:
            count = sum(clip.begin is not None for clip in made)
            notes.append(f"{len(cut)} recordings are cut into {count} clips of {longest} s")
    elif longer := sum(clip.seconds > longest + SLACK for clip in made if clip.status == "ok"):
        notes.append(f"{longer} of {len(made)} clips are longer than {longest} s: only the first {longest} s of each "
                     "are read (folder.span: windows takes all)")


def _split(taken: list[_Recording], span: str, longest: int, params: Params, notes: list[str]) -> None:
    """Give every recording without a split one that the shares in params.yaml ask for, its group in one piece."""
    settings = params.folder
    open_ = [recording for recording in taken if not recording.split]
    given = {recording.split for recording in taken}
    shares = {"val": settings.val_share, "test": settings.test_share}
    if not open_:  # of given splits one may be missing
        shares = {split: share for split, share in shares.items() if split not in given and share}
        open_ = [recording for recording in taken if recording.split == "train"] if shares else []
    follow = {recording.group: recording.split for recording in taken if recording.split and recording not in open_}
    groups: dict[str, Counter] = defaultdict(Counter)
    for recording in open_:
        if not recording.look.reason and recording.group not in follow:
            for _, _, rows in _spans(recording, span, longest, settings.overlap):
                named = {row.label for row in rows} or {recording.label}
                groups[recording.group].update(
                    {part for label in named for part in (label.split(SEVERAL) if settings.table else [label])})
    chosen = share_out(groups, val=shares.get("val", 0), test=shares.get("test", 0)) | follow
    for recording in open_:
        recording.split = chosen.get(recording.group) or choose_split(
            recording.group, val=shares.get("val", 0), test=shares.get("test", 0))
    if "train" in given and (lacking := [split for split in shares if split not in given]):
        for split in lacking:
            count = sum(recording.split == split for recording in open_)
            notes.append(f"no clip is given as {split}: {count} of {len(open_)} in train are held out for it "
                         f"(folder.{split}_share)")
