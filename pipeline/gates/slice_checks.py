"""Floors on slices: the rows of each label, and of each group of an attribute, one check for each slice.

A slice passes on its own interval, without a correction, because every slice has to pass. It fails only when its share of right
answers is below the floor at a level that Holm's procedure holds for all slices together: of twenty slices that are just as good as they
should be, one would otherwise be found below by chance. In between, the rows cannot decide.

Slices with fewer rows than `minimum_rows` are judged together, as one pool for each floor: a single one could show nothing, and leaving
them out would let a prompt fail all of them. A listed slice without any row is MISSING.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.multiple_tests import binomial_below, holm
from pipeline.gates.checks import Check, Figure, Finding, NoFigure, Planned, judged
from pipeline.gates.estimates import Record, at, confidence_level_of, count_in, figure_in
from pipeline.params import UNKNOWN_GROUP, GateParams, SliceThreshold

LABEL = "label"
RULE = "PASS when low >= limit; FAIL when the share is below limit at the significance asked, by Holm's procedure over all slices"
METHOD = "Wilson's interval of the slice alone; exact one-sided binomial test, adjusted by Holm's procedure"
_WHOLE = 1e-6


@dataclass(frozen=True)
class _Slice:
    """The rows of one slice, or of all small ones of a floor: how many there are and how many are answered rightly."""

    name: str
    minimum: float
    successes: int
    n: int
    confidence_level: float

    @property
    def p_value(self) -> float:
        return binomial_below(self.successes, self.n, self.minimum)

    @property
    def figure(self) -> Figure:
        return Figure(
            self.successes / self.n, *wilson(self.successes, self.n, self.confidence_level), self.n, confidence_level=self.confidence_level
        )


@dataclass(frozen=True)
class _Unreadable:
    """A slice that cannot be judged, and the finding to report instead."""

    name: str
    minimum: float
    finding: Finding


def slice_checks(gate: GateParams, labels: Sequence[str], metrics: Record, fairness: Record) -> list[Check]:
    """One check for each slice of `gate.slices`, small ones together, in the order of the params."""
    rule = gate.slices
    slices = [one for threshold in rule.thresholds for one in _slices(threshold, labels, metrics, fairness, rule.minimum_rows)]
    adjusted = iter(holm([one.p_value for one in slices if isinstance(one, _Slice)]))
    return judged(_planned(one, next(adjusted) if isinstance(one, _Slice) else 1.0, rule.significance) for one in slices)


def _planned(one: _Slice | _Unreadable, p_value: float, significance: float) -> Planned:
    def judge() -> Finding:
        return _finding(one, p_value, significance) if isinstance(one, _Slice) else one.finding

    return Planned(f"slice {one.name}", RULE, one.minimum, judge, denominator=f"test rows with {one.name}", method=METHOD)


def _finding(one: _Slice, p_value: float, significance: float) -> Finding:
    figure = one.figure
    said = f"The share of right answers to rows with {one.name} is {figure}"
    if figure.low >= one.minimum:
        return Finding("PASS", f"{said}: the lower end reaches the minimum of {one.minimum:.3f}.", figure)
    evidence = f"p {p_value:.2g} for all slices together"
    if p_value <= significance:
        return Finding("FAIL", f"{said}: below the minimum of {one.minimum:.3f} beyond chance ({evidence}).", figure)
    return Finding(
        "INCONCLUSIVE",
        f"{said}: neither does its lower end reach the minimum of {one.minimum:.3f}, nor is it below beyond chance ({evidence}).",
        figure,
    )


def _slices(
    threshold: SliceThreshold, labels: Sequence[str], metrics: Record, fairness: Record, minimum_rows: int
) -> Iterator[_Slice | _Unreadable]:
    """The slices of one floor in the order of the params, those of `minimum_rows` or more first; the pool of the others last."""
    small: list[_Slice] = []
    for name in labels if threshold.by == LABEL else threshold.groups:
        read = partial(_label, name, metrics) if threshold.by == LABEL else partial(_group, threshold.by, name, fairness)
        one = _readable(f"{threshold.by} {name}", threshold.minimum, read)
        if isinstance(one, _Slice) and one.n < minimum_rows:
            small.append(one)
        else:
            yield one
    if small:
        yield _pooled(threshold, small, minimum_rows)


def _readable(name: str, minimum: float, read: "partial[tuple[Figure, float]]") -> _Slice | _Unreadable:
    try:
        figure, level = read()
        successes = round(figure.value * figure.n)
        if abs(figure.value * figure.n - successes) > _WHOLE * figure.n:
            raise NoFigure("ERROR", f"The share {figure.value} of {name} is of no whole number of {figure.n} rows.", figure.n)
    except NoFigure as problem:
        return _Unreadable(name, minimum, problem.finding)
    return _Slice(name, minimum, successes, figure.n, level)


def _pooled(threshold: SliceThreshold, small: Sequence[_Slice], minimum_rows: int) -> _Slice | _Unreadable:
    """All small slices of a floor as one; a row that is in two of them counts twice, as it does in their own figures."""
    name = f"{threshold.by} {' or '.join(one.name.removeprefix(f'{threshold.by} ') for one in small)} (small, together)"
    n = sum(one.n for one in small)
    if n < minimum_rows:
        said = f"The small slices have {n} test rows together, fewer than the minimum of {minimum_rows}: {name}."
        return _Unreadable(name, threshold.minimum, Finding("INSUFFICIENT", said, n=n))
    return _Slice(name, threshold.minimum, sum(one.successes for one in small), n, small[0].confidence_level)


def _label(label: str, metrics: Record) -> tuple[Figure, float]:
    """The share of right answers to the rows of a label, which is the label's recall."""
    found = at(metrics, ("variants", "tuned", "per_class", label, "recall"), "the metrics record")
    return _share(found, metrics, f"label {label}")


def _group(attribute: str, group: str, fairness: Record) -> tuple[Figure, float]:
    place = (UNKNOWN_GROUP,) if group == UNKNOWN_GROUP else ("groups", group)
    found = at(fairness, ("attributes", attribute, *place, "accuracy"), "the fairness record")
    return _share(found, fairness, f"{attribute} {group}")


def _share(found: object, record: Record, what: str) -> tuple[Figure, float]:
    if count_in(at(found, ("n",), what), f"n of {what}") == 0:
        raise NoFigure("MISSING", f"No test row belongs to {what}.", 0)
    return figure_in(found, record, f"the share of right answers to {what}", lowest=0.0), confidence_level_of(record)
