"""VGGSounder (Zverev et al., ICCV 2025): VGGSound's test clips, labelled anew with all that they show.

Each label says which sense tells it: hearing (A), sight (V) or both (AV). The numbers are those of the benchmark in
the authors' package, for the one best class (there: @1) that a model takes a clip for, given both modalities or one.
"""

import csv
import io
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from maavt.fetch.wheel import read_wheel

VERSION = "1.0"
PACKAGE_SHA256 = "c5d9dadcbad8a23379c0f977d96b6a14c627f623933f20185f4431c0eeb5537a"
MEMBER = "vggsounder/data/vggsounder+background-music.csv"  # all clips, as the benchmark takes them
SUBSETS = {"av": ("av", ("AV",)), "a": ("a", ("A", "AV")), "v": ("v", ("V", "AV")),  # input, kinds of labels
           "a_only": ("a", ("A",)), "v_only": ("v", ("V",))}

Labels = dict[str, dict[str, str]]  # clip -> label -> A, V or AV


def read_labels() -> Labels:
    """The labels that the package on PyPI carries; raises UserError where it cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        table = read_wheel(f"vggsounder=={VERSION}", PACKAGE_SHA256, MEMBER, Path(folder),
                           otherwise="set evaluate.vggsounder: false")
    labels = defaultdict(dict)
    for row in csv.DictReader(io.StringIO(table.decode())):
        labels[row["video_id"]][row["label"]] = row["modality"]
    return dict(labels)


def score(labels: Labels, said: dict[str, dict[str, str]], classes: Sequence[str]) -> dict[str, float | str]:
    """The numbers, over the clips in `said`: input (av, a, v) -> clip -> the class that the model takes it for.

    Each of SUBSETS counts the clips that have such labels. confusion_INPUT is the share of all clips that one input
    alone gets right (av: each one alone) where both together do not.
    """
    found = {"vggsounder": VERSION, "vggsounder_clips": len(labels.keys() & said["av"].keys())}
    for subset, (given, kinds) in SUBSETS.items():
        truth = {clip: {label for label, kind in own.items() if kind in kinds} for clip, own in labels.items()}
        pairs = [(wanted, said[given][clip]) for clip, wanted in truth.items() if wanted and clip in said[given]]
        found |= {f"vggsounder_{name}_{subset}": value for name, value in _compare(pairs, classes).items()}
    clips = [clip for clip in labels if all(clip in own for own in said.values())]
    av, a, v = ([said[given][clip] in labels[clip] for clip in clips] for given in ("av", "a", "v"))
    for given, alone in (("a", a), ("v", v), ("av", [x and y for x, y in zip(a, v, strict=True)])):
        confused = sum(one and not both for one, both in zip(alone, av, strict=True))
        found[f"vggsounder_confusion_{given}"] = confused / max(len(clips), 1)
    return found


def _compare(pairs: list[tuple[set[str], str]], classes: Sequence[str]) -> dict[str, float]:
    """Of (labels, the one prediction) of each clip: micro averages, but for f1_macro."""
    hits, wanted, given = Counter(), Counter(), Counter()
    for labels, prediction in pairs:
        wanted.update(labels)
        given[prediction] += 1
        hits[prediction] += prediction in labels
    right, labelled, clips = hits.total(), wanted.total(), max(len(pairs), 1)
    return {
        "hit_rate": right / clips,
        "accuracy": sum(labels == {prediction} for labels, prediction in pairs) / clips,
        "f1": 2 * right / max(labelled + len(pairs), 1),
        "f1_macro": sum(2 * hits[c] / max(wanted[c] + given[c], 1) for c in classes) / len(classes),
        "jaccard": right / max(labelled + len(pairs) - right, 1),
    }
