"""Checks on groups: expected groups, floors and differences per label, what a constant answer gets, and how many more rows would decide."""

import json
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.evaluation.intervals import newcombe, wilson
from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.evaluation.sample_size import rows_to_decide
from pipeline.fairness.disaggregated import assess
from pipeline.fairness.groups import make_attributes
from pipeline.fairness.parity import PARITIES, Rate, largest_difference
from pipeline.gates.checks import Check
from pipeline.gates.fairness_checks import fairness_checks
from pipeline.params import AssessFairnessParams, DifferenceThreshold, GateParams, TextGroups
from tests.evaluation.scored_rows import noisy

LABELS = ("no", "yes")
SECTIONS: dict[str, Any] = {
    "minimum_test_rows": 1,
    "value_thresholds": [{"metric": "accuracy", "minimum": 0.1}],
    "change_thresholds": [],
    "group_thresholds": [],
    "difference_thresholds": [],
    "degeneracy": {"maximum_prediction_share": 0.9},
    "guards": [],
    "slices": {"significance": 0.05, "minimum_rows": 50, "thresholds": []},
    "cost": {"maximum_added_milliseconds": None, "maximum_added_tokens": None},
}


def gate(**changes: Any) -> GateParams:
    return GateParams.model_validate({**SECTIONS, **changes})


def assessed(*expected: str) -> AssessFairnessParams:
    groups = {"airline": TextGroups(derived_from="text", patterns={"united": "@united", "jetblue": "@jetblue"}, expected=list(expected))}
    return AssessFairnessParams(groups=groups, columns={}, intersections=[], minimum_denominator=50, confidence_level=0.95)


def record(united: tuple[float, int], jetblue: tuple[float, int], *, constant: int | None = None, seed: int = 0) -> dict[str, Any]:
    """The real assessment of rows of two airlines and 60 of none, each airline right at about the given rate."""
    generator = np.random.default_rng(seed)
    parts = [(right, n, name) for (right, n), name in ((united, "@united"), (jetblue, "@jetblue"), ((0.5, 60), "nobody"))]
    actual = generator.integers(0, 2, size=sum(n for _, n, _ in parts))
    texts = [name for _, n, name in parts for _ in range(n)]
    rates = np.repeat([2 * right - 1 for right, _, _ in parts], [n for _, n, _ in parts])
    answers = np.where(generator.random(len(actual)) < rates, actual, generator.integers(0, 2, len(actual)))
    if constant is not None:
        answers = np.full(len(actual), constant)
    probabilities = np.full((len(actual), 2), 0.3)
    probabilities[np.arange(len(actual)), answers] = 0.7
    predictions = Predictions(LABELS, [str(i) for i in range(len(actual))], texts, actual, {"tuned": Scored(answers, probabilities)})
    found = assess(predictions, make_attributes(assessed(), texts, {}), assessed())
    return json.loads(json.dumps(found, allow_nan=False))


def checks_of(fairness: dict[str, Any], params: AssessFairnessParams | None = None, **changes: Any) -> list[Check]:
    checks = fairness_checks(gate(**changes), params or assessed(), LABELS, fairness)
    json.dumps(checks, allow_nan=False)
    return checks


def limit(metric: str, maximum: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"attribute": "airline", "metric": metric, "groups": ["united", "jetblue"], "maximum": maximum, **more}


def test_every_parity_can_be_limited() -> None:
    assert set(get_args(DifferenceThreshold.model_fields["metric"].annotation)) == set(PARITIES)


def test_each_label_gets_a_check_and_all_intervals_hold_together() -> None:
    fairness = record((0.8, 400), (0.7, 300))
    limits = [limit("accuracy"), limit("equalized_odds_difference"), limit("equal_opportunity_difference", labels=["yes"])]
    checks = checks_of(fairness, difference_thresholds=limits)
    assert [check["name"] for check in checks] == [
        "accuracy difference of airline",
        "equalized_odds_difference of no of airline",
        "equalized_odds_difference of yes of airline",
        "equal_opportunity_difference of yes of airline",
    ]
    groups = fairness["attributes"]["airline"]["groups"]
    counts = [
        (round(groups[name]["recall"]["yes"]["value"] * groups[name]["recall"]["yes"]["n"]), groups[name]["recall"]["yes"]["n"])
        for name in ("united", "jetblue")
    ]
    ends = newcombe(counts[0], counts[1], 1 - 0.05 / (1 + 2 + 2 + 1))
    assert checks[3]["high"] == pytest.approx(max(map(abs, ends)))
    assert "6 comparisons" in checks[3]["method"]


@pytest.mark.parametrize("metric", [name for name in PARITIES if name != "demographic_parity_ratio"])
def test_limits_on_every_difference_can_pass_fail_and_be_undecided(metric: str) -> None:
    fairness = record((0.95, 1500), (0.6, 1500))
    for maximum, verdict in ((0.99, "PASS"), (0.0, "FAIL" if "parity" not in metric else "INCONCLUSIVE")):
        checks = checks_of(fairness, difference_thresholds=[limit(metric, maximum)])
        assert {check["verdict"] for check in checks} == {verdict}
        assert len(checks) == (2 if PARITIES[metric].per_label else 1)
    value = checks[0]["value"]
    assert checks_of(fairness, difference_thresholds=[limit(metric, value)])[0]["verdict"] == "INCONCLUSIVE"


def test_the_ratio_is_judged_by_its_lower_end() -> None:
    fairness = record((0.8, 800), (0.8, 800))
    groups = fairness["attributes"]["airline"]["groups"]
    for minimum, verdict in ((0.5, "PASS"), (0.99, "INCONCLUSIVE")):
        ratio = {"attribute": "airline", "metric": "demographic_parity_ratio", "groups": ["united", "jetblue"], "minimum": minimum}
        checks = checks_of(fairness, difference_thresholds=[{**ratio, "labels": ["yes"]}])
        assert [check["verdict"] for check in checks] == [verdict]
    shares = sorted(group["selection_rate"]["yes"]["value"] for group in groups.values())
    assert checks[0]["value"] == pytest.approx(shares[0] / shares[1])


@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("metric", ["demographic_parity_difference", "equalized_odds_difference", "accuracy"])
def test_a_constant_answer_passes_no_parity(constant: int, metric: str) -> None:
    fairness = record((0.8, 400), (0.8, 400), constant=constant)
    checks = checks_of(fairness, difference_thresholds=[limit(metric, 1.0)])
    assert {check["verdict"] for check in checks} == {"DEGENERATE"}


def test_an_absent_expected_group_blocks() -> None:
    fairness = record((0.8, 400), (0.8, 0))
    (check,) = checks_of(fairness, assessed("united", "jetblue"))
    assert (check["name"], check["verdict"], check["value"]) == ("expected groups of airline", "MISSING", 0.5)
    assert "jetblue" in check["sentence"]
    (check,) = checks_of(fairness, assessed("united"))
    assert check["verdict"] == "PASS"
    del fairness["attributes"]["airline"]
    (check,) = checks_of(fairness, assessed("united"))
    assert check["verdict"] == "MISSING"


def test_floors_on_a_label_and_on_the_unknown_group() -> None:
    fairness = record((0.9, 400), (0.9, 400))
    floor = {"attribute": "airline", "metric": "recall", "label": "yes", "groups": ["united", "unknown"], "minimum": 0.7}
    checks = {check["name"]: check for check in checks_of(fairness, group_thresholds=[floor])}
    assert checks["recall of yes of airline=united"]["verdict"] == "PASS"
    unknown = checks["recall of yes of airline=unknown"]
    assert unknown["verdict"] == "INSUFFICIENT"  # 60 rows, about half of them with the label
    n = fairness["attributes"]["airline"]["unknown"]["recall"]["yes"]["n"]
    assert unknown["more_rows"] == pytest.approx((50 - n) * 860 / n, abs=1)
    assert f"{unknown['more_rows']:,} more rows" in unknown["sentence"]


def test_the_rows_that_would_decide_a_difference_do_decide_it_and_fewer_do_not() -> None:
    fairness = record((0.75, 200), (0.72, 200))
    (check,) = checks_of(fairness, difference_thresholds=[limit("accuracy", 0.12)])
    assert check["verdict"] == "INCONCLUSIVE"
    groups = fairness["attributes"]["airline"]["groups"]
    rates = {name: group["accuracy"]["value"] for name, group in groups.items()}

    def upper(rows: float) -> float:
        return largest_difference({name: (Rate(rate * rows / 2, rows / 2),) for name, rate in rates.items()}, 0.95)["high"]

    needed = 400 + check["more_rows"]
    assert upper(needed) <= 0.12 < upper(needed - 2)
    assert f"About {check['more_rows']:,} more rows of the 2 groups would decide it" in check["sentence"]


def test_the_rows_that_would_decide_a_floor() -> None:
    fairness = record((0.75, 200), (0.72, 200))
    rate = fairness["attributes"]["airline"]["groups"]["united"]["accuracy"]["value"]
    floor = {"attribute": "airline", "metric": "accuracy", "groups": ["united"], "minimum": rate - 0.03}
    (check,) = checks_of(fairness, group_thresholds=[floor])
    needed = 200 + check["more_rows"]
    assert wilson(rate * needed, needed, 0.95)[0] >= rate - 0.03 > wilson(rate * (needed - 1), needed - 1, 0.95)[0]
    (check,) = checks_of(fairness, group_thresholds=[{**floor, "minimum": rate}])
    assert check["more_rows"] is None
    assert "No number of rows of airline united would decide it" in check["sentence"]


def test_rows_to_decide_counts_from_the_rows_there_are() -> None:
    assert rows_to_decide(lambda times: times >= 1, 100) == 0
    assert rows_to_decide(lambda times: times >= 2.5, 100) == 150
    assert rows_to_decide(lambda times: False, 100) is None


def test_any_key_of_the_record_that_is_missing_or_altered_never_passes_a_check_it_feeds() -> None:
    """Every key that the groups' checks read: without it no check passes that passed before because of it."""
    fairness = record((0.9, 600), (0.9, 600))
    limits = [limit(name, 0.5) for name in ("accuracy", "equalized_odds_difference", "calibration_gap_difference")]
    before = checks_of(fairness, assessed("united", "jetblue"), difference_thresholds=limits)
    assert {check["verdict"] for check in before} == {"PASS"}
    read = [
        ("n",),
        ("accuracy",),
        ("accuracy", "n"),
        ("accuracy", "value"),
        ("predicted",),
        ("predicted", "yes"),
        ("recall", "no"),
        ("recall", "no", "value"),
    ]
    read += [("false_positive_rate",), ("false_positive_rate", "yes", "low"), ("mean_confidence",), ("calibration_gap", "high")]
    for path in read:
        for broken in (None, float("nan"), "x", -1):
            altered = json.loads(json.dumps(fairness))
            node = altered["attributes"]["airline"]["groups"]["jetblue"]
            for key in path[:-1]:
                node = node[key]
            if broken is None:
                del node[path[-1]]
            else:
                node[path[-1]] = broken
            if broken == -1 and path[-1] == "high":
                continue
            after = checks_of(altered, assessed("united", "jetblue"), difference_thresholds=limits)
            assert {check["verdict"] for check in after} - {"PASS"}, (path, broken)


def test_a_gap_of_020_with_400_per_group_is_refused() -> None:
    """Simulation of the shipped check: a true gap of 0.20 against a limit of 0.10, 400 rows per group."""
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        counts = {"united": (int(generator.binomial(400, 0.8)), 400), "jetblue": (int(generator.binomial(400, 0.6)), 400)}
        groups = {
            name: {"n": n, "accuracy": {"value": right / n, "low": 0.0, "high": 1.0, "n": n}, "predicted": {"no": 200, "yes": 200}}
            for name, (right, n) in counts.items()
        }
        fairness = {"n": 800, "confidence_level": 0.95, "minimum_denominator": 50, "attributes": {"airline": {"groups": groups}}}
        (check,) = checks_of(fairness, difference_thresholds=[limit("accuracy", 0.1)])
        refused += check["verdict"] != "PASS"
    assert refused >= 0.99 * 200


def test_pairs_are_counted_for_all_listed_groups() -> None:
    groups = [f"g{index}" for index in range(5)]
    assert len(list(combinations(groups, 2))) == 10
    generator, rows = np.random.default_rng(0), np.arange(1000)
    actual = generator.integers(0, 2, 1000)
    answers = noisy(actual, 0.6, 1, classes=2)
    texts = [f"@{groups[row % 5]}" for row in rows]
    params = AssessFairnessParams(
        groups={"air": TextGroups(derived_from="text", patterns={name: f"@{name}" for name in groups})},
        columns={},
        intersections=[],
        minimum_denominator=50,
        confidence_level=0.95,
    )
    predictions = Predictions(LABELS, [str(row) for row in rows], texts, actual, {"tuned": Scored(answers, np.full((1000, 2), 0.5))})
    fairness = assess(predictions, make_attributes(params, texts, {}), params)
    limits = [{"attribute": "air", "metric": "demographic_parity_difference", "groups": groups, "maximum": 0.5}]
    checks = checks_of(fairness, params, difference_thresholds=limits)
    assert all("20 comparisons" in check["method"] for check in checks)
