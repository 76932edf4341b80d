from statistics import NormalDist

import numpy as np
import pytest

from maavt.measure.scores import (
    by_clip,
    calibration,
    calibration_error,
    effective,
    lead,
    macro_recall,
    reach,
    share_interval,
    student,
)


def each(count: int) -> list[str]:
    """Groups of one pair each."""
    return [str(number) for number in range(count)]


def test_student_is_the_tables_of_textbooks():
    tables = {1: 12.706, 2: 4.303, 3: 3.182, 10: 2.228, 30: 2.042, 1e6: 1.960}
    assert {df: round(reach(df), 3) for df in tables} == tables
    values, area = student(2)
    assert np.interp([0, 1, 4.303, 9.925], values, area) == pytest.approx([0, 3**-0.5, 0.95, 0.99], abs=1e-4)
    assert values[0] == area[0] == 0 and (np.diff(area) >= 0).all() and area[-1] == 1


def test_the_interval_of_independent_pairs_is_wilsons():
    assert share_interval([1] * 8 + [0] * 2, each(10)) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share_interval([1] * 320 + [0] * 80, each(400)) == pytest.approx((0.7580, 0.8363), abs=1e-4)


def test_all_right_is_no_certainty():
    low, high = share_interval([True] * 32, each(32))
    assert (low, high) == (pytest.approx(1 / (1 + 1.959964**2 / 32)), pytest.approx(1))  # 0.893
    assert high <= 1
    assert share_interval([False] * 32, each(32)) == pytest.approx((0, 1 - low))
    assert share_interval([False] * 32, each(32))[0] >= 0


def test_of_pairs_that_are_all_right_each_group_counts_as_one():
    assert effective(np.ones(320), np.repeat(each(32), 10))[0] == pytest.approx(32)
    low, _ = share_interval([True] * 320, np.repeat(each(32), 10))
    assert 0.87 < low < share_interval([True] * 32, each(32))[0]
    assert effective(np.ones(12), ["a"] * 9 + ["b"] * 2 + ["c"])[0] == pytest.approx(12**2 / (81 + 4 + 1))


def test_pairs_of_a_group_that_are_right_or_wrong_together_count_as_one():
    right = np.repeat(np.arange(40) % 5 > 0, 10)
    pairs, errors = effective(right.astype(float), np.repeat(each(40), 10))
    assert pairs == pytest.approx(39 * 400 / 399, rel=1e-3)
    assert errors == pytest.approx(1.959964 * 2.0227 / 1.9659, rel=1e-3)
    low, high = share_interval(right, np.repeat(each(40), 10))
    alone = share_interval(right, each(400))
    assert high - low == pytest.approx(10**0.5 * (alone[1] - alone[0]), rel=0.1)


def test_pairs_of_a_group_that_are_not_alike_count_each():
    right = np.tile([True] * 8 + [False] * 2, 40)  # the same share in every group
    assert effective(right.astype(float), np.repeat(each(40), 10))[0] == pytest.approx(400 * 81 / (80 + 10))
    assert effective(right.astype(float), each(400)) == (pytest.approx(400), pytest.approx(1.959964))


def test_one_wrong_pair_says_little_of_how_alike_the_pairs_of_a_group_are():
    right = np.arange(320) > 0
    assert effective(right.astype(float), np.repeat(each(32), 10))[0] == pytest.approx(2 * 320 / (10 + 1), rel=0.01)


def test_a_single_group_tells_as_much_as_one_pair():
    assert effective(np.array([1.0, 0, 1]), ["a"] * 3) == (1, pytest.approx(1.96, abs=1e-3))
    low, high = share_interval([True] * 50, ["a"] * 50)
    assert (low, high) == (pytest.approx(0.2065, abs=1e-3), pytest.approx(1))


def covered(groups: int, size: int, alike: float, share: float, times: int = 400) -> float:
    """How often the interval holds the true share, where pairs of a group are correlated."""
    rng, held = np.random.default_rng(0), 0
    edge, names = NormalDist().inv_cdf(share), np.repeat(each(groups), size)
    for _ in range(times):
        hidden = alike**0.5 * rng.normal(size=(groups, 1)) + (1 - alike) ** 0.5 * rng.normal(size=(groups, size))
        low, high = share_interval((hidden < edge).ravel(), names)
        held += low <= share <= high
    return held / times


@pytest.mark.parametrize(("groups", "alike", "share"), [(40, 0, 0.8), (40, 0.5, 0.8), (40, 0.9, 0.95), (8, 0.6, 0.7)])
def test_the_interval_holds_the_true_share_in_95_of_100_cases(groups, alike, share):
    assert 0.92 <= covered(groups, 10, alike, share) <= 0.99


def runs(rng: np.random.Generator, accuracy: float, seeds: int, scatter: float, hard: np.ndarray) -> np.ndarray:
    """What is right of clips, some of which are hard for every model, by training runs that scatter."""
    reached = [NormalDist().inv_cdf(float(np.clip(accuracy + scatter * rng.normal(), 0.01, 0.99)))
               for _ in range(seeds)]
    return (hard + rng.normal(size=(seeds, len(hard)))) / 2**0.5 < np.array(reached)[:, None]


def ahead(seeds: tuple[int, int], scatter: tuple[float, float], gain: float = 0.0, times: int = 200) -> float:
    """How often one of two models is said to be ahead on 300 clips."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(times):
        hard = rng.normal(size=300)
        said = lead(runs(rng, 0.8 + gain, seeds[0], scatter[0], hard), runs(rng, 0.8, seeds[1], scatter[1], hard),
                    each(300))
        found += said.low > 0 or said.high < 0
        assert (said.p < 0.05) == (said.low > 0 or said.high < 0)
    return found / times


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (5, 5), (3, 1)])
def test_of_two_equal_models_whose_seeds_scatter_one_is_ahead_in_at_most_7_of_100_comparisons(seeds):
    assert ahead(seeds, (0.025, 0.025)) <= 0.07


def test_models_that_scatter_unlike_are_not_ahead_more_often():
    assert ahead((3, 3), (0.05, 0)) <= 0.1
    assert ahead((3, 3), (0, 0)) <= 0.07


def test_a_model_that_is_better_is_ahead():
    assert ahead((3, 3), (0.025, 0.025), gain=0.1) >= 0.7
    assert ahead((5, 5), (0.025, 0.025), gain=0.08) >= 0.85
    assert ahead((3, 3), (0, 0), gain=0.08) >= 0.85
    assert ahead((1, 1), (0, 0), gain=0.1) >= 0.8


def test_with_one_run_each_the_lead_counts_clips_as_bonett_and_price_do():
    first, second = [[1] * 30 + [0] * 10 + [1] * 60], [[0] * 10 + [1] * 30 + [1] * 60]  # 10 against 10
    found = lead(first, second, each(100))
    half = 1.959964 * ((22 / 102) / 102) ** 0.5
    assert (found.mean, found.low, found.high) == (0, pytest.approx(-half, rel=1e-3), pytest.approx(half, rel=1e-3))
    assert found.p == 1
    found = lead([[1] * 9 + [0] * 91], [[0] * 100], each(100))
    middle, spread = 9 / 102, ((11 / 102 - (9 / 102) ** 2) / 102) ** 0.5
    assert found.mean == 0.09
    assert (found.low, found.high) == pytest.approx((middle - 1.96 * spread, middle + 1.96 * spread), rel=1e-3)
    assert found.p == pytest.approx(2 * NormalDist().cdf(-middle / spread), rel=1e-2)


def test_models_that_are_right_on_the_same_clips_may_yet_differ():
    found = lead([[1] * 32], [[1] * 32], each(32))
    assert found.mean == 0 and found.low == -found.high and 0.05 < found.high < 0.1


def test_pairs_of_a_group_that_differ_together_make_the_lead_less_sure():
    first, second = np.repeat([[1, 1, 1, 0] * 10], 10, axis=1), np.repeat([[1, 0, 0, 1] * 10], 10, axis=1)
    apart, together = lead(first, second, each(400)), lead(first, second, np.repeat(each(40), 10))
    assert apart.mean == together.mean == 0.25
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(10**0.5, rel=0.1)


def test_seeds_count_beside_clips():
    """Runs of accuracies that are known, with errors on clips of their own: by hand."""
    first = np.ones((2, 100))
    first[0, :10] = first[1, 10:30] = 0  # 0.9 and 0.8
    second = np.ones((2, 100))
    second[0, 30:60] = second[1, 60:80] = 0  # 0.7 and 0.8
    found = lead(first, second, each(100))
    assert found.mean == pytest.approx(0.1)
    by_seed = (0.005 + 0.005) / 2  # the variance of the runs of either model, over two runs, of both
    squares = (80 * 0.5**2 + 2) / 102  # of the mean differences, which are 1/2 in either direction, with one pair more
    by_clip = (squares - (10 / 102) ** 2) / 102
    shared = 0
    for own in (first, second):  # what a pair adds to the variance over seeds
        deviations = (own - own.mean(1, keepdims=True)) / 100
        shared += (deviations.var(0, ddof=1).sum() / 2) * 100 / 99
    rest = max(by_clip - shared, 0)
    df = (by_seed + rest) ** 2 / (by_seed**2 / 2)
    half = reach(df) * (by_seed + rest) ** 0.5
    assert (found.low, found.high) == pytest.approx((10 / 102 - half, 10 / 102 + half), rel=1e-6)


def test_the_calibration_error_is_how_far_probabilities_are_from_the_share_that_is_right():
    assert calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0)
    assert calibration_error([1.0] * 4, [True, False] * 2) == 0.5
    assert calibration_error([0.9] * 5 + [0.3] * 5, [True] * 5 + [False] * 5) == pytest.approx((0.1 + 0.3) / 2)
    assert calibration_error([], []) == 0


def test_the_reliability_curve_has_fifteen_bins_of_which_the_last_holds_certainty():
    found = calibration([1.0, 0.95, 0.01, 0.5, 0.52], [True, False, False, True, False])
    assert found == [(pytest.approx(0.01), 0, 1), (pytest.approx(0.51), 0.5, 2), (pytest.approx(0.975), 0.5, 2)]
    assert len(calibration(np.linspace(0, 1, 1000), [True] * 1000)) == 15


def test_each_class_counts_the_same_in_the_macro_recall_and_absent_ones_do_not():
    assert macro_recall([0] * 8 + [2] * 2, [0] * 8 + [1, 2]) == 0.75


def test_a_clip_is_the_class_of_the_greatest_mean_probability_wherever_its_pairs_stand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]], np.float32)
    first, second = by_clip(["a", "b", "a", "a"], [1, 0, 1, 1], probabilities, ["x", "y", "x", "x"])
    assert (first.key, first.group, first.label, first.pairs) == ("a", "x", 1, 3)
    assert first.predicted == 0  # though two of three pairs say 1
    assert first.probability == pytest.approx(1.6 / 3) and first.classes == pytest.approx([1.6 / 3, 1.4 / 3])
    assert (second.key, second.label, second.predicted, second.pairs) == ("b", 0, 1, 1)
    assert second.group == "y"
    assert not first.right and not second.right
    assert by_clip(["a"], [(0, 1)], np.array([[0.2, 0.8]]), ["x"])[0].right  # one of several labels
