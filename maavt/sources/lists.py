"""What the data sets have in common: lists as their authors publish them, and splits that never change.

The lists in this folder are the published ones in a plain form: classes in their fixed order, clips in the order of
the publication.
"""

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from maavt.clips import SPLITS, Clip
from maavt.errors import UserError

WHOLE = 3600.0  # end of the event, in seconds, where a label is that of the whole clip
LONGEST_KEY = 80  # characters; a key is a part of file names
# A file with such a name is meant to be a clip, and listed as failed where it is none. In a folder of one's own any
# other is a clip, too, if it has picture and sound.
SUFFIXES = {f".{name}" for name in (
    "3g2 3gp asf avi divx dv f4v flv insv lrv m2t m2ts m2v m4v mk3d mkv mod mov mp4 mpe mpeg mpg mts mxf ogv qt rm "
    "rmvb tod ts vob webm wmv").split()}
SPLIT_NAMES = {"train": "train", "val": "val", "test": "test", "training": "train", "valid": "val",
               "validation": "val", "dev": "val", "testing": "test", "eval": "test", "trn": "train", "validate": "val",
               "development": "val", "tst": "test", "evaluation": "test"}  # what people call them
BESIDE = ("audio audios clip clips data dataset datasets example examples file files folder frames list media new part "
          "partition sample samples set sets split splits subset v video videos").split()  # words that say nothing more
_WORDS = "|".join(sorted([*SPLIT_NAMES, *BESIDE], key=len, reverse=True))


def packaged(name: str) -> Path:
    """A list that comes with the package."""
    return Path(__file__).with_name(name)


def read_classes(name: str) -> tuple[str, ...]:
    """The classes of a packaged list, one per line."""
    return tuple(packaged(name).read_text().splitlines())


def read_packaged(name: str) -> Iterator[dict[str, str]]:
    """The rows of a packaged list."""
    with open(packaged(name), newline="") as file:
        yield from csv.DictReader(file)


def read_rows(path: Path, columns: int, **dialect) -> Iterator[tuple[str, list[str]]]:
    """(where, row) for the rows of a published list without a header; blank lines do not count.

    Raises UserError when the file is missing, is no text, or a row has another number of columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in (lines := csv.reader(file, **dialect)):
                where = f"{path}, line {lines.line_num}"
                if len(row) not in (0, columns):
                    raise UserError(f"{where}: {row!r} has {len(row)} columns; expected {columns}. Is it the file "
                                    "that the authors publish?")
                if row:
                    yield where, row
    except FileNotFoundError:
        raise UserError(f"no {path}; expected the list as the authors publish it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a list as the authors publish it ({error})") from None


def each_once(rows: Iterable[tuple[str, str, tuple]]) -> Iterator[tuple]:
    """The facts of (where, name of the clip, facts), the first of those that are there twice.

    Raises UserError where a later one says something else of the clip.
    """
    first: dict[str, tuple[str, tuple]] = {}
    for where, name, facts in rows:
        line, earlier = first.setdefault(name, (where, facts))
        if facts != earlier:
            raise UserError(f"{where}: {name} with {facts}, but with {earlier} in {line}; expected each clip once. "
                            "Remove the row that is wrong")
        if line == where:
            yield facts


def number(text: str, where: str) -> float:
    """A time in seconds; raises UserError that says where it stands."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e7:
        raise UserError(f"{where}: {text!r} is no time in seconds; expected a number from 0"
                        + (" with a point, not a comma" if "," in text else ""))
    return value


def video_id(text: str, where: str) -> str:
    """The id of a video, if it is one; else raises UserError. It becomes a part of file names."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", text):
        raise UserError(f"{where}: {text!r} is no YouTube id; expected letters, digits, - and _")
    return text


def check_label(label: str, classes: Iterable[str], where: str) -> str:
    """The label, if it is one of the classes; else raises UserError."""
    if label not in classes:
        raise UserError(f"{where}: there is no class {label!r}; expected one of the data set's own")
    return label


def annotations_folder(folder: Path, dataset: str) -> Path:
    """The data set's own folder of published lists below `folder`, or `folder` itself."""
    return folder / dataset if (folder / dataset).is_dir() else folder


def fraction(name: str) -> float:
    """A number from 0 to 1 that depends on the name alone, the same everywhere and for ever."""
    digest = hashlib.sha256(f"maavt {name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def choose_split(name: str, *, val: float, test: float = 0.0) -> str:
    """The split of a clip, or of a group of clips that must stay together, by its name alone."""
    place = fraction(name)
    return "test" if place < test else "val" if place < test + val else "train"


def split_of(name: str, shared: Iterable[str] = ()) -> str:
    """The split that a folder's name means, as "01_train", "TrainSet" or "validation-split" do; "" for any other name.

    Words in `shared`, which all folders beside it have, too, say nothing.
    """
    words = words_of(name)
    named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return named.pop() if len(named) == 1 and not words - {*SPLIT_NAMES, *BESIDE, *shared} else ""


def words_of(name: str) -> set[str]:
    """The words in a name: runs of letters, and those written without a space that are known ("trainset")."""
    found = set()
    for run in re.findall(r"[^\W\d_]+", name.lower()):
        found.update(re.findall(_WORDS, run) if re.fullmatch(f"(?:{_WORDS})+", run) else [run])
    return found


def safe_key(text: str, identity: str | None = None) -> str:
    """A key that is safe in file names, in tars and on command lines, as unique as the text (or as `identity`)."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
    if identity is not None or plain != text or not plain[:1].isalnum() or len(plain) > LONGEST_KEY:
        digest = hashlib.sha256((identity or text).encode(errors="surrogateescape")).hexdigest()[:8]
        plain = f"{plain.strip('-_')[: LONGEST_KEY - 9] or 'clip'}-{digest}"
    return plain


def warnings(clips: Iterable[Clip]) -> Iterator[str]:
    """A line for every two splits that share sources, and are thus not independent, with their names."""
    sources = defaultdict(set)
    for clip in clips:
        sources[clip.split].add(clip.source)
    for number, first in enumerate(SPLITS):
        for second in SPLITS[number + 1 :]:
            if shared := sorted(sources[first] & sources[second]):
                names = ", ".join(shared[:20]) + (f" and {len(shared) - 20} more" if len(shared) > 20 else "")
                noun = "source is" if len(shared) == 1 else "sources are"
                yield f"{len(shared)} {noun} in both {first} and {second}: {names}"
