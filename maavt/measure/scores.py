"""How good predictions are, and how sure that is. N pairs, K clips, C classes.

Pairs of one group (a recording, a speaker, or what folder.group names) are alike and tell less than as many of
different groups. So the intervals go by the effective number of pairs (Kish, Survey Sampling, 1965): that many
independent pairs would tell as much.

In NumPy: the few lines that these numbers take are fewer than what calls of SciPy and scikit-learn would need around
them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

LEVEL = 0.95  # of all intervals
NORMAL = 1.959964  # standard deviations to either side of the mean in which a normal variable is in LEVEL of all cases
MANY = 1e6  # degrees of freedom, with which Student's t is normal
BINS = 15  # of the calibration error (Guo et al., ICML 2017)


def student(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Student's t with `df` degrees of freedom as a table: values, and the probability of being less far from 0."""
    values = np.sinh(np.linspace(0, 20, 4001))
    density = np.exp(-(df + 1) / 2 * np.log1p(values**2 / df))
    area = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(values)))
    return values, area / area[-1]


@lru_cache
def reach(df: float) -> float:
    """How far from 0 Student's t is in LEVEL of all cases at most."""
    values, area = student(df)
    return np.interp(LEVEL, area, values).item()


def effective(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """The effective number of pairs, given a value of each pair (N,) and its group, and how many standard errors an
    interval of their mean reaches to either side.

    It is N over the design effect: the variance of the mean over that of independent pairs, as Korn and Graubard
    (Survey Methodology, 1998) estimate it from the sums of the groups. Where few values differ from the others the
    estimate says little, so it is averaged with the worst case, that all pairs of a group are the same, which counts as
    much as one such value: of pairs that are all right, each group counts as one.
    """
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    pairs, count = len(values), len(sizes)
    if count == 1:
        return 1.0, NORMAL
    sums = np.bincount(place, values - values.mean())
    grouped, independent = (sums**2).sum() * count / (count - 1), values.var() * pairs**2 / (pairs - 1)
    design = max(grouped / independent, 1.0) if independent else 1.0
    others = pairs - np.unique(values, return_counts=True)[1].max()
    design = (others * design + (sizes**2).sum() / pairs) / (others + 1)
    return pairs / design, NORMAL * reach(count - 1) / reach(pairs - 1)


def share_interval(right: Sequence[bool], groups: Sequence[str]) -> tuple[float, float]:
    """The 95 % interval of the share of right pairs (N,): Wilson's (1927), by the effective number of pairs."""
    right = np.asarray(right, float)
    pairs, errors = effective(right, groups)
    share, extra = right.mean().item(), errors**2 / pairs
    half = math.sqrt(extra * (share * (1 - share) + extra / 4))
    low, high = ((share + extra / 2 + side * half) / (1 + extra) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class Lead:
    """How much more often one model is right than another, the 95 % interval, and the probability of a lead so far from
    0, or farther, if both were equally good."""

    mean: float
    low: float
    high: float
    p: float


def lead(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], groups: Sequence[str]) -> Lead:
    """The lead of the first model over the second, given what is right of the same N pairs in each of its training
    runs, (runs, N), which have a seed each.

    Two things are drawn by chance: seeds, and test clips. The variance of the lead is that over seeds, plus that over
    groups of clips of the mean over seeds, less what both hold (Cameron, Gelbach and Miller, JBES 2011), and at least
    that over groups. Seeds are taken to scatter alike in both models, and not to be paired: that one number seeds both
    makes no run of one model like a run of the other. Student's t, with the degrees of freedom of Satterthwaite
    (Biometrics 1946), allows for how little few seeds tell of their scatter. A bootstrap would not: of three seeds it
    finds two thirds of the variance. Clips count as in Bonett and Price (JEBS 2012), which allows for too few pairs on
    which the models differ. With one run of each model the lead is that of these two runs, not of the models.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    difference = first.mean(0) - second.mean(0)
    pairs, errors = effective(difference, groups)
    mean = difference.mean() * pairs / (pairs + 2)  # as if each model were ahead on one pair more
    over_clips = (((difference**2).mean() * pairs + 2) / (pairs + 2) - mean**2) / (pairs + 2) * (errors / NORMAL) ** 2
    free = len(first) + len(second) - 2
    over_seeds = shared = 0.0
    if free:
        _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        sums = [np.stack([np.bincount(place, run - run.mean()) / len(run) for run in own]) for own in (first, second)]
        runs = 1 / len(first) + 1 / len(second)
        over_seeds = _squares(first.mean(1), second.mean(1)) / free * runs
        shared = _squares(*sums) / free * runs * len(sizes) / max(len(sizes) - 1, 1)
    rest = max(over_clips - shared, 0.0)
    variance = max(over_seeds + rest, over_clips)
    df = min(free * (1 + rest / over_seeds) ** 2, MANY) if over_seeds else MANY
    values, area = student(df)
    half = np.interp(LEVEL, area, values) * math.sqrt(variance)
    chance = 1 - np.interp(abs(mean) / math.sqrt(variance), values, area)
    return Lead(difference.mean().item(), (mean - half).item(), (mean + half).item(), chance.item())


def _squares(*runs: np.ndarray) -> float:
    """The sum of the squared deviations of the runs of each model from their mean."""
    return sum(((own - own.mean(0)) ** 2).sum() for own in runs)


def calibration(probability: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float, int]]:
    """The reliability curve: of each of the BINS bins that is not empty the mean stated probability, the share that is
    right, and the number of pairs."""
    probability, right = np.asarray(probability, float), np.asarray(right, float)
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [(probability[own].mean().item(), right[own].mean().item(), int(own.sum()))
            for bin_ in range(BINS) if (own := number == bin_).any()]


def calibration_error(probability: Sequence[float], right: Sequence[bool]) -> float:
    """The expected calibration error: how far the stated probability of a prediction is from how often it is right,
    in the bins of calibration(), on average over pairs (N,)."""
    return sum(pairs * abs(stated - told) for stated, told, pairs in calibration(probability, right)) / max(
        len(right), 1)


def macro_recall(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """The mean over classes, of those that occur as a label, of the share that is told: each class counts the same."""
    labels, right = np.asarray(labels), np.equal(labels, predicted)
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


@dataclass(frozen=True)
class ClipScore:
    """What the pairs of a clip come to: the class with the greatest mean probability."""

    key: str
    label: int | tuple[int, ...]
    predicted: int
    probability: float
    pairs: int
    group: str
    classes: np.ndarray | None = field(default=None, repr=False, compare=False)  # (C,) mean probabilities

    @property
    def right(self) -> bool:
        """Whether the class is the label, or one of several."""
        return self.predicted in (self.label if isinstance(self.label, tuple) else (self.label,))


def by_clip(keys: Sequence[str], labels: Sequence[int | tuple[int, ...]], probabilities: np.ndarray,
            groups: Sequence[str]) -> list[ClipScore]:
    """Of pairs with probabilities (N, C), their K clips in order; all pairs of a clip have its label and group."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    found = []
    for key, own in places.items():
        mean = probabilities[own].mean(0)
        best = mean.argmax().item()
        found.append(ClipScore(key, labels[own[0]], best, mean[best].item(), len(own), groups[own[0]], mean))
    return found
