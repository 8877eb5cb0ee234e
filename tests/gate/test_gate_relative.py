"""The gate's checks of how much more groups differ than with the champion: who passes, who is refused, and who is left to a person."""

import copy
import json
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.fairness.groups import make_attributes
from pipeline.fairness.relative import limited_differences, relative_differences
from pipeline.gates.checks import Check
from pipeline.gates.relative_checks import relative_checks
from pipeline.params import AssessFairnessParams, ColumnGroups, GateParams
from tests.gate.test_gate_fairness import LABELS, gate

ASSESSED = AssessFairnessParams(
    groups={}, columns={"kind": ColumnGroups(expected=["a", "b"])}, intersections=[], minimum_denominator=50, confidence_level=0.95
)
COMPARED = {"champion": {"version": 3}}


def limit(maximum: float = 0.05, metric: str = "accuracy", **more: Any) -> dict[str, Any]:
    return {"attribute": "kind", "metric": metric, "groups": ["a", "b"], "maximum_increase": maximum, **more}


def rule(*limits: dict[str, Any]) -> GateParams:
    return gate(relative_difference_thresholds=list(limits))


def answers(actual: np.ndarray, right: list[float], kind: np.ndarray, seed: int) -> Scored:
    wrong = np.random.default_rng(seed).random(len(actual)) >= np.array(right)[kind]
    given = np.where(wrong, 1 - actual, actual)
    return Scored(given, np.where(np.eye(2)[given] > 0, 0.7, 0.3))


def record(candidate: list[float], champion: list[float], asked: GateParams, *, rows: int = 800, seed: int = 0) -> dict[str, Any]:
    """The changes, really computed, on rows of two groups that candidate and champion have right at these rates."""
    actual, kind = np.random.default_rng(seed).integers(0, 2, rows), np.arange(rows) % 2
    sides = [answers(actual, right, kind, seed + number) for number, right in enumerate((candidate, champion), 1)]
    names = [str(row) for row in range(rows)]
    predictions = Predictions(LABELS, names, names, actual, {"tuned": sides[0]})
    attributes = make_attributes(ASSESSED, names, {"kind": [("a", "b")[value] for value in kind]})
    wanted = [one for one, _ in limited_differences(asked.relative_difference_thresholds, LABELS)]
    found = relative_differences(predictions, sides[1], attributes, wanted, minimum_denominator=50, confidence_level=0.95, replicates=500)
    relative = {"champion": 3, "comparable": True, "reason": None, "number": len(wanted), "differences": found}
    groups = {}
    for name, members in attributes["kind"].groups.items():
        given = np.bincount(sides[0].predicted[members], minlength=2).tolist()
        groups[name] = {"n": int(members.sum()), "predicted": dict(zip(LABELS, given, strict=True))}
    fairness = {"confidence_level": 0.95, "minimum_denominator": 50, "attributes": {"kind": {"groups": groups}}, "relative": relative}
    return json.loads(json.dumps(fairness, allow_nan=False))


def check(asked: GateParams, fairness: dict[str, Any], comparison: dict[str, Any] = COMPARED) -> list[Check]:
    checks = relative_checks(asked, LABELS, fairness, comparison)
    json.dumps(checks, allow_nan=False)
    return checks


@pytest.mark.parametrize(
    ("candidate", "champion", "verdict"),
    [
        ([0.9, 0.9], [0.9, 0.6], "PASS"),
        ([0.9, 0.5], [0.8, 0.8], "FAIL"),
        ([0.85, 0.8], [0.85, 0.8], "INCONCLUSIVE"),
    ],
)
def test_a_gap_that_closes_passes_one_that_opens_fails(candidate: list[float], champion: list[float], verdict: str) -> None:
    (found,) = check(rule(limit()), record(candidate, champion, rule(limit())))
    assert found["verdict"] == verdict
    assert found["name"] == "accuracy difference of kind against the champion"
    assert (found["n"], found["limit"]) == (800, 0.05)
    assert "against the champion, version 3, is" in found["sentence"]


def test_an_opened_gap_of_20_points_is_hardly_ever_passed_at_400_rows_a_group() -> None:
    asked = rule(limit())
    verdicts = [check(asked, record([0.8, 0.6], [0.7, 0.7], asked, seed=10 * seed))[0]["verdict"] for seed in range(30)]
    assert verdicts.count("PASS") <= 1
    assert verdicts.count("FAIL") >= 20


def test_each_label_has_a_check_of_its_own() -> None:
    asked = rule(limit(0.3, "equal_opportunity_difference"), limit(0.3, "f1_difference", labels=["yes"]), limit(0.3))
    checks = check(asked, record([0.8, 0.8], [0.8, 0.8], asked))
    assert [one["name"] for one in checks] == [
        "equal_opportunity_difference of no of kind against the champion",
        "equal_opportunity_difference of yes of kind against the champion",
        "f1_difference of yes of kind against the champion",
        "accuracy difference of kind against the champion",
    ]
    assert {one["verdict"] for one in checks} == {"PASS"}
    assert check(rule(), record([0.8, 0.8], [0.8, 0.8], asked)) == []


def test_without_a_champion_there_is_nothing_to_be_worse_than_and_with_another_task_a_person_decides() -> None:
    asked = rule(limit())
    fairness = record([0.8, 0.8], [0.8, 0.8], asked)
    none = {"champion": None, "comparable": False, "reason": "no champion yet", "number": 1, "differences": []}
    (found,) = check(asked, {**fairness, "relative": none}, {"champion": None})
    assert (found["verdict"], found["value"]) == ("PASS", 0.0)
    assert "This is a first version (no champion yet)" in found["sentence"]
    (found,) = check(asked, {**fairness, "relative": {**none, "reason": None}}, {"champion": None})
    assert found["verdict"] == "ERROR"
    (found,) = check(asked, {**fairness, "relative": {**none, "champion": 3, "reason": "its labels are ['a']"}})
    assert found["verdict"] == "INCONCLUSIVE"
    assert "version 3, cannot be compared with: its labels are ['a']" in found["sentence"]


@pytest.mark.parametrize("comparison", [{"champion": None}, {"champion": {"version": 2}}])
def test_groups_compared_with_another_champion_than_the_metrics_are_an_error(comparison: dict[str, Any]) -> None:
    asked = rule(limit(0.5))
    (found,) = check(asked, record([0.8, 0.8], [0.8, 0.8], asked), comparison)
    assert found["verdict"] == "ERROR"
    assert "Run assess_fairness again" in found["sentence"]


def test_a_record_made_for_other_limits_does_not_pass() -> None:
    fairness = record([0.9, 0.9], [0.9, 0.9], rule(limit(0.5)))
    assert check(rule(limit(0.5), limit(0.5, "f1_difference", labels=["yes"])), fairness)[0]["verdict"] == "ERROR"
    assert check(rule(limit(0.5, "f1_difference", labels=["yes"])), fairness)[0]["verdict"] == "MISSING"
    assert check(rule(limit(0.5, groups=["b", "a"])), fairness)[0]["verdict"] == "MISSING"


def test_few_rows_no_rows_and_constant_answers_have_their_own_verdicts() -> None:
    asked = rule(limit(0.5))
    few = record([0.9, 0.9], [0.9, 0.9], asked, rows=90)
    (found,) = check(asked, few)
    assert (found["verdict"], found["n"]) == ("INSUFFICIENT", 45)
    few["relative"]["differences"][0]["rows"]["b"] = 0
    assert check(asked, few)[0]["verdict"] == "MISSING"
    constant = record([0.9, 0.9], [0.9, 0.9], asked)
    for group in constant["attributes"]["kind"]["groups"].values():
        group["predicted"] = {"no": group["n"], "yes": 0}
    assert check(asked, constant)[0]["verdict"] == "DEGENERATE"


def test_no_key_of_the_record_can_be_missing_or_broken() -> None:
    asked = rule(limit(0.5))
    whole = record([0.9, 0.9], [0.9, 0.9], asked)
    assert check(asked, whole)[0]["verdict"] == "PASS"
    unread = {"candidate", "champion"}  # quoted on the card alone; the change is judged
    entry = whole["relative"]["differences"][0]
    places = [("relative",), *(("relative", key) for key in whole["relative"]), *(("relative", "differences", 0, key) for key in entry)]
    places += [("relative", "differences", 0, "change", key) for key in entry["change"]]
    for place in places:
        for broken in (..., None, float("nan"), "x", -5):
            altered = copy.deepcopy(whole)
            parent: Any = altered
            for key in place[:-1]:
                parent = parent[key]
            if broken is ...:
                parent.pop(place[-1])
            elif broken == parent[place[-1]]:
                continue
            else:
                parent[place[-1]] = broken
            quoted = (len(place) == 4 and place[-1] in unread) or (place == ("relative", "reason") and broken is not ...)
            assert quoted == (check(asked, altered)[0]["verdict"] == "PASS"), (place, broken)
