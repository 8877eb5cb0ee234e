"""Changes of group differences against the champion: hand-worked tables, and a slow bootstrap of single rows that sees the same draws."""

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.fairness.groups import Attribute
from pipeline.fairness.relative import Limited, corrected_level, limited_differences, relative_differences
from pipeline.params import RelativeDifferenceThreshold

LABELS = ("no", "yes")
METRICS = (
    "accuracy",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "false_positive_rate_difference",
    "equalized_odds_difference",
    "precision_difference",
    "f1_difference",
    "calibration_gap_difference",
)


def scored(predicted: list[int] | np.ndarray, confidence: np.ndarray | None = None) -> Scored:
    answers = np.asarray(predicted, dtype=np.int64)
    sure = np.full(len(answers), 0.7) if confidence is None else confidence
    probabilities = np.tile((1 - sure)[:, None], (1, 2))
    probabilities[np.arange(len(answers)), answers] = sure
    return Scored(answers, probabilities)


def made(actual: np.ndarray, candidate: Scored) -> Predictions:
    names = [str(row) for row in range(len(actual))]
    return Predictions(LABELS, names, names, actual, {"tuned": candidate})


def found(predictions: Predictions, champion: Scored, groups: dict[str, np.ndarray], asked: list[Limited], **changes: Any):
    settings: dict[str, Any] = {"minimum_denominator": 1, "confidence_level": 0.9, "replicates": 200, "seed": 3, **changes}
    return relative_differences(predictions, champion, {"kind": Attribute("column", groups, ())}, asked, **settings)


def test_point_values_of_a_hand_worked_table():
    """Group a has 4 rows (labels 1 1 0 0), b 4 rows (1 1 1 0). The candidate is right on 4 and 1 of them, the champion on 3 and 2."""
    actual = np.array([1, 1, 0, 0, 1, 1, 1, 0])
    candidate, champion = scored([1, 1, 0, 0, 0, 0, 0, 0]), scored([1, 1, 1, 0, 1, 0, 0, 0])
    rows = np.arange(8)
    groups = {"a": rows < 4, "b": rows >= 4}
    asked = [Limited("kind", "accuracy", None, ("a", "b")), *(Limited("kind", metric, "yes", ("a", "b")) for metric in METRICS[1:5])]
    values = [
        (one["candidate"], one["champion"], one["change"]["value"]) for one in found(made(actual, candidate), champion, groups, asked)
    ]
    # accuracy 4/4 - 1/4 and 3/4 - 2/4; selection rate 2/4 - 0 and 3/4 - 1/4; recall 2/2 - 0/3 and 2/2 - 1/3; false positives 0 - 0 and 1/2 - 0/1
    expected = [(0.75, 0.25), (0.5, 0.5), (1.0, 2 / 3), (0.0, 0.5), (1.0, 2 / 3)]
    for value, (ours, theirs) in zip(values, expected, strict=True):
        assert value == pytest.approx((ours, theirs, ours - theirs))


def slow_rate(metric: str, label: int, rows: list[int], actual: np.ndarray, side: Scored) -> list[float]:
    """The rates of a parity over listed rows, one row at a time."""
    pairs = [(int(actual[row]), int(side.predicted[row]), float(side.probabilities[row].max())) for row in rows]

    def share(successes: list[bool]) -> float:
        return sum(successes) / len(successes)

    recall = [given == label for has, given, _ in pairs if has == label]
    false_positives = [given == label for has, given, _ in pairs if has != label]
    if metric == "accuracy":
        return [share([has == given for has, given, _ in pairs])]
    if metric == "calibration_gap_difference":
        return [sum(sure for _, _, sure in pairs) / len(pairs) - share([has == given for has, given, _ in pairs])]
    if metric == "demographic_parity_difference":
        return [share([given == label for _, given, _ in pairs])]
    if metric == "precision_difference":
        return [share([has == label for has, given, _ in pairs if given == label])]
    if metric == "f1_difference":
        hits = sum(has == given == label for has, given, _ in pairs)
        return [2 * hits / (sum(has == label for has, _, _ in pairs) + sum(given == label for _, given, _ in pairs))]
    rates = {"equal_opportunity_difference": [recall], "false_positive_rate_difference": [false_positives]}
    return [share(one) for one in rates.get(metric, [recall, false_positives])]


def slow_gap(metric: str, label: int, draw: list[int], groups: list[np.ndarray], actual: np.ndarray, side: Scored) -> float:
    rates = [slow_rate(metric, label, [row for row in draw if members[row]], actual, side) for members in groups]
    return max(abs(one[rate] - other[rate]) for one in rates for other in rates for rate in range(len(rates[0])))


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_are_those_of_a_slow_bootstrap_with_the_same_draws(metric: str):
    generator = np.random.default_rng(1)
    n, replicates = 150, 200
    actual = generator.integers(0, 2, n)
    kind = generator.integers(0, 3, n)
    groups = {"a": kind == 0, "b": kind == 1, "c": (kind == 2) | (kind == 1)}  # groups may share rows
    sides = [scored(np.where(generator.random(n) < 0.7, actual, 1 - actual), 0.5 + generator.random(n) / 2) for _ in range(2)]
    label = None if metric in ("accuracy", "calibration_gap_difference") else "yes"
    asked = [Limited("kind", metric, label, ("a", "b", "c")), Limited("kind", "accuracy", None, ("a", "b"))]
    record = found(made(actual, sides[0]), sides[1], groups, asked, replicates=replicates)[0]

    draws = np.random.default_rng(3).integers(0, n, size=(replicates, n))
    changes = []
    for draw in draws.tolist():
        ours, theirs = (slow_gap(metric, 1, draw, list(groups.values()), actual, side) for side in sides)
        changes.append(ours - theirs)
    tail = (1 - 0.9) / 2 / 2  # two intervals share the level
    assert record["change"]["low"] == pytest.approx(np.quantile(changes, tail), abs=1e-9)
    assert record["change"]["high"] == pytest.approx(np.quantile(changes, 1 - tail), abs=1e-9)
    every = list(range(n))
    for side, key in zip(sides, ("candidate", "champion"), strict=True):
        assert record[key] == pytest.approx(slow_gap(metric, 1, every, list(groups.values()), actual, side))
    assert record["change"]["n"] == n
    assert record["change"]["high"] > record["change"]["low"]


def test_the_same_answers_change_nothing_and_the_seed_decides_the_rest():
    generator = np.random.default_rng(0)
    actual, kind = generator.integers(0, 2, 200), generator.integers(0, 2, 200)
    groups = {"a": kind == 0, "b": kind == 1}
    asked = [Limited("kind", "accuracy", None, ("a", "b"))]
    side, other = (scored(np.where(generator.random(200) < 0.7, actual, 1 - actual)) for _ in range(2))
    same = found(made(actual, side), side, groups, asked)[0]["change"]
    assert (same["value"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    again, first, reseeded = (found(made(actual, side), other, groups, asked, seed=seed) for seed in (3, 3, 4))
    assert again == first
    assert reseeded != first
    assert reseeded[0]["change"]["value"] == first[0]["change"]["value"]


def test_a_rate_on_few_rows_has_no_figure_and_says_how_few():
    actual = np.array([1, 0, 0, 0, 1, 1, 0, 0])
    groups = {"a": np.arange(8) < 4, "b": np.arange(8) >= 4, "unheard": np.zeros(8, dtype=bool)}
    side = scored(actual)
    asked = [Limited("kind", "equal_opportunity_difference", "yes", ("a", "b")), Limited("kind", "accuracy", None, ("a", "unheard"))]
    one, other = found(made(actual, side), side, groups, asked, minimum_denominator=2)
    assert (one["smallest_denominator"], one["rows"], one["change"]["value"]) == (1, {"a": 4, "b": 4}, None)
    assert "a rate rests on 1 rows, fewer than the minimum denominator of 2" in one["change"]["why"]
    assert (other["smallest_denominator"], other["rows"]) == (0, {"a": 4, "unheard": 0})


def test_a_group_keeps_its_rate_in_a_resample_without_its_rows():
    """One row in group a: a resample without it (a third of them) would else have the rate 0."""
    actual = np.array([1, 1, 1, 1, 1, 1])
    groups = {"a": np.arange(6) < 1, "b": np.arange(6) >= 1}
    record = found(made(actual, scored(actual)), scored(actual), groups, [Limited("kind", "accuracy", None, ("a", "b"))])[0]
    assert (record["change"]["low"], record["change"]["high"]) == (0.0, 0.0)


def test_rows_in_no_group_can_be_compared():
    actual = np.array([1, 0, 1, 0])
    groups = {"a": np.array([True, True, False, False])}
    record = found(made(actual, scored([1, 0, 0, 1])), scored(actual), groups, [Limited("kind", "accuracy", None, ("a", "unknown"))])[0]
    assert (record["candidate"], record["champion"]) == (1.0, 0.0)


def test_a_limit_covers_each_label_unless_it_names_some():
    thresholds = [
        RelativeDifferenceThreshold(attribute="kind", metric="accuracy", groups=["a", "b"], maximum_increase=0.1),
        RelativeDifferenceThreshold(attribute="kind", metric="precision_difference", groups=["a", "b"], maximum_increase=0.2),
        RelativeDifferenceThreshold(attribute="kind", metric="f1_difference", labels=["yes"], groups=["a", "b"], maximum_increase=0.3),
    ]
    assert [(one.metric, one.label, limit) for one, limit in limited_differences(thresholds, LABELS)] == [
        ("accuracy", None, 0.1),
        ("precision_difference", "no", 0.2),
        ("precision_difference", "yes", 0.2),
        ("f1_difference", "yes", 0.3),
    ]
    assert corrected_level(0.95, 4) == pytest.approx(0.9875)


def test_intervals_together_hold_the_true_changes_as_often_as_they_say():
    """True accuracies by group: candidate 0.8, 0.6, champion 0.75, 0.65; so the true change of the largest difference is 0.1."""
    generator = np.random.default_rng(5)
    covered = 0
    for run in range(120):
        actual = generator.integers(0, 2, 800)
        kind = np.arange(800) % 2
        rates = np.array([[0.8, 0.6], [0.75, 0.65]])
        sides = [scored(np.where(generator.random(800) < rates[side][kind], actual, 1 - actual)) for side in range(2)]
        groups = {"a": kind == 0, "b": kind == 1}
        asked = [Limited("kind", "accuracy", None, ("a", "b"))]
        change = found(made(actual, sides[0]), sides[1], groups, asked, confidence_level=0.9, replicates=300, seed=run)[0]["change"]
        covered += change["low"] <= 0.1 <= change["high"]
    assert covered >= 98  # 108 are expected at 90 %; fewer than 98 have a probability of 0.003
