"""Limits on what a row costs more than with the hard prompt, and guards on what may not fall below a baseline."""

import copy
import math
from typing import Any

import pytest

from pipeline.evaluation.intervals import estimate
from pipeline.gates.cost_checks import cost_checks
from pipeline.gates.metrics_checks import metrics_checks
from pipeline.params import GateParams
from tests.gate.test_gates import LABELS, gate, good_metrics

SCORE: dict[str, Any] = {
    "rows": 1700,
    "seconds_per_row": {"tuned": 0.030, "hard_prompt": 0.020},
    "tokens_per_row": {"tuned": 57.0, "hard_prompt": 45.0},
}


def cost(milliseconds: float | None = None, tokens: float | None = None) -> GateParams:
    return gate(cost={"maximum_added_milliseconds": milliseconds, "maximum_added_tokens": tokens})


@pytest.mark.parametrize(
    ("rule", "name", "value", "verdict"),
    [
        (cost(milliseconds=10.5), "added milliseconds per row", 10.0, "PASS"),
        (cost(milliseconds=9.5), "added milliseconds per row", 10.0, "FAIL"),
        (cost(tokens=12.0), "added tokens per row", 12.0, "PASS"),
        (cost(tokens=11.9), "added tokens per row", 12.0, "FAIL"),
        (cost(tokens=-1.0), "added tokens per row", 12.0, "FAIL"),
    ],
)
def test_a_cost_is_within_its_limit_or_fails(rule: GateParams, name: str, value: float, verdict: str) -> None:
    (check,) = cost_checks(rule, SCORE, {"n": 1700})
    assert (check["name"], check["verdict"], check["n"], check["low"]) == (name, verdict, 1700, None)
    assert check["value"] == pytest.approx(value)


def test_without_limits_there_are_no_checks() -> None:
    assert cost_checks(cost(), SCORE, {"n": 1700}) == []


@pytest.mark.parametrize(
    ("path", "value", "verdict"),
    [
        (("tokens_per_row", "tuned"), None, "ERROR"),
        (("tokens_per_row", "hard_prompt"), math.nan, "ERROR"),
        (("tokens_per_row", "tuned"), -1.0, "ERROR"),
        (("tokens_per_row", "tuned"), ..., "MISSING"),
        (("tokens_per_row", "hard_prompt"), ..., "MISSING"),
        (("tokens_per_row",), ..., "MISSING"),
        (("tokens_per_row",), [], "MISSING"),
        (("rows",), 1699, "ERROR"),
        (("rows",), ..., "MISSING"),
    ],
)
def test_a_broken_score_report_never_passes(path: tuple[str, ...], value: object, verdict: str) -> None:
    score = copy.deepcopy(SCORE)
    parent = score
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    (check,) = cost_checks(cost(tokens=100.0), score, {"n": 1700})
    assert check["verdict"] == verdict


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [(-0.02, 0.0, 0.02, "PASS"), (-0.021, 0.05, 0.1, "INCONCLUSIVE"), (-0.1, -0.05, -0.02, "INCONCLUSIVE"), (-0.1, -0.05, -0.021, "FAIL")],
)
def test_a_guard_rules_out_a_greater_loss(low: float, value: float, high: float, verdict: str) -> None:
    metrics = good_metrics()
    metrics["comparisons"]["tuned_minus_hard_prompt"]["macro_f1"] = estimate(value, (low, high), 1700)
    rule = gate(change_thresholds=[], guards=[{"metric": "macro_f1", "baseline": "hard_prompt", "maximum_loss": 0.02}])
    check = next(check for check in metrics_checks(rule, LABELS, metrics) if check["name"] == "macro_f1 not below hard_prompt")
    assert (check["verdict"], check["limit"], check["low"]) == (verdict, -0.02, low)


def test_a_guard_without_its_comparison_is_missing() -> None:
    rule = gate(guards=[{"metric": "macro_f1", "baseline": "majority_class", "maximum_loss": 0.5}])
    assert metrics_checks(rule, LABELS, good_metrics())[-2]["verdict"] == "MISSING"
