"""The forest plot and the reliability diagram: positions worked out by hand, and what the page shows of them."""

import json
import re
from typing import Any

import pytest

from pipeline.reporting.forest import ForestRow, forest, forest_of_differences, forest_of_shares
from pipeline.reporting.formats.gate import Check
from pipeline.reporting.formats.metrics import Fairness, Metrics, ReliabilityBin
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.reliability import reliability_diagram
from tests.reporting.card_run import GROUPS, LABELS, Run
from tests.reporting.pages import Element, read_page


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=100)


def check(name: str, verdict: str = "PASS", **figures: Any) -> Check:
    numbers = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 100, "limit": 0.4, "denominator": None, "method": None} | figures
    return Check.model_validate({"name": name, "verdict": verdict, "rule": "", "sentence": "", **numbers})


def test_axis_holds_every_interval_and_limit_and_places_are_percent_of_it():
    plot = forest([("A", [ForestRow("a", estimate(0.55, 0.5, 0.6), 0.41, "PASS"), ForestRow("b", estimate(0.75, 0.7, 0.8), None, "")])])
    assert (plot.scale[0], plot.scale[-1]) == (0.4, 0.8)
    assert [plot.at(value) for value in (0.4, 0.5, 0.6, 0.8, 0.1, 0.9)] == [0.0, 25.0, 50.0, 100.0, 0.0, 100.0]
    assert [tick.text for tick in plot.ticks] == ["0.40", "0.50", "0.60", "0.70", "0.80"]
    assert plot.alt == "2 figures with their intervals, 1 of them with a verdict; all of these passed."


@pytest.mark.parametrize(
    ("verdict", "mark"),
    [
        ("PASS", "pass"),
        ("FAIL", "fail"),
        ("DEGENERATE", "fail"),
        ("ERROR", "fail"),
        ("INCONCLUSIVE", "open"),
        ("MISSING", "open"),
        ("", "none"),
    ],
)
def test_only_a_pass_has_the_mark_of_one(verdict: str, mark: str):
    assert ForestRow("a", estimate(0.5), 0.4, verdict).mark == mark


def test_figures_that_do_not_exist_leave_an_axis():
    plot = forest([("A", [ForestRow("a", estimate(None), None, "MISSING")]), ("none", [])])
    assert plot.scale == [0.0, 1.0]
    assert [heading for heading, _ in plot.parts] == ["A"]
    assert plot.alt.endswith("not passed: a (MISSING).")


def records(run: Run) -> tuple[Metrics, Fairness, dict[str, Any]]:
    found = {name: json.loads(run.path(name).read_text(encoding="utf-8")) for name in ("metrics", "fairness", "gate")}
    return Metrics.model_validate(found["metrics"]), Fairness.model_validate(found["fairness"]), found


def test_each_slice_and_group_takes_limit_and_verdict_of_its_own_check(run: Run):
    metrics, fairness, _ = records(run)
    pool = "slice airline jetblue or united (small, together)"
    checks = [
        check("accuracy", limit=0.3),
        check("slice label neutral", "FAIL", limit=0.9),
        check("accuracy of airline=united", "INCONCLUSIVE", limit=0.2),
        check("slice airline jetblue", limit=0.1),
        check("slice airline unknown", limit=0.15),
        check(pool, "INSUFFICIENT", value=None, low=None, high=None),
        check("recall of positive of airline=usairways"),
    ]
    parts = dict(forest_of_shares(metrics, fairness, checks).parts)
    assert list(parts) == ["All test rows", "By label", "By airline", "Small slices together"]
    found = {row.label: (row.verdict, row.limit) for rows in parts.values() for row in rows}
    assert found == {
        "all": ("PASS", 0.3),
        **{label: ("FAIL", 0.9) if label == "neutral" else ("", None) for label in LABELS},
        **dict.fromkeys(GROUPS, ("", None)),
        "united": ("INCONCLUSIVE", 0.2),
        "jetblue": ("PASS", 0.1),
        "in no group": ("PASS", 0.15),
        "airline jetblue or united (small, together)": ("INSUFFICIENT", 0.4),
    }


def test_limited_differences_have_a_plot_of_their_own(run: Run):
    _, fairness, _ = records(run)
    named = [
        check("accuracy difference of airline", "FAIL"),
        check("demographic_parity_ratio of positive of airline"),
        check("accuracy of airline=united"),
    ]
    plot = forest_of_differences(fairness, named)
    assert plot is not None
    assert [row.label for _, rows in plot.parts for row in rows] == ["accuracy difference", "demographic parity ratio of positive"]
    assert forest_of_differences(fairness, named[2:]) is None


def reliability_bin(confidence: float, value: float, low: float, high: float) -> ReliabilityBin:
    accuracy = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 50}
    bounds = {"from": round(confidence - 0.05, 3), "to": round(confidence + 0.05, 3)}
    return ReliabilityBin.model_validate({**bounds, "confidence": confidence, "accuracy": accuracy, "null_low": low, "null_high": high})


def test_band_goes_along_its_upper_edge_and_back_along_the_lower():
    bins = [reliability_bin(0.75, 0.6, 0.65, 0.85), reliability_bin(0.5, 0.5, 0.4, 0.6)]
    drawn = reliability_diagram(bins, estimate(0.09), estimate(0.04))
    assert drawn.band == "M50 40L75 15L75 35L50 60Z"
    assert [(point.left, point.bottom, point.outside) for point in drawn.points] == [(50.0, 50.0, False), (75.0, 60.0, True)]
    assert "is 0.090; a calibrated prompt of these confidences would show 0.040" in drawn.alt
    assert "1 of 2 bins lie outside" in drawn.alt


def test_one_bin_has_a_band_of_its_width_and_none_has_no_band():
    assert reliability_diagram([reliability_bin(0.5, 0.5, 0.4, 0.6)], estimate(0.1), estimate(0.1)).band == "M45 40L55 40L55 60L45 60Z"
    empty = reliability_diagram([], estimate(None), estimate(None))
    assert (empty.band, empty.points) == ("", [])


def test_page_shows_a_row_for_every_slice_and_group_and_every_bin(run: Run):
    _, fairness, found = records(run)
    page = read_page(run.render())
    section = page.one("section", id="slices")
    rows = section.one("div", class_="forest").all("li")
    groups = fairness.attributes["airline"].groups
    assert len(rows) == 1 + len(LABELS) + len(groups) + 1
    by_name = {re.split(r"n [\d,]+", row.one("span", class_="what").words)[0].strip(): row for row in rows}
    for name in GROUPS[:5]:
        assert by_name[name].holds("class", "pass")
        assert len(by_name[name].all("i", class_="bound")) == 1
        assert "PASS" in by_name[name].words
    assert by_name["virginamerica"].holds("class", "none")
    assert "no limit" in by_name["virginamerica"].words
    bins = found["metrics"]["variants"]["tuned"]["reliability"]
    calibration = page.one("section", id="calibration")
    assert len(calibration.one("div", class_="plot").all("span", class_="bin")) == len(bins)
    assert len(calibration.one("tbody").all("tr")) == len(bins)
    images: list[Element] = calibration.all("svg", role="img")
    assert len(images) == 1
    assert "expected calibration error is" in images[0].attributes["aria-label"]
