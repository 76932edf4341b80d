"""How good predictions are, and how sure that is. N pairs, K clips, C classes.

In NumPy: the few lines that these numbers take are fewer than what calls of scikit-learn would need around them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 1000
BINS = 15  # of the calibration error (Guo et al., ICML 2017)


def interval(right: Sequence[float], pairs: Sequence[int]) -> tuple[float, float]:
    """The 95 % interval of sum(right) / sum(pairs), given per clip: bootstrap over clips, whose pairs are alike."""
    right, pairs, rng = np.asarray(right, float), np.asarray(pairs, float), np.random.default_rng(0)
    drawn = (rng.integers(len(right), size=len(right)) for _ in range(RESAMPLES))
    low, high = np.quantile([right[clips].sum() / pairs[clips].sum() for clips in drawn], (0.025, 0.975))
    return low.item(), high.item()


def accuracy_interval(keys: Sequence[str], right: Sequence[bool]) -> tuple[float, float]:
    """The 95 % interval of the share of right pairs (N,), each of the clip with its key."""
    _, clip = np.unique(keys, return_inverse=True)
    return interval(np.bincount(clip, right), np.bincount(clip))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The probability of so uneven a split, or a more uneven one, of those that one of two models alone is right on
    (N,), if both were equally good: McNemar's exact test (Dietterich, Neural Computation 1998)."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    fewer, more = sorted(((first & ~second).sum().item(), (second & ~first).sum().item()))
    chances = sum(math.comb(fewer + more, count) for count in range(fewer + 1)) / 2 ** (fewer + more)
    return min(1.0, 2 * chances)


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
    classes: np.ndarray | None = field(default=None, repr=False, compare=False)  # (C,) mean probabilities

    @property
    def right(self) -> bool:
        """Whether the class is the label, or one of several."""
        return self.predicted in (self.label if isinstance(self.label, tuple) else (self.label,))


def by_clip(keys: Sequence[str], labels: Sequence[int | tuple[int, ...]], probabilities: np.ndarray) -> list[ClipScore]:
    """Of pairs with probabilities (N, C), their K clips in order; all pairs of a clip have its label."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    found = []
    for key, own in places.items():
        mean = probabilities[own].mean(0)
        best = mean.argmax().item()
        found.append(ClipScore(key, labels[own[0]], best, mean[best].item(), len(own), mean))
    return found
