import numpy as np
import pandas as pd
import pytest

from pipeline.reporting.figures import envelope, group_bar, nice_ticks, percent, trailing_mean, training_curve
from pipeline.reporting.formats.gate import Check
from pipeline.reporting.formats.metrics import Group
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.formats.training import Evaluation, Step


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.512, 0.66), (0, 240), (1e-6, 3e-6), (-2.0, 5.0), (0.7, 0.7), (0.0, 0.0), (1e9, 1e9)]
)
def test_ticks_enclose_the_range_at_equal_round_steps(low: float, high: float):
    ticks = nice_ticks(low, high, 4)
    steps = np.diff(ticks)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
    assert np.allclose(steps, steps[0])
    assert np.isclose(float(f"{steps[0]:e}".split("e")[0]), (1, 2, 5)).any()


def test_trailing_mean_is_pandas_rolling_mean():
    values = np.random.default_rng(0).normal(size=50)
    expected = pd.Series(values).rolling(7, min_periods=1).mean()
    assert np.allclose(trailing_mean(list(values), 7), expected)


def test_envelope_keeps_every_peak_and_the_order():
    points = [(float(x), 0.0) for x in range(10_000)]
    points[777], points[9_999] = (777.0, 9.0), (9_999.0, -3.0)
    kept = envelope(points, 400)
    assert len(kept) <= 400
    assert kept == sorted(kept)
    assert {points[777], points[9_999]} <= set(kept)
    assert envelope(points[:400], 400) == points[:400]


def test_percent_is_cut_to_the_track():
    assert [percent(value) for value in (-0.2, 0.0, 0.12345, 1.0, 1.7)] == [0.0, 0.0, 12.35, 100.0, 100.0]


def estimate(value: float | None = 0.8) -> Estimate:
    return Estimate(value=value, low=None if value is None else value - 0.1, high=None if value is None else value + 0.1, n=60)


def group(*, sufficient: bool = True, value: float | None = 0.8) -> Group:
    figure = estimate(value)
    return Group(n=60, share=0.1, accuracy=figure, macro_f1=figure, selection_rate={}, recall={}, sufficient=sufficient)


def check(verdict: str) -> Check:
    return Check.model_validate(
        {
            "name": "c",
            "verdict": verdict,
            "value": 0.8,
            "low": 0.7,
            "high": 0.9,
            "n": 60,
            "limit": 0.5,
            "denominator": None,
            "method": None,
            "rule": "",
            "sentence": "",
        }
    )


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "INSUFFICIENT", "MISSING", "DEGENERATE", "ERROR"])
def test_only_a_passed_check_of_a_sufficient_group_is_coloured_as_passing(verdict: str):
    assert group_bar("g", group(), check("PASS")).state == "pass"
    assert group_bar("g", group(), check(verdict)).state != "pass"
    assert group_bar("g", group(), None).state == "unlimited"
    assert group_bar("g", group(sufficient=False), check("PASS")).state == "insufficient"
    assert group_bar("g", group(sufficient=False), None).state == "insufficient"
    assert group_bar("g", group(value=None), check("PASS")).state == "insufficient"


def steps(*losses: float) -> list[Step]:
    return [Step(trial=0, step=index, loss=loss) for index, loss in enumerate(losses, 1)]


def evaluation(step: int, accuracy: float) -> Evaluation:
    return Evaluation(trial=0, step=step, accuracy=accuracy, macro_f1=accuracy / 2, loss=1.0, rows=9, best=False)


def test_curve_marks_the_best_step_where_it_lies():
    curve = training_curve(steps(*[1.0] * 200), [evaluation(50, 0.4), evaluation(150, 0.6)], ("accuracy", "macro_f1"), 150)
    assert curve is not None
    assert curve.best == 75.0
    loss, metrics = curve.panels
    assert [dot.best for dot in metrics.dots["selected"]] == [False, True]
    assert [dot.left for dot in metrics.dots["selected"]] == [25.0, 75.0]
    assert loss.paths["raw"].count("L") == 199
    assert "best at step 150, with 0.600 on 9 rows" in curve.alt


def test_selected_metric_decides_which_line_is_the_selected_one():
    evaluations = [evaluation(1, 0.4), evaluation(2, 0.8)]
    drawn = {}
    for metric, other in (("accuracy", "macro_f1"), ("macro_f1", "accuracy")):
        curve = training_curve([], evaluations, (metric, other), 2)
        assert curve is not None
        drawn[metric] = {role: [dot.bottom for dot in dots] for role, dots in curve.panels[1].dots.items()}
        assert ("0.800" if metric == "accuracy" else "0.400") in curve.alt
    assert drawn["accuracy"]["selected"] == drawn["macro_f1"]["other"] != drawn["macro_f1"]["selected"] == drawn["accuracy"]["other"]


@pytest.mark.parametrize(
    ("losses", "evaluated"), [((), ()), ((0.7,), ()), ((), (1,)), ((0.7, 0.7, 0.7), ()), ((1e-7, 1e6), (2,)), ((0.0,), (1,))]
)
def test_curves_of_short_and_flat_logs(losses: tuple[float, ...], evaluated: tuple[int, ...]):
    curve = training_curve(steps(*losses), [evaluation(step, 0.5) for step in evaluated], ("accuracy", "macro_f1"), None)
    if not losses and not evaluated:
        assert curve is None
        return
    assert curve is not None
    assert curve.best is None
    assert len(curve.panels) == (2 if evaluated else 1)
    assert all(0 <= tick.at <= 100 for panel in curve.panels for tick in panel.ticks)
