"""Differences and ratios between groups against fairlearn, published examples and simulations of what the intervals promise."""

from itertools import combinations
from math import sqrt

import fairlearn.metrics as fl
import numpy as np
import pytest

from pipeline.evaluation.intervals import difference_interval, newcombe, ratio_interval, wilson
from pipeline.fairness.parity import PARITIES, Rate, comparisons, largest_difference, rate_of, smallest_ratio

DEMO_SIZES = (170, 128, 122, 108, 99)


def shares(**counts: tuple[int, int]) -> dict[str, tuple[Rate]]:
    return {name: (Rate(*pair),) for name, pair in counts.items()}


def test_two_groups_have_newcombes_interval() -> None:
    """Newcombe 1998, table II, example (a): 56/70 - 48/80, method 10 gives 0.0524 to 0.3339."""
    found = largest_difference(shares(low=(48, 80), high=(56, 70)), 0.95)
    assert found["between"] == ["high", "low"]
    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found["n"] == 150


def test_every_pair_is_bounded_at_the_corrected_level() -> None:
    groups = {"a": (60, 100), "b": (75, 110), "c": (30, 60), "d": (150, 200)}
    for number, level in ((None, 1 - 0.05 / 6), (40, 1 - 0.05 / 40)):
        found = largest_difference(shares(**groups), 0.95, number)
        ends = [newcombe(groups[first], groups[second], level) for first, second in combinations(groups, 2)]
        assert found["high"] == pytest.approx(max(max(abs(low), abs(high)) for low, high in ends))
        assert found["low"] == pytest.approx(max(max(low, -high, 0.0) for low, high in ends))
        assert (found["value"], found["between"]) == (pytest.approx(0.25), ["d", "c"])


def test_equal_groups_may_still_differ_and_their_order_does_not_matter() -> None:
    """Newcombe's interval of 0/20 minus 0/10 reaches further below 0 than above it."""
    for groups in (shares(a=(0, 20), b=(0, 10)), shares(b=(0, 10), a=(0, 20))):
        found = largest_difference(groups, 0.95)
        assert (found["value"], found["low"]) == (0.0, 0.0)
        assert found["high"] == pytest.approx(0.2775, abs=5e-5)


@pytest.mark.parametrize("compare", [largest_difference, smallest_ratio])
def test_a_single_group_has_no_difference(compare) -> None:
    with pytest.raises(ValueError, match="'only'"):
        compare(shares(only=(1, 2)), 0.95)


def test_the_ratio_of_two_groups_by_hand() -> None:
    """Solves the equation of MOVER-R (Donner and Zou 2012) by bisection instead of its closed form."""
    one, other = (0.3, *wilson(30, 100, 0.95)), (0.5, *wilson(60, 120, 0.95))

    def excess(ratio: float, one_end: float, other_end: float) -> float:
        return (one[0] - ratio * other[0]) ** 2 - (one[0] - one_end) ** 2 - ratio**2 * (other_end - other[0]) ** 2

    def root(low: float, high: float, one_end: float, other_end: float) -> float:
        for _ in range(100):
            middle = (low + high) / 2
            same_side = excess(middle, one_end, other_end) * excess(low, one_end, other_end) > 0
            low, high = (middle, high) if same_side else (low, middle)
        return low

    found = ratio_interval(one, other)
    assert found == pytest.approx((root(0, 0.6, one[1], other[2]), root(0.6, 3, one[2], other[1])))
    ratio = smallest_ratio(shares(a=(30, 100), b=(60, 120)), 0.95)
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((0.6, *found))
    assert ratio["between"] == ["a", "b"]


def test_the_ratio_where_rates_are_0() -> None:
    none = smallest_ratio(shares(a=(0, 50), b=(0, 60)), 0.95)
    assert (none["value"], none["why"]) == (None, "the rate is 0 in every group")
    some = smallest_ratio(shares(a=(0, 50), b=(30, 60), c=(0, 40)), 0.95)
    assert (some["value"], some["low"], some["between"]) == (0.0, 0.0, ["a", "b"])
    assert 0 < some["high"] < 0.4


def test_differences_and_ratios_have_the_coverage_they_state() -> None:
    """Five groups of the demo's sizes: the interval of the extreme holds the true extreme at least as often as stated."""
    generator, true = np.random.default_rng(5), (0.7, 0.62, 0.66, 0.58, 0.66)
    covered = np.zeros(2)
    for _ in range(400):
        groups = {str(i): (Rate(int(generator.binomial(n, p)), n),) for i, (n, p) in enumerate(zip(DEMO_SIZES, true, strict=True))}
        difference, ratio = largest_difference(groups, 0.95), smallest_ratio(groups, 0.95)
        covered += [difference["low"] <= 0.12 <= difference["high"], ratio["low"] <= 0.58 / 0.7 <= ratio["high"]]
    assert (covered / 400 > 0.95 - 3 * sqrt(0.95 * 0.05 / 400)).all()


def test_f1_and_calibration_gaps_have_the_coverage_they_state() -> None:
    """Two groups drawn anew: the interval of the difference of F1, and of the calibration gap, holds the true one."""
    generator = np.random.default_rng(6)
    covered = np.zeros(2)
    hits_among = (0.5, 0.3)  # of rows that have or are given the label: F1 2/3 and 6/13
    for _ in range(400):
        f1 = {name: (Rate(int(generator.binomial(120, p)), 120, "f1"),) for name, p in zip("ab", hits_among, strict=True)}
        gap = {name: (Rate(int(generator.binomial(150, p)), 150, "gap", c),) for name, p, c in (("a", 0.6, 0.8), ("b", 0.7, 0.75))}
        covered += [
            found["low"] <= true <= found["high"]
            for found, true in ((largest_difference(f1, 0.95), 2 / 3 - 6 / 13), (largest_difference(gap, 0.95), 0.15))
        ]
    assert (covered / 400 > 0.95 - 3 * sqrt(0.95 * 0.05 / 400)).all()


def test_moving_both_figures_together_does_not_move_their_difference() -> None:
    assert difference_interval((0.7, 0.6, 0.75), (0.5, 0.45, 0.6)) == pytest.approx(
        difference_interval((0.2, 0.1, 0.25), (0.0, -0.05, 0.1))
    )


def test_equalized_odds_is_fairlearns_over_both_rates() -> None:
    generator = np.random.default_rng(8)
    actual, predicted, names = generator.integers(0, 2, 600), generator.integers(0, 2, 600), np.array(["a", "b", "c"])[np.arange(600) % 3]
    groups = {}
    for name in "abc":
        rows = names == name
        hit, false = (predicted & actual)[rows].sum(), (predicted & (1 - actual))[rows].sum()
        groups[name] = (Rate(int(hit), int(actual[rows].sum())), Rate(int(false), int((1 - actual)[rows].sum())))
    found = largest_difference(groups, 0.95)
    assert found["value"] == pytest.approx(fl.equalized_odds_difference(actual, predicted, sensitive_features=names))
    odds = PARITIES["equalized_odds_difference"]
    assert comparisons(odds, 3, 1) == 6
    assert found == largest_difference(groups, 0.95, 6)


def test_rates_come_back_from_their_estimates() -> None:
    group = {
        "recall": {"yes": {"value": 7 / 13, "n": 13}},
        "f1": {"yes": {"value": 2 * 7 / (20 + 7), "n": 20}},
        "precision": {"yes": {"value": None, "n": 0}},
        "mean_confidence": 0.9,
        "calibration_gap": {"value": 0.9 - 30 / 40, "n": 40},
    }
    assert rate_of(group, "recall", "yes") == Rate(7, 13)
    assert rate_of(group, "f1", "yes") == Rate(7, 20, "f1")
    assert rate_of(group, "precision", "yes") == Rate(0, 0)
    assert rate_of(group, "calibration_gap", None) == Rate(30, 40, "gap", 0.9)
