"""How much a figure differs between groups of rows: the largest difference and the smallest ratio over pairs of groups.

Names follow fairlearn. Each parity compares one or two rates of the groups:

accuracy                        share of rows with the right label
demographic_parity_difference   selection rate of a label: share of rows that are given it
demographic_parity_ratio        the smaller selection rate over the larger, in [0, 1], ideal 1
equal_opportunity_difference    recall of a label: share of its rows that are given it (true positive rate)
false_positive_rate_difference  share of the rows without a label that are given it
equalized_odds_difference       the larger of the two before, so both rates are compared
precision_difference            share of the rows given a label that have it
f1_difference                   harmonic mean of a label's precision and recall
calibration_gap_difference      mean confidence minus accuracy

Differences lie in [0, 1] (that of calibration gaps in [0, 2]), ideal 0. Intervals come from counts: Wilson's of each rate, and from
two of them Newcombe's of the difference (Newcombe 1998, method 10; MOVER for F1 and calibration gaps) or MOVER-R's of the ratio
(Donner and Zou 2012). Whoever looks at several pairs, labels, parities and attributes divides 1 - confidence level by the number of
comparisons (Bonferroni), so that all intervals hold together. Groups that share rows (text patterns) agree more than separate ones, which makes
their intervals too wide rather than too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from pipeline.evaluation.intervals import Ends, Estimate, difference_interval, estimate, f1_interval, ratio_interval, wilson

# What a group's record says of it (docs/stage-files.md).
GroupRecord = Mapping[str, Any]


@dataclass(frozen=True)
class Rate:
    """`successes` of `n` rows as a share J; `f1` means 2J / (1 + J), `gap` means `mean_confidence` - J."""

    successes: float
    n: float
    form: Literal["share", "f1", "gap"] = "share"
    mean_confidence: float = 0.0

    def ends(self, confidence_level: float) -> Ends:
        """Value and interval; raises ValueError without rows."""
        share = self.successes / self.n if self.n else 0.0
        low, high = wilson(self.successes, self.n, confidence_level)
        if self.form == "f1":
            return (2 * share / (1 + share), *f1_interval(self.successes, self.n, confidence_level))
        if self.form == "gap":
            return self.mean_confidence - share, self.mean_confidence - high, self.mean_confidence - low
        return share, low, high

    def times(self, factor: float) -> "Rate":
        """The same share among `factor` times as many rows."""
        return replace(self, successes=self.successes * factor, n=self.n * factor)


@dataclass(frozen=True)
class Parity:
    """One way of comparing groups: the rates compared, whether for each label, and whether as a ratio."""

    rates: tuple[str, ...]
    per_label: bool = True
    ratio: bool = False


PARITIES: Mapping[str, Parity] = {
    "accuracy": Parity(("accuracy",), per_label=False),
    "demographic_parity_difference": Parity(("selection_rate",)),
    "demographic_parity_ratio": Parity(("selection_rate",), ratio=True),
    "equal_opportunity_difference": Parity(("recall",)),
    "false_positive_rate_difference": Parity(("false_positive_rate",)),
    "equalized_odds_difference": Parity(("recall", "false_positive_rate")),
    "precision_difference": Parity(("precision",)),
    "f1_difference": Parity(("f1",)),
    "calibration_gap_difference": Parity(("calibration_gap",), per_label=False),
}


def rate_of(group: GroupRecord, name: str, label: str | None) -> Rate:
    """A rate of a group, back as counts, from the estimate in its record; without rows n is 0."""
    figure = group[name] if label is None else group[name][label]
    value, n = figure["value"], figure["n"]
    if value is None:
        return Rate(0, 0)
    if name == "calibration_gap":
        confidence = group["mean_confidence"]
        return Rate(round((confidence - value) * n), n, "gap", confidence)
    if name == "f1":
        return Rate(round(value / (2 - value) * n), n, "f1")
    return Rate(round(value * n), n)


def rates_of(group: GroupRecord, parity: Parity, label: str | None) -> tuple[Rate, ...]:
    """The rates of a group that `parity` compares."""
    return tuple(rate_of(group, name, label) for name in parity.rates)


def comparisons(parity: Parity, groups: int, labels: int) -> int:
    """How many intervals judge one parity: one per pair of groups, label and rate."""
    return groups * (groups - 1) // 2 * len(parity.rates) * (labels if parity.per_label else 1)


def largest_difference(groups: Mapping[str, Sequence[Rate]], confidence_level: float, number: int | None = None) -> Estimate:
    """The largest absolute difference of a rate between two of the groups (name -> one rate or two), ideal 0.

    Every pair gets an interval at level 1 - (1 - confidence level) / number, by default the number of pairs and rates here. The largest
    upper and the largest lower end of |difference| then bound the largest true difference, whichever pair has it. `between` names the
    pair with the largest point value, the higher first. Raises ValueError for fewer than two groups.
    """
    value, low, high, between = -1.0, 0.0, 0.0, ("", "")
    for names, higher, lower in _ordered_pairs(groups, confidence_level, number):
        interval = difference_interval(higher, lower)
        if higher[0] - lower[0] > value:
            value, between = higher[0] - lower[0], names
        # Ordered by value, the difference is never negative, so its lower end alone can cross 0.
        low, high = max(low, interval[0]), max(high, interval[1], -interval[0])
    return {**estimate(value, (low, high), _rows(groups)), "between": list(between)}


def smallest_ratio(groups: Mapping[str, Sequence[Rate]], confidence_level: float, number: int | None = None) -> Estimate:
    """The smallest ratio of a rate between two of the groups, the smaller over the larger, in [0, 1], ideal 1.

    Corrected as `largest_difference`; `between` names the pair, the lower rate first. Where every rate is 0 there is no ratio: the value is
    null. A pair of two zeros among others says nothing and is left out of the value, not of the interval. Raises ValueError for fewer than two groups.
    """
    value, low, high, between = 2.0, 1.0, 1.0, ("", "")
    for names, higher, lower in _ordered_pairs(groups, confidence_level, number):
        lowest, highest = ratio_interval(lower, higher)
        if higher[0] > 0 and lower[0] / higher[0] < value:
            value, between = lower[0] / higher[0], names[::-1]
        # The rate that is the lower one here may truly be the higher one; then the ratio is the inverse.
        low, high = min(low, lowest, 1 / highest), min(high, highest)
    n = _rows(groups)
    if value > 1:
        return {"value": None, "low": None, "high": None, "n": n, "why": "the rate is 0 in every group", "between": None}
    return {**estimate(value, (low, high), n), "between": list(between)}


def compare(parity: Parity, groups: Mapping[str, Sequence[Rate]], confidence_level: float, number: int | None = None) -> Estimate:
    """The largest difference or the smallest ratio, whichever `parity` asks for."""
    return (smallest_ratio if parity.ratio else largest_difference)(groups, confidence_level, number)


def _ordered_pairs(
    groups: Mapping[str, Sequence[Rate]], confidence_level: float, number: int | None
) -> list[tuple[tuple[str, str], Ends, Ends]]:
    """Every pair of groups with every rate: the two names and their intervals at the corrected level, the higher value first."""
    pairs = [(names, rates) for names in combinations(groups, 2) for rates in zip(*(groups[name] for name in names), strict=True)]
    if not pairs:
        raise ValueError(f"a difference needs two groups; found {sorted(groups)}")
    level = 1 - (1 - confidence_level) / (len(pairs) if number is None else number)
    ordered: list[tuple[tuple[str, str], Ends, Ends]] = []
    for (first, second), (one, other) in pairs:
        ends = one.ends(level), other.ends(level)
        if ends[0][0] >= ends[1][0]:
            ordered.append(((first, second), ends[0], ends[1]))
        else:
            ordered.append(((second, first), ends[1], ends[0]))
    return ordered


def _rows(groups: Mapping[str, Sequence[Rate]]) -> int:
    return round(sum(rate.n for rates in groups.values() for rate in rates))
