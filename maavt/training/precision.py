"""How well pairs with several labels are told, whatever the threshold. N pairs or clips, C classes.

The ten lines of scikit-learn's average_precision_score that this takes; a package for them would be the largest here.
"""

import numpy as np


def average_precisions(labelled: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of pairs with labels (N, C), 0 or 1, and scores (N, C), the average precision of each class (C,): the mean, over
    its pairs, of the share of its pairs among those with that score or more. NaN of a class without any."""
    found = np.full(labelled.shape[1], np.nan)
    for number, (own, score) in enumerate(zip(labelled.T, scores.T, strict=True)):
        order = np.argsort(-score, kind="stable")
        last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # equal scores count together
        hits = np.cumsum(own[order])[last]
        if hits[-1]:
            found[number] = (hits / (last + 1) * np.diff(hits, prepend=0)).sum() / hits[-1]
    return found


def mean_average_precision(labelled: np.ndarray, scores: np.ndarray) -> float:
    """The mean of these over the classes that have pairs (as AudioSet is measured)."""
    found = average_precisions(labelled, scores)
    return float(np.nanmean(found)) if np.isfinite(found).any() else 0.0


def standard_error(right: np.ndarray, clips: np.ndarray) -> float:
    """The standard error of the share of right samples (N,), by clips (N,): samples of one clip depend on one another
    (cluster-robust, as for a ratio of sums)."""
    if not len(right):
        return 0.0
    _, clip = np.unique(clips, return_inverse=True)
    excess = np.bincount(clip, right) - right.mean() * np.bincount(clip)
    few = len(excess) / max(len(excess) - 1, 1)
    return float((few * (excess**2).sum()) ** 0.5 / len(right))


def bootstrap_error(labelled: np.ndarray, scores: np.ndarray, clips: np.ndarray, resamples: int = 50) -> float:
    """The standard error of the mean average precision of N samples (N, C), by a bootstrap over their clips (N,)."""
    rng, own = np.random.default_rng(0), [np.flatnonzero(clips == clip) for clip in np.unique(clips)]
    drawn = ([own[number] for number in rng.integers(len(own), size=len(own))] for _ in range(resamples))
    found = [mean_average_precision(labelled[rows], scores[rows]) for rows in map(np.concatenate, drawn)]
    return float(np.std(found, ddof=1))
