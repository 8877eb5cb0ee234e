"""The gate's check against the champion."""

import copy
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.comparison import compare_with_champion
from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.evaluation.text_comparison import compare_written_with_champion
from pipeline.evaluation.written_rows import Written, WrittenRows
from pipeline.gates.checks import Check
from pipeline.gates.comparison_checks import KEYS, champion_guards, comparison_checks
from pipeline.params import CompareParams, Guard

BASE: dict[str, Any] = {
    "metric": "accuracy",
    "mode": "superior",
    "margin": 0.02,
    "significance": 0.05,
    "first_version": "thresholds",
    "examples": 1,
}


def params(**changes: Any) -> CompareParams:
    return CompareParams.model_validate({**BASE, **changes})


def record(asked: CompareParams, ours: int, theirs: int, *, n: int = 500, attempts: int = 1) -> dict[str, Any]:
    """A comparison of n rows, of which each alone has some right and both have the rest."""
    actual = np.arange(n) % 2
    first, second = actual.copy(), actual.copy()
    second[:ours] ^= 1
    first[ours : ours + theirs] ^= 1
    answers = [Scored(answer, np.eye(2)[answer]) for answer in (first, second)]
    predictions = Predictions(("no", "yes"), [f"r{i:04}" for i in range(n)], ["text"] * n, actual, {"tuned": answers[0]})
    figures = compare_with_champion(
        predictions, answers[1], settings=asked, attempts=attempts, replicates=300, confidence_level=0.95, seed=0
    )
    champion = {"version": 3, "manifest_sha256": "a", "base_model_id": "tiny"}
    return {"asked": asked.model_dump(mode="json"), "champion": champion, "comparable": True, "reason": None, **figures}


def check(asked: CompareParams, found: dict[str, Any], n: int = 500) -> Check:
    (only,) = comparison_checks(asked, found, {"n": n})
    return only


def without_champion(asked: CompareParams, **changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(KEYS)
    return {**nothing, "asked": asked.model_dump(mode="json"), "comparable": False, "reason": "no champion yet", **changes}


@pytest.mark.parametrize(
    ("ours", "theirs", "attempts", "verdict"),
    [
        (35, 15, 1, "PASS"),  # p = 0.0033
        (35, 15, 4, "INCONCLUSIVE"),  # level 0.05 / 20 = 0.0025
        (30, 20, 1, "INCONCLUSIVE"),
        (20, 20, 1, "FAIL"),  # an equal candidate
        (0, 0, 1, "FAIL"),
        (15, 35, 1, "FAIL"),
    ],
)
def test_superior_needs_more_discordant_rows_than_chance_and_attempts_give(ours: int, theirs: int, attempts: int, verdict: str) -> None:
    found = check(params(), record(params(), ours, theirs, attempts=attempts))
    assert found["verdict"] == verdict
    assert f"attempt {attempts} on these rows" in found["sentence"]
    assert found["n"] == 500


@pytest.mark.parametrize(("ours", "theirs", "verdict"), [(20, 20, "INCONCLUSIVE"), (5, 5, "PASS"), (0, 0, "PASS"), (2, 40, "FAIL")])
def test_non_inferior_needs_the_interval_within_the_margin(ours: int, theirs: int, verdict: str) -> None:
    asked = params(mode="non_inferior")
    found = check(asked, record(asked, ours, theirs))
    assert (found["verdict"], found["limit"]) == (verdict, -0.02)


def test_macro_f1_is_judged_by_its_interval() -> None:
    asked = params(metric="macro_f1")
    assert check(asked, record(asked, 60, 10))["verdict"] == "PASS"
    assert check(asked, record(asked, 22, 20))["verdict"] == "INCONCLUSIVE"


def test_a_first_version_needs_the_other_checks_alone_or_a_person() -> None:
    found = check(params(), without_champion(params()))
    assert found["verdict"] == "PASS"
    assert [found[key] for key in ("value", "low", "high", "n", "limit", "denominator", "method")] == [None] * 7
    assert found["sentence"] == "This is a first version (no champion yet): there is nothing to compare with, and the other checks decide."
    assert found["rule"] == "without a champion: PASS, and the other checks decide"
    asked = params(first_version="ask")
    assert check(asked, without_champion(asked))["verdict"] == "INCONCLUSIVE"
    assert check(params(), without_champion(params(), reason=None))["verdict"] == "ERROR"


def test_a_champion_that_cannot_answer_is_for_a_person() -> None:
    champion = {"version": 3, "manifest_sha256": "a"}
    found = check(params(), without_champion(params(), champion=champion, reason="its labels are ['a']"))
    assert found["verdict"] == "INCONCLUSIVE"
    assert "version 3, cannot be compared with: its labels are ['a']" in found["sentence"]


def test_no_key_can_be_removed_or_become_nan_and_still_pass() -> None:
    whole = record(params(), 40, 10)
    assert check(params(), whole)["verdict"] == "PASS"
    assert check(params(), without_champion(params()))["verdict"] == "PASS"
    for found in (whole, without_champion(params())):
        for key in found:
            assert check(params(), {name: value for name, value in found.items() if name != key})["verdict"] != "PASS", key
    for outer, inner in [("difference", key) for key in ("value", "low", "high", "n")] + [("paired", key) for key in whole["paired"]]:
        for broken in (..., float("nan"), None, -7):
            altered = copy.deepcopy(whole)
            altered[outer].pop(inner) if broken is ... else altered[outer].update({inner: broken})
            assert check(params(), altered)["verdict"] != "PASS", (outer, inner, broken)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attempts": 0}, "counts 0 attempts"),
        ({"attempts": 2}, "needs 0.98"),
        ({"confidence_level": 0.5}, "has confidence level 0.5"),
        ({"n": 499}, "499 rows were compared"),
        ({"asked": {**BASE, "mode": "non_inferior"}}, "other params"),
    ],
)
def test_a_record_that_contradicts_itself_or_the_params_is_an_error(change: dict[str, Any], said: str) -> None:
    found = check(params(), {**record(params(), 40, 10), **change})
    assert found["verdict"] == "ERROR"
    assert said in found["sentence"]


def texts(asked: CompareParams, ours: int, theirs: int, metric: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A comparison of 400 rows of free text, of which each alone answers some with the reference, and both the rest; and its metrics."""
    targets = ["a red car"] * 400
    answers = [list(targets), list(targets)]
    answers[1][:ours] = ["a red bus"] * ours
    answers[0][ours : ours + theirs] = ["a red bus"] * theirs
    ones, ended = np.ones(400, dtype=np.int64), np.ones(400, dtype=bool)
    first, second = (Written(said, ones, ended, None) for said in answers)
    rows = WrittenRows([f"r{i:04}" for i in range(400)], ["text"] * 400, targets, ones, {"tuned": first})
    figures = compare_written_with_champion(
        rows, second, metric=metric, settings=asked, attempts=1, replicates=2000, confidence_level=0.95, seed=0
    )
    champion = {"version": 3, "manifest_sha256": "a", "base_model_id": "tiny"}
    asked_for = {**asked.model_dump(mode="json"), "metric": metric}
    record = {"asked": asked_for, "champion": champion, "comparable": True, "reason": None, **figures}
    return record, {"n": 400, "kind": "generation", "metric": metric}


@pytest.mark.parametrize("metric", ["token_f1", "exact_match"])
@pytest.mark.parametrize(
    ("ours", "theirs", "superior", "non_inferior"),
    [
        (40, 10, "PASS", "PASS"),
        (25, 20, "INCONCLUSIVE", None),
        (0, 0, "FAIL", "PASS"),
        (10, 40, "FAIL", "FAIL"),
    ],
)
def test_free_text_is_judged_by_its_own_metric(metric: str, ours: int, theirs: int, superior: str, non_inferior: str | None) -> None:
    for mode, verdict in (("superior", superior), ("non_inferior", non_inferior)):
        asked = params(mode=mode)
        (found,) = comparison_checks(asked, *texts(asked, ours, theirs, metric))
        assert verdict in (None, found["verdict"]), found["sentence"]
        assert found["name"] == f"{metric} minus champion"


def test_no_key_of_a_free_text_record_can_be_removed_or_broken_and_still_pass() -> None:
    whole, metrics = texts(params(), 40, 10, "exact_match")
    assert comparison_checks(params(), whole, metrics)[0]["verdict"] == "PASS"
    for key in whole:
        (found,) = comparison_checks(params(), {name: value for name, value in whole.items() if name != key}, metrics)
        assert found["verdict"] in ("ERROR", "MISSING"), key
    for outer in ("difference", "better"):
        for inner in ("value", "low", "high", "n") if outer == "difference" else ("candidate", "champion", "equal"):
            altered = copy.deepcopy(whole)
            altered[outer][inner] = -7
            (found,) = comparison_checks(params(), altered, metrics)
            assert found["verdict"] in ("ERROR", "MISSING"), (outer, inner)
    (found,) = comparison_checks(params(), whole, {**metrics, "metric": "token_f1"})
    assert found["verdict"] == "ERROR", "a comparison by another metric"


def test_metrics_of_other_rows_are_an_error() -> None:
    assert check(params(), record(params(), 40, 10), n=501)["verdict"] == "ERROR"


def guard(maximum_loss: float, found: dict[str, Any], metric: str = "accuracy", n: int = 500) -> Check:
    baselines = ("hard_prompt", "champion")
    guards = [Guard.model_validate({"metric": metric, "baseline": name, "maximum_loss": maximum_loss}) for name in baselines]
    (only,) = champion_guards(guards, found, {"n": n})
    return only


@pytest.mark.parametrize(("ours", "theirs", "verdict"), [(5, 5, "PASS"), (20, 20, "INCONCLUSIVE"), (2, 60, "FAIL")])
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_guarded_metric_may_not_fall_below_the_champions_by_more_than_the_margin(
    ours: int, theirs: int, verdict: str, metric: str
) -> None:
    asked = params(mode="non_inferior")
    found = guard(0.02, record(asked, ours, theirs, attempts=9), metric)
    assert (found["verdict"], found["limit"], found["n"]) == (verdict, -0.02, 500)
    assert found["name"] == f"{metric} not below champion"
    assert found["value"] == pytest.approx((ours - theirs) / 500, abs=0.002)


def test_the_interval_of_a_guard_is_that_of_one_metric_whatever_the_attempts() -> None:
    first, ninth = (guard(0.02, record(params(), 5, 5, attempts=attempts)) for attempts in (1, 9))
    assert (first["low"], first["high"]) == (ninth["low"], ninth["high"])


def test_a_guard_against_no_champion_passes_and_against_another_task_is_for_a_person() -> None:
    found = guard(0.0, without_champion(params()))
    assert (found["verdict"], found["value"]) == ("PASS", 0.0)
    assert "This is a first version (no champion yet)" in found["sentence"]
    assert guard(0.0, without_champion(params(), reason=None))["verdict"] == "ERROR"
    champion = {"version": 3, "manifest_sha256": "a"}
    found = guard(0.0, without_champion(params(), champion=champion, reason="its labels are ['a']"))
    assert found["verdict"] == "INCONCLUSIVE"
    assert guard(0.02, record(params(), 5, 5), n=499)["verdict"] == "ERROR"
