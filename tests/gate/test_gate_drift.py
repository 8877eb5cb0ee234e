"""When the gate refuses for drift, and that it keeps out of it otherwise."""

from typing import Any

import pytest

from pipeline.gates.data_checks import drift_checks
from pipeline.gates.decision import decide


def record(*verdicts: str, on_drift: str = "refuse") -> dict[str, Any]:
    checks = [{"name": f"check {index}", "verdict": verdict, "sentence": f"Sentence {index}."} for index, verdict in enumerate(verdicts)]
    return {"on_drift": on_drift, "rows": {"current": 900, "reference": 800}, "checks": checks}


def test_drift_that_is_only_reported_is_no_check():
    assert drift_checks(record("FAIL", on_drift="report")) == []


@pytest.mark.parametrize(
    ("verdicts", "expected", "said"),
    [
        (("PASS", "PASS"), "PASS", "None of 2 drift checks fails."),
        (("PASS", "NOT APPLICABLE"), "PASS", "None of 2"),
        (("PASS", "FAIL", "INSUFFICIENT"), "FAIL", "1 of 3 drift checks have the verdict FAIL. check 1: Sentence 1."),
        (("PASS", "INSUFFICIENT"), "INSUFFICIENT", "check 1: Sentence 1."),
        (("NOT APPLICABLE", "NOT APPLICABLE"), "PASS", "No drift check applies. Sentence 0."),
    ],
)
def test_with_refuse_the_worst_verdict_decides(verdicts: tuple[str, ...], expected: str, said: str):
    (check,) = drift_checks(record(*verdicts))
    assert (check["name"], check["verdict"], check["limit"], check["n"]) == ("drift", expected, 0.0, 900)
    assert check["value"] == verdicts.count("FAIL")
    assert said in check["sentence"]
    decision, reasons = decide([check])
    assert decision == {"PASS": "promote", "FAIL": "refuse", "INSUFFICIENT": "ask"}[expected]
    assert bool(reasons) == (expected != "PASS")


BROKEN = {
    "no checks": {**record("PASS"), "checks": []},
    "no list": {**record("PASS"), "checks": None},
    "unknown verdict": record("PASS", "SPLENDID"),
    "no verdict": {**record("PASS"), "checks": [{"name": "labels"}]},
    "no rows": {**record("PASS"), "rows": {}},
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_record_never_passes(how: str):
    (check,) = drift_checks(BROKEN[how])
    assert check["verdict"] in ("ERROR", "MISSING")
    assert decide([check])[0] == "refuse"
