"""The promotion rule: every check with its figures and a verdict, and the decision that follows from the verdicts.

Pure functions over the metrics and fairness records. The rule fails closed: the decision is `promote` only when there is at
least one check and every verdict is PASS. The verdicts:

PASS          the figure satisfies the limit over its whole interval (see each check for its exact rule)
FAIL          the figure violates the limit
INCONCLUSIVE  the interval holds the limit: this many rows cannot decide
INSUFFICIENT  fewer rows than the stated minimum
MISSING       the record lacks the figure, or the group has no rows
DEGENERATE    the tuned prompt gives one label too often, or another never
ERROR         the figure is not a finite number in its range, or the check could not be evaluated

Several floors at once need no correction for multiple tests, because all of them must hold. A limit on a difference alone
can be met by making the better group worse; set a floor on each group beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal, TypedDict

from pipeline.evaluation.intervals import largest_difference
from pipeline.params import (
    ChangeThreshold,
    DegeneracyThreshold,
    DifferenceThreshold,
    GateParams,
    GroupThreshold,
    ValueThreshold,
    gate_metrics,
)

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INSUFFICIENT", "MISSING", "DEGENERATE", "ERROR"]
Decision = Literal["promote", "refuse"]
Record = Mapping[str, Any]


class Check(TypedDict):
    """One check as it stands in the gate record; `value`, `low`, `high` and `n` are null where there is no such figure."""

    name: str
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    limit: float
    rule: str
    sentence: str


@dataclass(frozen=True)
class _Figure:
    value: float
    low: float
    high: float
    n: int
    confidence_level: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({100 * self.confidence_level:.4g} % interval {self.low:.3f} to {self.high:.3f}, n={self.n})"


@dataclass(frozen=True)
class _Finding:
    verdict: Verdict
    sentence: str
    figure: _Figure | None = None
    value: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class _Planned:
    """A check before it is judged; `judge` gives its finding or raises _NoFigure."""

    name: str
    rule: str
    limit: float
    judge: Callable[[], _Finding]


class _NoFigure(Exception):
    """A figure cannot be judged; carries the finding to report instead."""

    def __init__(self, verdict: Verdict, sentence: str, n: int | None = None) -> None:
        super().__init__(sentence)
        self.finding = _Finding(verdict, sentence, n=n)


def evaluate_checks(gate: GateParams, labels: Sequence[str], metrics: Record, fairness: Record) -> list[Check]:
    """Every check of `gate` on the tuned prompt of `labels`, in the order of the params; never raises for what the records hold."""
    return [_judged(planned) for planned in _planned_checks(gate, labels, metrics, fairness)]


def drift_checks(drift: Record) -> list[Check]:
    """The check on the drift record when the params want the gate to refuse for it (`drift.on_drift: refuse`), else none."""
    if drift.get("on_drift") != "refuse":
        return []
    rule = "PASS when no drift check fails; INSUFFICIENT when one has too few rows; a first version has nothing to drift from"
    return [_judged(_Planned("drift", rule, 0.0, partial(_judge_drift, drift)))]


def leakage_checks(leakage: Record, metrics: Record) -> list[Check]:
    """The check that no row of one split is in another, nor one of training or validation in the user's own test file, if there is one."""
    rule = "PASS when no row has the text, the normalised text, a near-duplicate or the origin of a row of another split"
    return [_judged(_Planned("leakage", rule, 0.0, partial(_judge_leakage, leakage, metrics)))]


def decide(checks: Sequence[Check]) -> tuple[Decision, list[str]]:
    """The decision and the reasons against promotion: the sentence of each check that does not pass."""
    reasons = [f"{check['name']}: {check['verdict']}: {check['sentence']}" for check in checks if check["verdict"] != "PASS"]
    if not checks:
        reasons.append("There are no checks, and without checks nothing is promoted.")
    return ("refuse" if reasons else "promote"), reasons


def _planned_checks(gate: GateParams, labels: Sequence[str], metrics: Record, fairness: Record) -> list[_Planned]:
    rows = partial(_judge_test_rows, gate.minimum_test_rows, metrics)
    planned = [_Planned("test_rows", "PASS when n >= limit", gate.minimum_test_rows, rows)]
    for value in gate.value_thresholds:
        judge = partial(_judge_value, value, labels, metrics)
        planned.append(_Planned(value.metric, "PASS when low >= limit; FAIL when high < limit", value.minimum, judge))
    for change in gate.change_thresholds:
        name = f"{change.metric} minus {change.baseline}"
        rule = "PASS when value >= limit and low > 0; FAIL when value < limit or high <= 0"
        planned.append(_Planned(name, rule, change.minimum_gain, partial(_judge_change, change, metrics)))
    for threshold in gate.group_thresholds:
        for group in threshold.groups:
            name = f"{threshold.metric} of {threshold.attribute}={group}"
            rule = "PASS when low >= limit; FAIL when high < limit; INSUFFICIENT below the minimum denominator"
            planned.append(_Planned(name, rule, threshold.minimum, partial(_judge_group, threshold, group, fairness)))
    for difference in gate.difference_thresholds:
        name = f"{difference.metric} difference of {difference.attribute}"
        rule = "PASS when high <= limit; FAIL when low > limit; INSUFFICIENT when a listed group is"
        planned.append(_Planned(name, rule, difference.maximum, partial(_judge_difference, difference, fairness)))
    judge = partial(_judge_degeneracy, gate.degeneracy, labels, metrics)
    rule = "PASS when no label takes more than limit of the predictions and every label is predicted"
    planned.append(_Planned("degeneracy", rule, gate.degeneracy.maximum_prediction_share, judge))
    return planned


def _judged(planned: _Planned) -> Check:
    try:
        finding = planned.judge()
    except _NoFigure as problem:
        finding = problem.finding
    except Exception as error:  # noqa: BLE001 - a check that cannot be evaluated must be listed and refuse, whatever the record held
        finding = _Finding(
            "ERROR", f"The check could not be evaluated ({type(error).__name__}: {error}); run the stages that wrote its inputs again."
        )
    figure = finding.figure
    return Check(
        name=planned.name,
        verdict=finding.verdict,
        value=figure.value if figure else finding.value,
        low=figure.low if figure else None,
        high=figure.high if figure else None,
        n=figure.n if figure else finding.n,
        limit=planned.limit,
        rule=planned.rule,
        sentence=finding.sentence,
    )


def _judge_test_rows(minimum: int, metrics: Record) -> _Finding:
    n = _count(_at(metrics, ("n",), "the metrics record"), "the number of test rows")
    if n < minimum:
        return _Finding("INSUFFICIENT", f"The test split has {n} rows, fewer than the minimum of {minimum}.", value=n, n=n)
    return _Finding("PASS", f"The test split has {n} rows, at least the minimum of {minimum}.", value=n, n=n)


def _judge_value(threshold: ValueThreshold, labels: Sequence[str], metrics: Record) -> _Finding:
    known = gate_metrics(labels)
    if threshold.metric not in known:
        raise _NoFigure("MISSING", f"{threshold.metric} is not a metric a minimum can be set on; there are: {', '.join(known)}.")
    path = ("variants", "tuned", *_metric_path(threshold.metric))
    figure = _figure(_at(metrics, path, "the metrics record"), metrics, threshold.metric, lowest=0.0)
    return _against_minimum(figure, threshold.minimum, f"{threshold.metric} of the tuned prompt")


def _judge_change(threshold: ChangeThreshold, metrics: Record) -> _Finding:
    what = f"{threshold.metric} of the tuned prompt minus {threshold.baseline}"
    path = ("comparisons", f"tuned_minus_{threshold.baseline}", threshold.metric)
    figure = _figure(_at(metrics, path, "the metrics record"), metrics, what, lowest=-1.0)
    gain = threshold.minimum_gain
    if figure.value < gain:
        return _Finding("FAIL", f"{what} is {figure}: the value is below the required gain of {gain:.3f}.", figure)
    if figure.high <= 0:
        return _Finding("FAIL", f"{what} is {figure}: the whole interval is at or below 0.", figure)
    if figure.low <= 0:
        return _Finding(
            "INCONCLUSIVE", f"{what} is {figure}: the value reaches the gain of {gain:.3f}, but the interval includes 0.", figure
        )
    return _Finding("PASS", f"{what} is {figure}: the value reaches the gain of {gain:.3f} and the interval lies above 0.", figure)


def _judge_group(threshold: GroupThreshold, group: str, fairness: Record) -> _Finding:
    figure = _group_figure(threshold.attribute, group, threshold.metric, fairness)
    return _against_minimum(figure, threshold.minimum, f"{threshold.metric} of the rows with {threshold.attribute} {group}")


def _judge_difference(threshold: DifferenceThreshold, fairness: Record) -> _Finding:
    counts: dict[str, tuple[int, int]] = {}
    for group in threshold.groups:
        figure = _group_figure(threshold.attribute, group, threshold.metric, fairness)
        counts[group] = (round(figure.value * figure.n), figure.n)
    level = _confidence_level(fairness)
    found = largest_difference(counts, level)
    figure = _Figure(found["value"], found["low"], found["high"], found["n"], level)
    first, second = found["between"]
    what = f"The largest {threshold.metric} difference of {threshold.attribute}, between {first} and {second}, is {figure}"
    if figure.high <= threshold.maximum:
        return _Finding("PASS", f"{what}: the upper end is within the maximum of {threshold.maximum:.3f}.", figure)
    if figure.low > threshold.maximum:
        return _Finding("FAIL", f"{what}: the lower end is above the maximum of {threshold.maximum:.3f}.", figure)
    return _Finding(
        "INCONCLUSIVE", f"{what}: the interval holds the maximum of {threshold.maximum:.3f}, so these rows cannot decide.", figure
    )


def _judge_degeneracy(threshold: DegeneracyThreshold, labels: Sequence[str], metrics: Record) -> _Finding:
    predicted = _at(metrics, ("variants", "tuned", "predicted"), "the metrics record")
    counts = {label: _count(_at(predicted, (label,), "the predicted counts"), f"predictions of {label}") for label in labels}
    n = _count(_at(metrics, ("n",), "the metrics record"), "the number of test rows")
    if n == 0 or sum(counts.values()) != n:
        raise _NoFigure("ERROR", f"The predicted counts sum to {sum(counts.values())}, the record has {n} test rows.", n)
    most = max(counts, key=lambda label: counts[label])
    share, maximum = counts[most] / n, threshold.maximum_prediction_share
    said = f"The most frequent prediction, {most}, takes {share:.3f} of {n} rows (maximum {maximum:.3f})"
    never = [label for label in labels if counts[label] == 0]
    if never:
        return _Finding("DEGENERATE", f"{said}, and never predicted: {', '.join(never)}.", value=share, n=n)
    if share > maximum:
        return _Finding("DEGENERATE", f"{said}: too much for a prompt that tells the labels apart.", value=share, n=n)
    return _Finding("PASS", f"{said}, and every label is predicted.", value=share, n=n)


def _judge_leakage(leakage: Record, metrics: Record) -> _Finding:
    rows = _at(leakage, ("rows",), "the leakage record")
    n = _count(_at(rows, ("test",), "the leakage record"), "the number of test rows")
    if n != metrics.get("n"):
        raise _NoFigure("ERROR", f"The leakage record is of a test split of {n} rows, the metrics are of {metrics.get('n')!r}.", n)
    sides = [("validation", "train"), ("test", "train"), ("test", "validation")]
    sides += [("external_test", "train"), ("external_test", "validation")] if "external_test" in rows else []
    found: dict[str, int] = {}
    for pair in (f"{second} in {first}" for second, first in sides):
        counts = {kind: _at(leakage, ("pairs", pair, kind), "the leakage record") for kind in ("exact", "normalised", "near", "origin")}
        found |= {f"{pair}: {kind}": _count(count, f"{kind} rows of {pair}") for kind, count in counts.items()}
    leaks = [f"{name} {count}" for name, count in found.items() if count]
    if leaks:
        return _Finding("FAIL", f"Rows of one split are in another ({', '.join(leaks)}).", value=max(found.values()), n=n)
    checked = " and not in the external test file" if len(sides) > 3 else ""
    return _Finding("PASS", f"No row of {sum(rows.values())} is, or is nearly, in another split{checked}.", value=0, n=n)


def _judge_drift(drift: Record) -> _Finding:
    checks = _at(drift, ("checks",), "the drift record")
    n = _count(_at(drift, ("rows", "current"), "the drift record"), "the number of training rows")
    found = {verdict: [check for check in checks if check["verdict"] == verdict] for verdict in ("FAIL", "INSUFFICIENT", "PASS")}
    if sum(map(len, found.values())) + sum(check["verdict"] == "NOT APPLICABLE" for check in checks) != len(checks) or not checks:
        raise _NoFigure("ERROR", "The drift record lists no checks, or one with an unknown verdict.", n)
    failed = len(found["FAIL"])
    for verdict in ("FAIL", "INSUFFICIENT"):
        if found[verdict]:
            said = " ".join(f"{check['name']}: {check['sentence']}" for check in found[verdict])
            return _Finding(
                verdict, f"{len(found[verdict])} of {len(checks)} drift checks have the verdict {verdict}. {said}", value=failed, n=n
            )
    if not found["PASS"]:
        return _Finding("PASS", f"No drift check applies. {checks[0]['sentence']}", value=failed, n=n)
    return _Finding("PASS", f"None of {len(checks)} drift checks fails.", value=failed, n=n)


def _against_minimum(figure: _Figure, minimum: float, what: str) -> _Finding:
    if figure.low >= minimum:
        return _Finding("PASS", f"{what} is {figure}: the lower end reaches the minimum of {minimum:.3f}.", figure)
    if figure.high < minimum:
        return _Finding("FAIL", f"{what} is {figure}: the upper end is below the minimum of {minimum:.3f}.", figure)
    return _Finding(
        "INCONCLUSIVE", f"{what} is {figure}: the interval holds the minimum of {minimum:.3f}, so these rows cannot decide.", figure
    )


def _group_figure(attribute: str, group: str, metric: str, fairness: Record) -> _Figure:
    """The group's figure; MISSING without rows, INSUFFICIENT below the record's minimum denominator."""
    record = _at(fairness, ("attributes", attribute, "groups", group), "the fairness record")
    n = _count(_at(record, ("n",), f"group {group}"), f"the rows of group {group}")
    minimum = _count(_at(fairness, ("minimum_denominator",), "the fairness record"), "the minimum denominator")
    if n == 0:
        raise _NoFigure("MISSING", f"No test row belongs to {attribute} {group}.", 0)
    if n < minimum:
        raise _NoFigure("INSUFFICIENT", f"{attribute} {group} has {n} test rows, fewer than the minimum denominator of {minimum}.", n)
    figure = _figure(_at(record, (metric,), f"group {group}"), fairness, f"{metric} of {attribute} {group}", lowest=0.0)
    if figure.n != n:
        raise _NoFigure("ERROR", f"{metric} of {attribute} {group} rests on {figure.n} rows, the group has {n}.", n)
    return figure


def _metric_path(metric: str) -> tuple[str, ...]:
    """Keys below the variant; a label may contain dots, the names around it do not."""
    if not metric.startswith("per_class."):
        return (metric,)
    label, _, name = metric.removeprefix("per_class.").rpartition(".")
    return "per_class", label, name


def _at(record: Any, path: Sequence[str], where: str) -> Any:
    found = record
    for depth, key in enumerate(path, 1):
        if not isinstance(found, Mapping) or key not in found:
            raise _NoFigure("MISSING", f"{where[0].upper()}{where[1:]} has no {' > '.join(path[:depth])}.")
        found = found[key]
    return found


def _figure(record: Any, report: Record, what: str, *, lowest: float) -> _Figure:
    """A finite estimate within [lowest, 1] whose ends are in order, at the report's confidence level; anything else is an ERROR."""
    n = _count(_at(record, ("n",), what), f"n of {what}")
    why = record.get("why")
    ends = [_number(_at(record, (key,), what), f"{key} of {what}", why, n) for key in ("value", "low", "high")]
    if n == 0 or not all(lowest <= end <= 1.0 for end in ends) or ends[1] > ends[2]:
        raise _NoFigure(
            "ERROR",
            f"{what} has value {ends[0]}, interval {ends[1]} to {ends[2]} and n {n}; expected rows and ordered ends within {lowest:g} and 1.",
            n,
        )
    return _Figure(ends[0], ends[1], ends[2], n, _confidence_level(report))


def _confidence_level(report: Record) -> float:
    level = _number(_at(report, ("confidence_level",), "the record"), "the confidence level", None, None)
    if not 0 < level < 1:
        raise _NoFigure("ERROR", f"The confidence level is {level}, expected one between 0 and 1.")
    return level


def _number(value: Any, what: str, why: Any, n: int | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise _NoFigure("ERROR", f"{what[0].upper()}{what[1:]} is {value!r}, expected a finite number{f' ({why})' if why else ''}.", n)
    return float(value)


def _count(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _NoFigure("ERROR", f"{what[0].upper()}{what[1:]} is {value!r}, expected a whole number from 0.")
    return value
