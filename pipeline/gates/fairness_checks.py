"""Checks of the fairness record: a floor on each listed group, and a limit on the largest difference between two of them."""

from functools import partial

from pipeline.evaluation.intervals import largest_difference
from pipeline.gates.checks import Check, Figure, Finding, NoFigure, Planned, against_maximum, against_minimum, judged
from pipeline.gates.estimates import Record, at, confidence_level_of, count_in, figure_in
from pipeline.params import DifferenceThreshold, GateParams, GroupThreshold


def fairness_checks(gate: GateParams, fairness: Record) -> list[Check]:
    """Every check of `gate` on the groups of the fairness record, in the order of the params."""
    return judged(_planned(gate, fairness))


def _planned(gate: GateParams, fairness: Record) -> list[Planned]:
    planned: list[Planned] = []
    for threshold in gate.group_thresholds:
        for group in threshold.groups:
            name = f"{threshold.metric} of {threshold.attribute}={group}"
            rule = "PASS when low >= limit; FAIL when high < limit; INSUFFICIENT below the minimum denominator"
            planned.append(Planned(name, rule, threshold.minimum, partial(_judge_group, threshold, group, fairness)))
    for difference in gate.difference_thresholds:
        name = f"{difference.metric} difference of {difference.attribute}"
        rule = "PASS when high <= limit; FAIL when low > limit; INSUFFICIENT when a listed group is"
        planned.append(Planned(name, rule, difference.maximum, partial(_judge_difference, difference, fairness)))
    return planned


def _judge_group(threshold: GroupThreshold, group: str, fairness: Record) -> Finding:
    figure = _group_figure(threshold.attribute, group, threshold.metric, fairness)
    return against_minimum(figure, threshold.minimum, f"{threshold.metric} of the rows with {threshold.attribute} {group}")


def _judge_difference(threshold: DifferenceThreshold, fairness: Record) -> Finding:
    counts: dict[str, tuple[int, int]] = {}
    for group in threshold.groups:
        figure = _group_figure(threshold.attribute, group, threshold.metric, fairness)
        counts[group] = (round(figure.value * figure.n), figure.n)
    level = confidence_level_of(fairness)
    found = largest_difference(counts, level)
    figure = Figure(found["value"], found["low"], found["high"], found["n"], level)
    first, second = found["between"]
    what = f"The largest {threshold.metric} difference of {threshold.attribute}, between {first} and {second},"
    return against_maximum(figure, threshold.maximum, what)


def _group_figure(attribute: str, group: str, metric: str, fairness: Record) -> Figure:
    """The group's figure; MISSING without rows, INSUFFICIENT below the record's minimum denominator."""
    record = at(fairness, ("attributes", attribute, "groups", group), "the fairness record")
    n = count_in(at(record, ("n",), f"group {group}"), f"the rows of group {group}")
    minimum = count_in(at(fairness, ("minimum_denominator",), "the fairness record"), "the minimum denominator")
    if n == 0:
        raise NoFigure("MISSING", f"No test row belongs to {attribute} {group}.", 0)
    if n < minimum:
        raise NoFigure("INSUFFICIENT", f"{attribute} {group} has {n} test rows, fewer than the minimum denominator of {minimum}.", n)
    figure = figure_in(at(record, (metric,), f"group {group}"), fairness, f"{metric} of {attribute} {group}", lowest=0.0)
    if figure.n != n:
        raise NoFigure("ERROR", f"{metric} of {attribute} {group} rests on {figure.n} rows, the group has {n}.", n)
    return figure
