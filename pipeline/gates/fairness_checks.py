"""Checks of the fairness record: expected groups that have rows, a floor on each listed group, and limits on how much groups differ.

A difference is judged on counts, with intervals that hold for all differences the gate limits together: Bonferroni's correction over
attribute, metric, label, rate and pair of listed groups. Where the rows cannot decide, the check says about how many more would.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import ceil

from pipeline.fairness.parity import PARITIES, compare, comparisons, rate_of, rates_of
from pipeline.gates.checks import Check, Figure, Finding, NoFigure, Planned, against_maximum, against_minimum, judged, with_more_rows
from pipeline.gates.estimates import Record, at, confidence_level_of, count_in, figure_in, number_in
from pipeline.params import UNKNOWN_GROUP, AssessFairnessParams, DifferenceThreshold, GateParams, GroupThreshold

INTERVALS = "Newcombe's interval, or MOVER's where a figure is no share, at the level corrected (Bonferroni) for {} comparisons of the gate"


def fairness_checks(gate: GateParams, assessed: AssessFairnessParams, labels: Sequence[str], fairness: Record) -> list[Check]:
    """Every check of `gate` on the groups of the fairness record, in the order of the params."""
    expected = _expected_groups(assessed, fairness)
    return judged(chain(expected, _floors(gate, fairness), _differences(gate, labels, fairness)))


def _expected_groups(assessed: AssessFairnessParams, fairness: Record) -> Iterator[Planned]:
    rule = "PASS when every expected group has test rows; else MISSING"
    for name, attribute in {**assessed.groups, **assessed.columns}.items():
        if attribute.expected:
            judge = partial(_judge_expected, name, attribute.expected, fairness)
            yield Planned(f"expected groups of {name}", rule, 1.0, judge, "test rows in an expected group")


def _floors(gate: GateParams, fairness: Record) -> Iterator[Planned]:
    rule = "PASS when low >= limit; FAIL when high < limit; INSUFFICIENT below the minimum denominator"
    for threshold in gate.group_thresholds:
        for group in threshold.groups:
            metric = _named(threshold.metric, threshold.label)
            judge = partial(_judge_group, threshold, group, fairness)
            yield Planned(f"{metric} of {threshold.attribute}={group}", rule, threshold.minimum, judge)


def _differences(gate: GateParams, labels: Sequence[str], fairness: Record) -> Iterator[Planned]:
    limited = [(threshold, label) for threshold in gate.difference_thresholds for label in _labels(threshold, labels)]
    number = sum(comparisons(PARITIES[threshold.metric], len(threshold.groups), 1) for threshold, _ in limited)
    for threshold, label in limited:
        metric = f"{threshold.metric} difference" if threshold.metric == "accuracy" else threshold.metric
        ends = "low >= limit; FAIL when high < limit" if threshold.ratio else "high <= limit; FAIL when low > limit"
        rule = f"PASS when {ends}; INSUFFICIENT when a listed group is; DEGENERATE when all listed groups get one label alone"
        judge = partial(_judge_difference, threshold, label, labels, number, fairness)
        name = f"{_named(metric, label)} of {threshold.attribute}"
        yield Planned(name, rule, threshold.limit, judge, "rows of the listed groups that the rates rest on", INTERVALS.format(number))


def _labels(threshold: DifferenceThreshold, labels: Sequence[str]) -> Sequence[str | None]:
    return (threshold.labels or labels) if PARITIES[threshold.metric].per_label else [None]


def _named(metric: str, label: str | None) -> str:
    return metric if label is None else f"{metric} of {label}"


def _judge_expected(attribute: str, expected: Sequence[str], fairness: Record) -> Finding:
    groups = at(fairness, ("attributes", attribute, "groups"), "the fairness record")
    rows = {group: count_in(at(groups, (group, "n"), f"attribute {attribute}"), f"the rows of group {group}") for group in expected}
    absent = [group for group, n in rows.items() if n == 0]
    share, n = 1 - len(absent) / len(rows), sum(rows.values())
    if absent:
        return Finding("MISSING", f"No test row belongs to {attribute} {', '.join(absent)}, which params.yaml expects.", value=share, n=n)
    return Finding("PASS", f"All {len(rows)} expected groups of {attribute} have test rows.", value=share, n=n)


def _judge_group(threshold: GroupThreshold, group: str, fairness: Record) -> Finding:
    record = _group(threshold.attribute, group, fairness)
    metric = _named(threshold.metric, threshold.label)
    figure = _group_figure(threshold.attribute, group, record, threshold.metric, threshold.label, fairness)
    finding = against_minimum(figure, threshold.minimum, f"{metric} of the rows with {threshold.attribute} {group}")
    if threshold.metric == "macro_f1":  # no share, so counts do not give its interval
        return finding
    level = confidence_level_of(fairness)
    rate = rate_of(record, threshold.metric, threshold.label)

    def decided(times: float) -> bool:
        _, low, high = rate.times(times).ends(level)
        return low >= threshold.minimum or high < threshold.minimum

    return with_more_rows(finding, decided, figure.n, f"rows of {threshold.attribute} {group}")


def _judge_difference(threshold: DifferenceThreshold, label: str | None, labels: Sequence[str], number: int, fairness: Record) -> Finding:
    parity = PARITIES[threshold.metric]
    records: dict[str, Record] = {}
    for group in threshold.groups:
        records[group] = _group(threshold.attribute, group, fairness)
        for rate in parity.rates:
            _group_figure(threshold.attribute, group, records[group], rate, label, fairness)
    refuse_constant_answers(threshold.attribute, labels, records)
    level = confidence_level_of(fairness)
    rates = {group: rates_of(record, parity, label) for group, record in records.items()}
    found = compare(parity, rates, level, number)
    if found["value"] is None:
        raise NoFigure(
            "DEGENERATE", f"{_named(threshold.metric, label)} of {threshold.attribute} cannot be told: {found['why']}.", found["n"]
        )
    figure = Figure(found["value"], found["low"], found["high"], found["n"], level)
    between = " and ".join(found["between"])
    extreme = "smallest" if parity.ratio else "largest"
    what = f"The {extreme} {_difference_name(threshold)} of {_named_of(threshold.attribute, label)}, between {between},"
    finding = _against(threshold, figure, what)

    def decided(times: float) -> bool:
        more = compare(parity, {group: [rate.times(times) for rate in one] for group, one in rates.items()}, level, number)
        return _against(threshold, replace(figure, low=more["low"], high=more["high"]), what).verdict != "INCONCLUSIVE"

    return with_more_rows(finding, decided, sum(record["n"] for record in records.values()), f"rows of the {len(records)} groups")


def _difference_name(threshold: DifferenceThreshold) -> str:
    return "accuracy difference" if threshold.metric == "accuracy" else threshold.metric.replace("_", " ")


def _named_of(attribute: str, label: str | None) -> str:
    return attribute if label is None else f"{attribute} for label {label}"


def _against(threshold: DifferenceThreshold, figure: Figure, what: str) -> Finding:
    return (against_minimum if threshold.ratio else against_maximum)(figure, threshold.limit, what)


def refuse_constant_answers(attribute: str, labels: Sequence[str], records: Mapping[str, Record]) -> None:
    """Raise NoFigure (DEGENERATE) where all groups are given one label: no rate can differ then, whatever the prompt knows."""
    given: set[str] = set()
    for group, record in records.items():
        where = f"group {group}"
        counts = {label: count_in(at(record, ("predicted", label), where), f"the rows of {where} given {label}") for label in labels}
        if sum(counts.values()) != record["n"]:
            raise NoFigure("ERROR", f"{attribute} {group} has {record['n']} rows, given labels are counted for {sum(counts.values())}.")
        given |= {label for label, count in counts.items() if count}
    if len(given) < 2:
        raise NoFigure("DEGENERATE", f"All listed groups of {attribute} are given the label {given.pop()} alone, so no rate can differ.")


def _group(attribute: str, group: str, fairness: Record) -> Record:
    """The group's record, or that of the rows in no group; MISSING without rows."""
    path = (UNKNOWN_GROUP,) if group == UNKNOWN_GROUP else ("groups", group)
    record = at(fairness, ("attributes", attribute, *path), "the fairness record")
    if count_in(at(record, ("n",), f"group {group}"), f"the rows of group {group}") == 0:
        raise NoFigure("MISSING", f"No test row belongs to {attribute} {group}.", 0)
    return record


def _group_figure(attribute: str, group: str, record: Record, metric: str, label: str | None, fairness: Record) -> Figure:
    """The group's figure; INSUFFICIENT where fewer rows than the record's minimum denominator are behind it."""
    n = record["n"]
    minimum = count_in(at(fairness, ("minimum_denominator",), "the fairness record"), "the minimum denominator")
    found = at(record, (metric,) if label is None else (metric, label), f"group {group}")
    what = f"{_named(metric, label)} of {attribute} {group}"
    rows = count_in(at(found, ("n",), what), f"n of {what}")
    if rows > n or (label is None and rows != n):
        raise NoFigure("ERROR", f"{what} rests on {rows} rows, the group has {n}.", n)
    if rows < minimum:
        raise _insufficient(attribute, group, metric, label, rows, minimum, fairness)
    if metric == "calibration_gap":
        number_in(at(record, ("mean_confidence",), f"group {group}"), f"the mean confidence of group {group}", None, n)
    return figure_in(found, fairness, what, lowest=-1.0 if metric == "calibration_gap" else 0.0)


def _insufficient(attribute: str, group: str, metric: str, label: str | None, rows: int, minimum: int, fairness: Record) -> NoFigure:
    total = count_in(at(fairness, ("n",), "the fairness record"), "the number of test rows")
    more = ceil((minimum - rows) * total / rows) if rows else None
    what = (
        f"{attribute} {group} has {rows} test rows"
        if label is None
        else f"{_named(metric, label)} of {attribute} {group} rests on {rows} test rows"
    )
    enough = f" A test split with about {more:,} more rows of this composition would have them." if more else ""
    return NoFigure("INSUFFICIENT", f"{what}, fewer than the minimum denominator of {minimum}.{enough}", rows, more_rows=more)
