"""The reliability diagram: how often the tuned prompt is right at each confidence, beside what a calibrated model would show.

Positions are percent of a square from 0 to 1, as in `pipeline.reporting.figures` (Bröcker and Smith 2007 for the band).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reporting.figures import percent
from pipeline.reporting.formats.metrics import ReliabilityBin
from pipeline.reporting.formats.record import Estimate


@dataclass(frozen=True)
class ReliabilityPoint:
    """One bin: its place, the ends of its interval, and whether it lies outside the band of a calibrated model."""

    left: float
    bottom: float
    low: float | None
    high: float | None
    outside: bool
    text: str


@dataclass(frozen=True)
class Reliability:
    """The diagram: an SVG path of the band in a box of 100 x 100 (y downwards; empty without bins), and the points."""

    band: str
    points: list[ReliabilityPoint]
    alt: str


def reliability_diagram(bins: Sequence[ReliabilityBin], ece: Estimate, ece_null: Estimate) -> Reliability:
    """The bins with rows in the order of their confidence, their null band, and the expected calibration error in words."""
    ordered = sorted(bins, key=lambda one: one.confidence)
    upper = [(one.confidence, one.null_high) for one in ordered]
    lower = [(one.confidence, one.null_low) for one in reversed(ordered)]
    # A single bin has no width; its band is drawn as wide as the bin.
    corners = [*upper, *lower] if len(ordered) > 1 else [corner for one in ordered for corner in _box(one)]
    places = [f"{percent(x):g} {round(100 - percent(y), 2):g}" for x, y in corners]
    points = [_point(one) for one in ordered if one.accuracy.value is not None]
    return Reliability("M" + "L".join(places) + "Z" if places else "", points, _words(points, ece, ece_null))


def _box(one: ReliabilityBin) -> list[tuple[float, float]]:
    return [(one.start, one.null_high), (one.to, one.null_high), (one.to, one.null_low), (one.start, one.null_low)]


def _point(one: ReliabilityBin) -> ReliabilityPoint:
    value, low, high = one.accuracy.value or 0.0, one.accuracy.low, one.accuracy.high
    said = f"confidence {one.confidence:.3f}: right {value:.3f} of {one.accuracy.n:,} rows; calibrated: {one.null_low:.3f} to {one.null_high:.3f}"
    outside = not one.null_low <= value <= one.null_high
    ends = [None if end is None else percent(end) for end in (low, high)]
    return ReliabilityPoint(percent(one.confidence), percent(value), ends[0], ends[1], outside, said)


def _words(points: Sequence[ReliabilityPoint], ece: Estimate, ece_null: Estimate) -> str:
    outside = sum(point.outside for point in points)
    said = f"{outside} of {len(points)} bins lie outside the band of a calibrated prompt."
    if ece.value is None or ece_null.value is None:
        return said
    return f"The expected calibration error is {ece.value:.3f}; a calibrated prompt of these confidences would show {ece_null.value:.3f} on as many rows. {said}"
