"""Figures as positions in percent, which the template draws with CSS and a stretched SVG path.

Drawn this way they follow the page's width and colour scheme, keep their text at reading size on a phone, and are
the same bytes on every machine (no fonts, no dates, no generated ids).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.reporting.formats.gate import Check
from pipeline.reporting.formats.metrics import Group
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.formats.training import Evaluated, Step

BarState = Literal["plain", "reference", "unlimited", "pass", "fail", "undecided", "insufficient"]

MAXIMUM_POINTS = 400


@dataclass(frozen=True)
class Bar:
    """One bar of a chart from 0 to 1. `low`, `high` and `limit` are None where there is no interval or no limit."""

    label: str
    note: str
    estimate: Estimate
    state: BarState
    verdict: str
    limit: float | None = None

    @property
    def drawable(self) -> bool:
        """Whether there is a value to draw."""
        return self.estimate.value is not None


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: position in percent from the left or the bottom, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A measured point of a panel, in percent from the left and from the bottom."""

    left: float
    bottom: float
    best: bool
    text: str


@dataclass(frozen=True)
class Panel:
    """One chart over the training steps: SVG paths in a box of 100 x 100 (y downwards), by CSS class, and dots."""

    title: str
    ticks: list[Tick]
    paths: dict[str, str]
    dots: dict[str, list[Dot]]


@dataclass(frozen=True)
class Curve:
    """The training curve: panels above a shared axis of steps, and the step that was kept."""

    panels: list[Panel]
    steps: list[Tick]
    best: float | None
    alt: str


def percent(value: float) -> float:
    """A share as percent, cut to [0, 100] and rounded so that the page has the same bytes everywhere."""
    return round(min(max(value, 0.0), 1.0) * 100, 2)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) whose first and last enclose [low, high]."""
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the up to `window - 1` values before it."""
    means: list[float] = []
    for index in range(len(values)):
        part = values[max(0, index + 1 - window) : index + 1]
        means.append(math.fsum(part) / len(part))
    return means


def envelope(points: Sequence[tuple[float, float]], maximum: int) -> list[tuple[float, float]]:
    """At most `maximum` points: of each run of neighbours the lowest and the highest stay, so that no peak is lost."""
    if len(points) <= maximum:
        return list(points)
    size = math.ceil(len(points) / (maximum // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept.extend(sorted(extremes))
    return kept


def group_bar(name: str, group: Group, check: Check | None) -> Bar:
    """A group's accuracy; its colour says passed only when the gate judged it so and the group has enough rows."""
    note = f"n {group.n:,}, {group.share:.0%} of the rows"
    limit = check.limit if check else None
    if not group.sufficient or group.accuracy.value is None:
        return Bar(name, note, group.accuracy, "insufficient", "too few rows" if not group.sufficient else "not computable", limit)
    if check is None:
        return Bar(name, note, group.accuracy, "unlimited", "")
    states: Mapping[str, BarState] = {"PASS": "pass", "FAIL": "fail"}
    return Bar(name, note, group.accuracy, states.get(check.verdict, "undecided"), check.verdict, limit)


def training_curve(steps: Sequence[Step], evaluations: Sequence[Evaluated], metrics: Sequence[str], best_step: int | None) -> Curve | None:
    """Training loss (raw and smoothed) with the validation loss, above the validation metrics; None without any record.

    The first of `metrics` (attributes of the evaluations) selected the step.
    """
    xs = [record.step for record in (*steps, *evaluations)]
    if not xs:
        return None
    ticks = [tick for tick in nice_ticks(min(0, *xs), max(xs), 5) if tick <= max(xs)]
    right = float(max(*xs, 1))
    axis = [Tick(percent(tick / right), f"{tick:,.0f}") for tick in ticks]
    best = None if best_step is None or not 0 <= best_step <= right else percent(best_step / right)
    panels = [_loss_panel(steps, evaluations, right, best_step), _metric_panel(evaluations, right, metrics, best_step)]
    return Curve([panel for panel in panels if panel], axis, best, _curve_text(steps, evaluations, metrics[0], best_step))


def smoothing_window(steps: Sequence[Step]) -> int:
    """How many steps the smoothed loss averages: a twentieth of the run, at least 1."""
    return max(1, round(len(steps) / 20))


def _loss_panel(steps: Sequence[Step], evaluations: Sequence[Evaluated], right: float, best_step: int | None) -> Panel | None:
    values = [record.loss for record in (*steps, *evaluations)]
    if not values:
        return None
    scale = nice_ticks(min(values), max(values), 4)
    raw = [(float(step.step), step.loss) for step in steps]
    smooth = list(zip((x for x, _ in raw), trailing_mean([y for _, y in raw], smoothing_window(steps)), strict=True))
    paths = {"raw": _path(envelope(raw, MAXIMUM_POINTS), right, scale), "smooth": _path(envelope(smooth, MAXIMUM_POINTS), right, scale)}
    dots = [_dot(record, record.loss, "loss", right, scale, best_step) for record in evaluations]
    return Panel("Loss", _axis(scale), paths, {"validation": dots})


def _metric_panel(evaluations: Sequence[Evaluated], right: float, metrics: Sequence[str], best_step: int | None) -> Panel | None:
    if not evaluations:
        return None
    series = {name: [float(getattr(record, name)) for record in evaluations] for name in metrics}
    scale = nice_ticks(min(map(min, series.values())), max(map(max, series.values())), 4)
    paths: dict[str, str] = {}
    dots: dict[str, list[Dot]] = {}
    for name, values in series.items():
        role = "selected" if name == metrics[0] else "other"
        paths[role] = _path([(float(record.step), value) for record, value in zip(evaluations, values, strict=True)], right, scale)
        dots[role] = [_dot(record, value, name, right, scale, best_step) for record, value in zip(evaluations, values, strict=True)]
    return Panel("Validation metrics", _axis(scale), paths, dots)


def _axis(scale: Sequence[float]) -> list[Tick]:
    decimals = max(0, -math.floor(math.log10(scale[1] - scale[0]) + 1e-9))
    return [Tick(_height(value, scale), f"{value:.{decimals}f}") for value in scale]


def _height(value: float, scale: Sequence[float]) -> float:
    return percent((value - scale[0]) / (scale[-1] - scale[0]))


def _dot(record: Evaluated, value: float, name: str, right: float, scale: Sequence[float], best_step: int | None) -> Dot:
    text = f"step {record.step:,}: validation {name.replace('_', ' ')} {value:.3f}"
    return Dot(percent(record.step / right), _height(value, scale), record.step == best_step, text)


def _path(points: Sequence[tuple[float, float]], right: float, scale: Sequence[float]) -> str:
    """The d attribute of an SVG path through the points, in a box of 100 x 100 with y downwards; empty without points."""
    places = [f"{percent(x / right):g} {round(100 - _height(y, scale), 2):g}" for x, y in points]
    return "M" + "L".join(places) if places else ""


def _curve_text(steps: Sequence[Step], evaluations: Sequence[Evaluated], metric: str, best_step: int | None) -> str:
    sentences: list[str] = []
    if steps:
        smooth = trailing_mean([step.loss for step in steps], smoothing_window(steps))
        sentences.append(f"Training loss over {len(steps):,} steps, smoothed, goes from {steps[0].loss:.3f} to {smooth[-1]:.3f}.")
    kept = next((record for record in evaluations if record.step == best_step), None)
    if kept:
        value = float(getattr(kept, metric))
        sentences.append(f"Validation {metric.replace('_', ' ')} is best at step {kept.step:,}, with {value:.3f} on {kept.rows:,} rows.")
    elif not evaluations:
        sentences.append("No validation was recorded.")
    return " ".join(sentences)
