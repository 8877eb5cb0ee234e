"""The card's section on drift."""

import json
from typing import Any

import pytest

from pipeline.errors import StageInputError
from tests.reporting.card_run import Run
from tests.reporting.pages import Element, read_page


def section(run: Run) -> Element:
    return read_page(run.render()).one("section", id="drift")


def recorded(run: Run) -> dict[str, Any]:
    return json.loads(run.path("drift").read_text(encoding="utf-8"))


def test_every_check_is_shown_with_its_figures_and_its_sentence(run: Run):
    drift, shown = recorded(run), section(run)
    assert "version 3, the champion when this run began" in shown.words
    rows = shown.one("tbody").all("tr")
    assert len(rows) == len(drift["checks"]) == 5
    assert {check["verdict"] for check in drift["checks"]} == {"PASS", "FAIL"}
    for row, check in zip(rows, drift["checks"], strict=True):
        cells = [cell.words for cell in row.children if isinstance(cell, Element)]
        assert cells[0] == check["name"]
        assert cells[1] == f"{'✓' if check['verdict'] == 'PASS' else '✗'} {check['verdict']}"
        assert cells[2].startswith(f"{check['value']:.3f}".replace("-", "−"))
        assert ("[" in cells[2]) == (check["low"] is not None)
        assert cells[3] == "1,200" * 2
        assert check["sentence"] in cells[5]
        assert check["method"] in cells[5]
    assert "does not decide about promotion" in shown.words
    assert read_page(run.render()).one("nav").one("a", href="#drift").words == "Drift"


def test_without_a_reference_it_says_why_and_shows_no_table(run: Run):
    def none(found: dict[str, Any]) -> None:
        found["against"] = {"asked": "champion", "version": None, "reason": "no <champion> yet"}

    run.edit("drift", none)
    shown = section(run)
    assert "Nothing was compared: no <champion> yet" in shown.words
    assert shown.all("table") == []


def test_a_drift_report_that_the_gate_did_not_judge_is_refused(run: Run):
    run.edit("drift", lambda found: found.update(on_drift="refuse"), hashes=False)
    with pytest.raises(StageInputError, match=r"inputs\.drift_sha256"):
        run.render()


@pytest.mark.parametrize(("key", "value"), [("verdict", "SPLENDID"), ("n_current", None), ("sentence", ...)])
def test_a_broken_check_is_refused_by_name(run: Run, key: str, value: object):
    def broken(found: dict[str, Any]) -> None:
        found["checks"][1][key] = value
        if value is ...:
            del found["checks"][1][key]

    run.edit("drift", broken)
    with pytest.raises(StageInputError, match=rf"drift\.json.*checks\.1\.{key}"):
        run.render()
