"""What would change the verdict: figures worked out by hand, and the rules that the gate really writes."""

import json
from typing import Any

import pytest

from pipeline.evaluation.intervals import wilson
from pipeline.reporting.changes import changes, rows_needed, value_needed, way_to_pass
from pipeline.reporting.formats.gate import Check
from tests.reporting.card_run import Run
from tests.reporting.pages import read_page

LOW, HIGH = "PASS when low >= limit; FAIL when high < limit", "PASS when high <= limit; FAIL when low > limit"
GAIN = "PASS when value >= limit and low > 0; FAIL when value < limit or high <= 0"
ROWS = "PASS when n >= limit"


def check(verdict: str, rule: str, **figures: Any) -> Check:
    numbers = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 100, "limit": 0.55, "denominator": None, "method": None} | figures
    return Check.model_validate({"name": "c", "verdict": verdict, "rule": rule, "sentence": "so it is.", **numbers})


@pytest.mark.parametrize(
    ("found", "needed"),
    [
        (check("INCONCLUSIVE", LOW), 0.65),
        (check("INCONCLUSIVE", HIGH), 0.45),
        (check("INCONCLUSIVE", GAIN, value=0.04, low=-0.02, high=0.1, limit=0.03), 0.06),
        (check("FAIL", GAIN, value=0.02, low=0.01, high=0.03, limit=0.05), 0.05),
        (check("INSUFFICIENT", ROWS, low=None, high=None), None),
    ],
)
def test_value_needed_moves_the_end_that_decides_to_the_limit(found: Check, needed: float | None):
    assert value_needed(found) == (needed if needed is None else pytest.approx(needed))


@pytest.mark.parametrize(
    ("found", "rows"),
    [
        (check("INCONCLUSIVE", LOW), 300),  # half-width 0.1, distance 0.05: four times the rows
        (check("INCONCLUSIVE", LOW, value=0.5, low=0.4, high=0.6), 300),
        (check("INCONCLUSIVE", LOW, more_rows=77), 77),
        (check("INCONCLUSIVE", LOW, value=0.55), None),
        (check("INCONCLUSIVE", LOW, value=0.5501), None),
        (check("INCONCLUSIVE", GAIN, value=0.04, low=-0.04, high=0.12, limit=0.03), 300),
        (check("INSUFFICIENT", ROWS, value=120, low=None, high=None, n=120, limit=300), 180),
        (check("FAIL", LOW, value=0.3, low=0.2, high=0.4), None),
    ],
)
def test_rows_needed(found: Check, rows: int | None):
    assert rows_needed(found) == (rows if rows is None else pytest.approx(rows, abs=1))


def test_rows_needed_are_about_those_of_the_exact_interval():
    """Wilson's interval at the number of rows that the rule of thumb gives reaches the limit, and does not at nine tenths of it."""
    low, high = wilson(130, 200, 0.95)
    more = rows_needed(check("INCONCLUSIVE", LOW, value=0.65, low=low, high=high, n=200, limit=0.6))
    assert more is not None
    n = 200 + more
    assert wilson(0.65 * n, n, 0.95)[0] == pytest.approx(0.6, abs=0.004)
    assert wilson(0.65 * n * 0.8, n * 0.8, 0.95)[0] < 0.6


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            check("INCONCLUSIVE", LOW, value=0.6),
            "about 0.650 instead of 0.600 (+0.050). | With about 300 more rows, and rates as they are, it would pass.",
        ),
        (check("INCONCLUSIVE", LOW, value=0.5, low=0.4, high=0.6), "it would fail."),
        (
            check("INCONCLUSIVE", HIGH, value=0.5, low=0.4, high=0.6),
            "about 0.450 instead of 0.500 (−0.050). | With about 300 more rows, and rates as they are, it would pass.",
        ),
        (check("INCONCLUSIVE", LOW, value=0.55), "No affordable number of rows would decide it"),
        (
            check("FAIL", LOW, value=0.3, low=0.2, high=0.4),
            "about 0.650 instead of 0.300 (+0.350). | More rows of the same kind would only confirm it.",
        ),
        (check("FAIL", LOW, value=0.5, low=0.0, high=0.99, limit=0.995), "which no figure of this kind can be"),
        (check("MISSING", LOW, value=None, low=None, high=None, n=None), "Nothing that can be counted: so it is."),
        (check("INSUFFICIENT", ROWS, value=120, low=None, high=None, n=120, limit=300), "About 180 more rows would be enough to judge it."),
        (
            check("FAIL", "PASS when the moon is full", low=None, high=None),
            "No number can be given; the rule is: PASS when the moon is full.",
        ),
    ],
)
def test_sentences(found: Check, said: str):
    (only,) = changes([found])
    assert said in " | ".join(only.sentences)


def test_a_passed_check_needs_no_change():
    assert changes([check("PASS", LOW)]) == []


def test_every_rule_of_the_run_about_one_end_is_understood(run: Run):
    checks = json.loads(run.path("gate").read_text(encoding="utf-8"))["checks"]
    with_interval = {one["name"]: way_to_pass(one["rule"]) for one in checks if one["low"] is not None}
    assert len(with_interval) >= 9
    assert "other" not in with_interval.values()
    assert {way_to_pass(one["rule"]) for one in checks} >= {"low", "gain", "rows", "other"}


def test_page_lists_them_below_the_gate_and_nothing_for_a_promoted_run(run: Run):
    assert not read_page(run.render()).all("dl", class_="changes")
    run.edit("gate", lambda found: found["checks"][2].update(verdict="INCONCLUSIVE", more_rows=1234))
    run.edit("gate", lambda found: found.update(decision="ask", reasons=["macro_f1: INCONCLUSIVE: the interval holds the minimum."]))
    shown = read_page(run.render()).one("dl", class_="changes")
    assert shown.one("dt").words == "macro_f1 ? INCONCLUSIVE"
    assert "1,234 more rows" in shown.words
