"""Checks of how much more groups of rows differ than with the champion, on the same rows; a first version has nothing to differ from."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.fairness.relative import METHOD, Limited, limited_differences
from pipeline.gates.checks import Check, Finding, NoFigure, Planned, against_maximum, judged
from pipeline.gates.estimates import Record, at, count_in, figure_in
from pipeline.gates.fairness_checks import refuse_constant_answers
from pipeline.params import UNKNOWN_GROUP, GateParams

RULE = "PASS when high <= limit; FAIL when low > limit; INSUFFICIENT below the minimum denominator; a first version passes"
_RECORD = "the record of changes against the champion"


def relative_checks(gate: GateParams, labels: Sequence[str], fairness: Record, comparison: Record) -> list[Check]:
    """The checks that `gate.relative_difference_thresholds` asks for, on the fairness record, label by label.

    The champion must be the one of the comparison record.
    """
    limited = limited_differences(gate.relative_difference_thresholds, labels)
    return judged(
        Planned(
            f"{_named(one)} against the champion",
            RULE,
            limit,
            partial(_judge, one, limit, len(limited), labels, fairness, comparison),
            "rows of the listed groups that both answered",
            METHOD,
        )
        for one, limit in limited
    )


def _named(asked: Limited) -> str:
    metric = f"{asked.metric} difference" if asked.metric == "accuracy" else asked.metric
    return f"{metric}{f' of {asked.label}' if asked.label else ''} of {asked.attribute}"


def _judge(asked: Limited, limit: float, number: int, labels: Sequence[str], fairness: Record, comparison: Record) -> Finding:
    relative = at(fairness, ("relative",), "the fairness record")
    version, comparable, reason = (at(relative, (key,), _RECORD) for key in ("champion", "comparable", "reason"))
    compared = at(comparison, ("champion",), "the comparison record")
    if version != (None if compared is None else at(compared, ("version",), "the champion")):
        raise NoFigure(
            "ERROR", f"Groups were compared with version {version}, the comparison is with another champion. Run assess_fairness again."
        )
    if version is None:
        if comparable is not False or not isinstance(reason, str) or not reason:
            raise NoFigure("ERROR", "The fairness record names neither a champion nor the reason why there is none.")
        return Finding("PASS", f"This is a first version ({reason}): there is no champion whose groups could differ less.", value=0.0, n=0)
    version = count_in(version, "the champion's version")
    if comparable is not True:
        return Finding("INCONCLUSIVE", f"The champion, version {version}, cannot be compared with: {reason}. A person decides.")
    if count_in(at(relative, ("number",), _RECORD), "the number of changes") != number:
        raise NoFigure(
            "ERROR", f"The changes were computed for {relative['number']} limits, the gate has {number}. Run assess_fairness again."
        )
    record = _record_of(asked, at(relative, ("differences",), _RECORD))
    _refuse_few(asked, record, fairness)
    groups = {group: at(fairness, ("attributes", asked.attribute, *_place(group)), "the fairness record") for group in asked.groups}
    refuse_constant_answers(asked.attribute, labels, groups)
    what = f"The change of {_named(asked)} against the champion, version {version},"
    lowest = -2.0 if asked.metric == "calibration_gap_difference" else -1.0
    figure = figure_in(at(record, ("change",), _RECORD), fairness, what, lowest=lowest)
    return against_maximum(figure, limit, what)


def _place(group: str) -> tuple[str, ...]:
    return (UNKNOWN_GROUP,) if group == UNKNOWN_GROUP else ("groups", group)


def _record_of(asked: Limited, differences: Any) -> Mapping[str, Any]:
    wanted = asked.described()
    found: list[Mapping[str, Any]] = [one for one in differences if isinstance(one, Mapping)] if isinstance(differences, list) else []
    matching = [one for one in found if all(key in one and one[key] == value for key, value in wanted.items())]
    if len(matching) != 1:
        raise NoFigure(
            "MISSING", f"The record of changes against the champion has {len(matching)} entries of {_named(asked)}, expected one."
        )
    return matching[0]


def _refuse_few(asked: Limited, record: Record, fairness: Record) -> None:
    rows = {group: count_in(at(record, ("rows", group), _RECORD), f"the rows of group {group}") for group in asked.groups}
    absent = [group for group, n in rows.items() if n == 0]
    if absent:
        raise NoFigure("MISSING", f"No test row belongs to {asked.attribute} {', '.join(absent)}.", 0)
    minimum = count_in(at(fairness, ("minimum_denominator",), "the fairness record"), "the minimum denominator")
    smallest = count_in(at(record, ("smallest_denominator",), _RECORD), "the smallest denominator")
    if smallest < minimum:
        said = f"A rate of {_named(asked)} rests on {smallest} test rows, fewer than the minimum denominator of {minimum}."
        raise NoFigure("INSUFFICIENT", said, smallest)
