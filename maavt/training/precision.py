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
