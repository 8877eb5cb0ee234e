"""Checks of the behaviour record: each can pass, fail and be undecided, a constant answer passes none, and a broken record never does."""

import copy
import json
from typing import Any

import pytest

from pipeline.evaluation.intervals import Estimate, estimate, no_estimate, proportion, wilson
from pipeline.gates.behaviour_checks import behaviour_checks
from pipeline.gates.checks import Check
from pipeline.params import BehaviourThresholds

LABELS = ("bad", "good")
LIMITS: dict[str, Any] = {
    "swaps": {"pronouns": {"maximum_flip_rate": 0.1, "maximum_shift": 0.1}},
    "pairs": {"mine": {"maximum_flip_rate": 0.1}},
    "worst_case_accuracy": 0.5,
    "worst_case_drop": 0.2,
    "tests": {"plain": 0.2, "link": 0.2},
    "batch_difference": 0.001,
    "bias_increase": {"crows": 0.1},
}
NAMES = [
    "flip rate of swap pronouns",
    "shift of swap pronouns",
    "flip rate of pairs mine",
    "worst-case accuracy",
    "worst-case drop",
    "failures of test plain",
    "failures of test link",
    "batch invariance",
    "amplified preference of crows",
]


def rate(count: int, n: int = 200) -> Estimate:
    return proportion(count, n, 0.95, "none")


def record() -> dict[str, Any]:
    mixed = {"bad": 80, "good": 120}
    shift = {label: estimate(0.01, (-0.02, 0.04), 150) for label in LABELS}
    return {
        "labels": list(LABELS),
        "confidence_level": 0.95,
        "minimum_rows": 50,
        "swaps": {"pronouns": {"flip_rate": rate(4), "predicted": dict(mixed), "shift": shift}},
        "pairs": {"mine": {"flip_rate": rate(4), "predicted": dict(mixed)}},
        "robustness": {"predicted": dict(mixed), "worst_case_accuracy": rate(130), "worst_case_drop": rate(20)},
        "tests": {
            "plain": {"kind": "minimum_functionality", "failure_rate": rate(2, 60), "predicted": {"bad": 0, "good": 60}},
            "link": {"kind": "invariance", "failure_rate": rate(4), "predicted": dict(mixed)},
        },
        "batch_invariance": {"rows": 16, "largest_difference": 2e-6, "flips": 0},
        "bias": {"crows": {"skipped": None, "change": estimate(0.01, (-0.03, 0.05), 100)}},
    }


def checks_of(behaviour: dict[str, Any], **limits: Any) -> dict[str, Check]:
    checks = behaviour_checks(BehaviourThresholds.model_validate({**LIMITS, **limits}), behaviour)
    json.dumps(checks, allow_nan=False)
    return {check["name"]: check for check in checks}


def test_a_prompt_that_behaves_passes_every_check() -> None:
    found = checks_of(record())
    assert list(found) == NAMES
    assert {check["verdict"] for check in found.values()} == {"PASS"}
    assert behaviour_checks(BehaviourThresholds(), record()) == []


@pytest.mark.parametrize(
    ("name", "path", "undecided", "failing"),
    [
        ("flip rate of swap pronouns", ("swaps", "pronouns", "flip_rate"), rate(15), rate(40)),
        ("flip rate of pairs mine", ("pairs", "mine", "flip_rate"), rate(15), rate(40)),
        ("worst-case accuracy", ("robustness", "worst_case_accuracy"), rate(105), rate(70)),
        ("worst-case drop", ("robustness", "worst_case_drop"), rate(35), rate(70)),
        ("failures of test plain", ("tests", "plain", "failure_rate"), rate(10, 60), rate(30, 60)),
        ("failures of test link", ("tests", "link", "failure_rate"), rate(35), rate(70)),
        ("amplified preference of crows", ("bias", "crows", "change"), estimate(0.08, (0.0, 0.16), 100), estimate(0.3, (0.2, 0.4), 100)),
    ],
)
def test_each_rate_can_be_undecided_fail_and_rest_on_too_few_rows(
    name: str, path: tuple[str, ...], undecided: Estimate, failing: Estimate
) -> None:
    for figure, verdict in (
        (undecided, "INCONCLUSIVE"),
        (failing, "FAIL"),
        (no_estimate(0, "none"), "INSUFFICIENT"),
        ({**failing, "n": 49}, "FAIL" if name == "failures of test plain" else "INSUFFICIENT"),
    ):
        changed = record()
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = figure
        found = checks_of(changed)
        assert found[name]["verdict"] == verdict
        assert sum(check["verdict"] != "PASS" for check in found.values()) == 1


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"), [(-0.3, -0.25, -0.2, "FAIL"), (-0.2, -0.05, 0.0, "INCONCLUSIVE"), (-0.1, 0.0, 0.1, "PASS")]
)
def test_a_shift_is_limited_on_both_sides(low: float, value: float, high: float, verdict: str) -> None:
    changed = record()
    changed["swaps"]["pronouns"]["shift"]["good"] = estimate(value, (low, high), 150)
    assert checks_of(changed)["shift of swap pronouns"]["verdict"] == verdict


def test_a_constant_answer_is_degenerate_and_not_invariant() -> None:
    changed = record()
    for path in (("swaps", "pronouns"), ("pairs", "mine"), ("robustness",), ("tests", "link")):
        node = changed
        for key in path:
            node = node[key]
        node["predicted"] = {"bad": 200, "good": 0}
    found = checks_of(changed)
    assert {name for name, check in found.items() if check["verdict"] == "DEGENERATE"} == {*NAMES[:5], "failures of test link"}


def test_one_row_that_gets_another_label_alone_fails() -> None:
    for change in ({"flips": 1}, {"largest_difference": 0.0011}):
        changed = record()
        changed["batch_invariance"] |= change
        assert checks_of(changed)["batch invariance"]["verdict"] == "FAIL"


def test_a_preference_that_was_not_measured_blocks() -> None:
    changed = record()
    changed["bias"]["crows"]["skipped"] = "an encoder gives no probability"
    check = checks_of(changed)["amplified preference of crows"]
    assert check["verdict"] == "MISSING"
    assert "an encoder" in check["sentence"]


def test_the_rows_that_would_decide() -> None:
    changed = record()
    changed["swaps"]["pronouns"]["flip_rate"] = rate(14)  # 0.07 against 0.10
    check = checks_of(changed)["flip rate of swap pronouns"]
    n = 200 + check["more_rows"]
    assert wilson(0.07 * n, n, 0.95)[1] <= 0.1 < wilson(0.07 * (n - 1), n - 1, 0.95)[1]


def walk(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        found for key, value in node.items() for found in [(*path, key), *(walk(value, (*path, key)) if isinstance(value, dict) else [])]
    ]


@pytest.mark.parametrize("broken", [..., float("nan"), None, "much", [], -1.5])
def test_no_key_can_be_missing_or_broken_without_a_check_that_refuses(broken: object) -> None:
    unread = {("tests", "plain", "predicted"), ("bias", "crows", "skipped")}
    paths = [path for path in walk(record()) if path[:3] not in unread]
    assert len(paths) > 60
    for path in paths:
        changed = copy.deepcopy(record())
        node: Any = changed
        for key in path[:-1]:
            node = node[key]
        if broken is ...:
            del node[path[-1]]
        else:
            node[path[-1]] = broken
        assert {check["verdict"] for check in checks_of(changed).values()} != {"PASS"}, path
