import numpy as np
import pytest

from maavt.measure.scores import accuracy_interval, by_clip, calibration_error, interval, macro_recall


def test_the_interval_of_single_pairs_is_the_binomial_one():
    low, high = interval([1] * 320 + [0] * 80, [1] * 400)
    spread = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert (low, high) == (pytest.approx(0.8 - spread, abs=0.006), pytest.approx(0.8 + spread, abs=0.006))
    assert interval([1] * 320 + [0] * 80, [1] * 400) == (low, high)


def test_pairs_of_a_clip_that_are_right_or_wrong_together_make_the_interval_wider():
    keys, right = np.repeat(np.arange(40), 10).astype(str), np.repeat(np.arange(40) % 5 > 0, 10)
    low, high = accuracy_interval(keys, right)
    alone = accuracy_interval(np.arange(400).astype(str), right)
    assert high - low == pytest.approx(10**0.5 * (alone[1] - alone[0]), rel=0.15)


def test_the_interval_of_what_is_always_right_is_a_point():
    assert accuracy_interval(["a", "a", "b"], [True] * 3) == (1, 1)


def test_the_calibration_error_is_how_far_probabilities_are_from_the_share_that_is_right():
    assert calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0)
    assert calibration_error([1.0] * 4, [True, False] * 2) == 0.5
    assert calibration_error([0.9] * 5 + [0.3] * 5, [True] * 5 + [False] * 5) == pytest.approx((0.1 + 0.3) / 2)


def test_each_class_counts_the_same_in_the_macro_recall_and_absent_ones_do_not():
    assert macro_recall([0] * 8 + [2] * 2, [0] * 8 + [1, 2]) == 0.75


def test_a_clip_is_the_class_of_the_greatest_mean_probability_wherever_its_pairs_stand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]], np.float32)
    first, second = by_clip(["a", "b", "a", "a"], [1, 1, 1, 1], probabilities)
    assert (first.key, first.label, first.predicted, first.pairs) == ("a", 1, 0, 3)  # though two of three pairs say 1
    assert first.probability == pytest.approx(1.6 / 3)
    assert (second.key, second.predicted, second.pairs) == ("b", 1, 1)
