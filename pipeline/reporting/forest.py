"""The forest plot: the share of right answers to each slice and group, and each limited difference, with interval, limit and verdict.

Rows stand on one axis, so that a slice that stays behind is seen beside the others and beside all test rows. Positions are percent of
that axis, as in `pipeline.reporting.figures`. A verdict has a mark of its own shape besides its colour (WCAG 2.2, 1.4.1).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.reporting.figures import Tick, nice_ticks, percent
from pipeline.reporting.formats.gate import Check
from pipeline.reporting.formats.metrics import Attribute, Fairness, Group, Metrics
from pipeline.reporting.formats.record import Estimate

Mark = Literal["pass", "fail", "open", "none"]

UNKNOWN_NAME = "in no group"
_FAILED = frozenset({"FAIL", "DEGENERATE", "ERROR"})


@dataclass(frozen=True)
class ForestRow:
    """One slice, group or difference; `verdict` is empty and `limit` None where the gate has no check for it."""

    label: str
    estimate: Estimate
    limit: float | None
    verdict: str
    note: str = ""

    @property
    def mark(self) -> Mark:
        """The shape that the verdict is drawn with."""
        if not self.verdict:
            return "none"
        return "pass" if self.verdict == "PASS" else "fail" if self.verdict in _FAILED else "open"


@dataclass(frozen=True)
class Forest:
    """Rows under headings, and the round numbers of the axis they share; the first and last tick are its ends."""

    parts: list[tuple[str, list[ForestRow]]]
    scale: list[float]

    @property
    def ticks(self) -> list[Tick]:
        """The marks of the axis."""
        return [Tick(self.at(value), f"{value:.2f}".replace("-", "−")) for value in self.scale]

    def at(self, value: float) -> float:
        """Where a figure stands, in percent from the left; figures beyond the axis at its end."""
        return percent((value - self.scale[0]) / (self.scale[-1] - self.scale[0]))

    @property
    def alt(self) -> str:
        """The plot in words: how many rows there are, which do not pass, and the lowest."""
        rows = [row for _, part in self.parts for row in part]
        judged = [row for row in rows if row.verdict]
        against = [f"{row.label} ({row.verdict})" for row in judged if row.verdict != "PASS"]
        said = f"{len(rows)} figures with their intervals, {len(judged)} of them with a verdict"
        return f"{said}; {'not passed: ' + ', '.join(against) if against else 'all of these passed' if judged else 'none is limited'}."


def forest_of_shares(metrics: Metrics, fairness: Fairness, checks: Sequence[Check]) -> Forest:
    """The share of right answers to all test rows, to the rows of each label (its recall), and to those of each group."""
    by_name = {check.name: check for check in checks}
    tuned = metrics.variants.tuned
    parts = [("All test rows", [_row("all", tuned.accuracy, by_name.get("accuracy"))])]
    parts.append(
        ("By label", [_row(label, tuned.per_class[label].recall, by_name.get(f"slice label {label}")) for label in metrics.labels])
    )
    parts += [(f"By {name}", _attribute(name, attribute, by_name)) for name, attribute in fairness.attributes.items()]
    pooled = [_row(check.name.removeprefix("slice "), _estimate(check), check) for check in checks if _is_pool(check)]
    if pooled:
        parts.append(("Small slices together", pooled))
    return forest(parts)


def forest_of_differences(fairness: Fairness, checks: Sequence[Check]) -> Forest | None:
    """Each difference or ratio between groups that the gate limits, with the check's own interval; None where it limits none."""
    parts: list[tuple[str, list[ForestRow]]] = []
    for name in fairness.attributes:
        limited = [check for check in checks if check.name.endswith(f" of {name}") and _is_difference(check)]
        if limited:
            parts.append(
                (
                    f"By {name}",
                    [_row(check.name.removesuffix(f" of {name}").replace("_", " "), _estimate(check), check) for check in limited],
                )
            )
    return forest(parts) if parts else None


def forest(parts: Sequence[tuple[str, Sequence[ForestRow]]]) -> Forest:
    """The rows on an axis that holds every interval and limit."""
    figures = [figure for _, rows in parts for row in rows for figure in (*_ends(row.estimate), row.limit) if figure is not None]
    scale = nice_ticks(min(figures), max(figures), 5) if figures else [0.0, 1.0]
    return Forest([(heading, list(rows)) for heading, rows in parts if rows], scale)


def _attribute(name: str, attribute: Attribute, checks: Mapping[str, Check]) -> list[ForestRow]:
    groups: Iterable[tuple[str, str, Group]] = [(group, group, figures) for group, figures in attribute.groups.items()]
    everyone = [*groups, ("unknown", UNKNOWN_NAME, attribute.unknown)]
    return [
        _row(label, figures.accuracy, checks.get(f"accuracy of {name}={key}") or checks.get(f"slice {name} {key}"), figures.sufficient)
        for key, label, figures in everyone
        if figures.n or key != "unknown"
    ]


def _row(label: str, estimate: Estimate, check: Check | None, sufficient: bool = True) -> ForestRow:
    verdict = check.verdict if check else ""
    return ForestRow(label, estimate, check.limit if check else None, verdict, "" if sufficient else "too few rows")


def _estimate(check: Check) -> Estimate:
    why = None if check.value is not None else check.sentence
    return Estimate(value=check.value, low=check.low, high=check.high, n=check.n or 0, why=why)


def _is_pool(check: Check) -> bool:
    return check.name.startswith("slice ") and check.name.endswith("(small, together)")


def _is_difference(check: Check) -> bool:
    return "difference" in check.name or "ratio" in check.name


def _ends(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high
