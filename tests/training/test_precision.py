import numpy as np
import pytest

from maavt.training.precision import average_precisions, bootstrap_error, mean_average_precision, standard_error


def test_the_average_precision_of_each_class_is_the_one_computed_by_hand_and_of_a_class_without_pairs_there_is_none():
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]])
    scores = np.array([[0.9, 0.8, 0.1], [0.8, 0.7, 0.2], [0.7, 0.6, 0.3], [0.1, 0.5, 0.4]])
    # first class: pairs 1 and 3 of the ranking are its own: (1/1 + 2/3) / 2; second: 2, 3 and 4: (1/2 + 2/3 + 3/4) / 3
    expected = [(1 + 2 / 3) / 2, (1 / 2 + 2 / 3 + 3 / 4) / 3]
    assert average_precisions(labels, scores)[:2] == pytest.approx(expected)
    assert np.isnan(average_precisions(labels, scores)[2])
    assert mean_average_precision(labels, scores) == pytest.approx(sum(expected) / 2)


def test_equal_scores_count_together_so_that_saying_the_same_of_all_is_the_share_of_pairs():
    assert mean_average_precision(np.array([[1], [0], [0], [1], [0]]), np.full((5, 1), 0.3)) == pytest.approx(2 / 5)
    assert mean_average_precision(np.zeros((2, 1)), np.ones((2, 1))) == 0


def test_it_is_that_of_scikit_learn_where_that_is_installed():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, scores = rng.random((200, 5)) < 0.3, rng.random((200, 5)).round(1)
    expected = [metrics.average_precision_score(own, score) for own, score in zip(labels.T, scores.T, strict=True)]
    assert average_precisions(labels, scores) == pytest.approx(expected)


def test_the_standard_error_counts_clips_since_samples_of_one_clip_depend_on_one_another():
    right = np.random.default_rng(0).integers(0, 2, 200)
    alone = standard_error(right, np.arange(200))
    assert alone == pytest.approx((right.mean() * (1 - right.mean()) / 200) ** 0.5, rel=0.01)
    repeated = standard_error(right.repeat(10), np.arange(200).repeat(10))  # ten equal samples per clip tell no more
    assert repeated == pytest.approx(alone)
    assert standard_error(np.zeros(0), np.zeros(0)) == 0


def test_the_bootstrap_error_of_the_mean_average_precision_does_not_shrink_with_samples_of_the_same_clips():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 3))
    scores = labels * 0.5 + rng.random((60, 3))
    alone = bootstrap_error(labels, scores, np.arange(60))
    repeated = bootstrap_error(labels.repeat(10, 0), scores.repeat(10, 0), np.arange(60).repeat(10))
    assert 0.005 < alone < 0.1 and repeated == pytest.approx(alone, rel=0.5)
