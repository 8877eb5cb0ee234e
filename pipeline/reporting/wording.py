"""Figures as the cards write them, for people."""

import math

from pipeline.reporting.formats.data import DriftCheck
from pipeline.reporting.formats.gate import Check
from pipeline.reporting.formats.record import Estimate


def figure(value: float | None) -> str:
    """A number for people: whole counts as 1,700, else three decimals, with a true minus sign; "–" for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) > 1:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    text = figure(value)
    return f"+{text}" if value is not None and value > 0 and text != "0.000" else text


def share(value: float | None) -> str:
    """A share in whole percent; "–" for none."""
    return "–" if value is None else f"{value:.0%}"


def interval(estimate: Estimate | Check | DriftCheck, with_sign: bool = False) -> str:
    """The interval as "[0.588, 0.635]", or an empty text when there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    show = signed if with_sign else figure
    return f"[{show(estimate.low)}, {show(estimate.high)}]"


def why(estimate: Estimate) -> str:
    """The sentence that stands in place of a value that does not exist."""
    return f"not computable: {estimate.why or 'the report gives no reason'}"
