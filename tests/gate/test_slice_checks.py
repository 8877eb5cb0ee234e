"""Floors on slices: which pass, which are found below for all slices together, and which are judged together."""

from math import comb
from typing import Any

import pytest

from pipeline.evaluation.intervals import proportion
from pipeline.evaluation.multiple_tests import binomial_below, holm
from pipeline.gates.checks import Check
from pipeline.gates.decision import decide
from pipeline.gates.slice_checks import slice_checks
from pipeline.params import GateParams
from tests.gate.test_gates import LABELS, gate, group

NAMES = [f"g{index}" for index in range(20)]


def rule(*floors: dict[str, Any], significance: float = 0.05, minimum_rows: int = 50) -> GateParams:
    return gate(slices={"significance": significance, "minimum_rows": minimum_rows, "thresholds": list(floors)})


def judged(
    floor: dict[str, Any],
    recalls: dict[str, tuple[int, int]] | None = None,
    groups: dict[str, tuple[int, int]] | None = None,
    **options: Any,
) -> dict[str, Check]:
    labels = recalls or dict.fromkeys(LABELS, (180, 300))
    per_class = {label: {"recall": proportion(*counts, 0.95, "no rows")} for label, counts in labels.items()}
    metrics = {"confidence_level": 0.95, "variants": {"tuned": {"per_class": per_class}}}
    airlines = {name: group(*counts) for name, counts in (groups or {}).items()}
    fairness = {"confidence_level": 0.95, "attributes": {"airline": {"groups": airlines}}}
    return {check["name"]: check for check in slice_checks(rule(floor, **options), list(labels), metrics, fairness)}


def below(successes: int, n: int, share: float) -> float:
    """The binomial tail, term by term."""
    return sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(successes + 1))


@pytest.mark.parametrize(("successes", "n", "share"), [(0, 10, 0.2), (3, 10, 0.5), (10, 10, 0.5), (40, 100, 0.5), (5, 5, 0.0)])
def test_the_binomial_tail_is_summed_exactly(successes: int, n: int, share: float) -> None:
    assert binomial_below(successes, n, share) == pytest.approx(below(successes, n, share))


@pytest.mark.parametrize(("successes", "n", "share"), [(3, 2, 0.5), (-1, 2, 0.5), (0, 0, 0.5), (1, 2, 1.5)])
def test_counts_that_are_no_share_are_an_error(successes: int, n: int, share: float) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n}"):
        binomial_below(successes, n, share)


def test_holm_by_hand() -> None:
    # 4 x 0.01; 3 x 0.02 = 0.06; 2 x 0.025 = 0.05, at least the one before; 1 x 0.5
    assert holm([0.02, 0.01, 0.5, 0.025]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_every_label_gets_a_check_of_its_own() -> None:
    checks = judged({"by": "label", "minimum": 0.5}, {"negative": (360, 600), "neutral": (300, 600), "positive": (120, 300)})
    assert {name: check["verdict"] for name, check in checks.items()} == {
        "slice label negative": "PASS",  # 0.60: 0.56 to 0.64
        "slice label neutral": "INCONCLUSIVE",  # 0.50: as high as the floor, and no more
        "slice label positive": "FAIL",  # 0.40: 0.35 to 0.46
    }
    check = checks["slice label positive"]
    assert (check["value"], check["n"], check["limit"], check["denominator"]) == (0.4, 300, 0.5, "test rows with label positive")
    assert f"p {3 * below(120, 300, 0.5):.2g} for all slices together" in check["sentence"]
    assert decide(list(checks.values()))[0] == "refuse"


def test_what_is_below_by_chance_among_twenty_is_not_found_below() -> None:
    """The worst of twenty slices has p 0.03 alone: with one slice that is below its floor, with twenty it is not decided."""
    bad = next(k for k in range(100, 0, -1) if below(k, 200, 0.5) <= 0.035)
    floor = {"by": "airline", "groups": ["g0"], "minimum": 0.5}
    assert judged(floor, groups={"g0": (bad, 200)})["slice airline g0"]["verdict"] == "FAIL"
    others = dict.fromkeys(NAMES[1:], (140, 200))
    checks = judged({**floor, "groups": NAMES}, groups={"g0": (bad, 200), **others})
    assert checks["slice airline g0"]["verdict"] == "INCONCLUSIVE"
    assert {check["verdict"] for name, check in checks.items() if name != "slice airline g0"} == {"PASS"}
    assert decide(list(checks.values()))[0] == "ask"


def test_small_slices_are_judged_together() -> None:
    groups = {"g0": (80, 100), "g1": (5, 30), "g2": (6, 30)}
    checks = judged({"by": "airline", "groups": list(groups), "minimum": 0.5}, groups=groups)
    assert {name: check["verdict"] for name, check in checks.items()} == {
        "slice airline g0": "PASS",
        "slice airline g1 or g2 (small, together)": "FAIL",
    }
    pool = checks["slice airline g1 or g2 (small, together)"]
    assert (pool["value"], pool["n"]) == (pytest.approx(11 / 60), 60)
    few = judged({"by": "airline", "groups": list(groups), "minimum": 0.1}, groups=groups, minimum_rows=61)
    assert few["slice airline g1 or g2 (small, together)"]["verdict"] == "INSUFFICIENT"
    assert few["slice airline g1 or g2 (small, together)"]["n"] == 60


def test_a_listed_slice_without_rows_or_figures_is_missing() -> None:
    checks = judged({"by": "airline", "groups": ["g0", "g1", "g2"], "minimum": 0.5}, groups={"g0": (80, 100), "g1": (0, 0)})
    assert {name: check["verdict"] for name, check in checks.items()} == {
        "slice airline g0": "PASS",
        "slice airline g1": "MISSING",
        "slice airline g2": "MISSING",
    }
    assert "No test row belongs to airline g1" in checks["slice airline g1"]["sentence"]


def test_a_share_that_fits_no_count_is_an_error() -> None:
    metrics = {
        "confidence_level": 0.95,
        "variants": {"tuned": {"per_class": {"a": {"recall": {"value": 0.505, "low": 0.4, "high": 0.6, "n": 100}}}}},
    }
    (check,) = slice_checks(rule({"by": "label", "minimum": 0.1}), ["a"], metrics, {})
    assert check["verdict"] == "ERROR"
    assert "no whole number of 100 rows" in check["sentence"]


def test_without_floors_there_are_no_checks() -> None:
    assert slice_checks(gate(), LABELS, {}, {}) == []
