"""Reading estimates from the records of earlier stages: what is absent, no number or out of its range becomes a verdict."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from pipeline.gates.checks import Figure, NoFigure

Record = Mapping[str, Any]


def at(record: Any, path: Sequence[str], where: str) -> Any:
    """What the record holds under the keys of `path`; raises NoFigure (MISSING) naming the first key that is not there."""
    found = record
    for depth, key in enumerate(path, 1):
        if not isinstance(found, Mapping) or key not in found:
            raise NoFigure("MISSING", f"{where[0].upper()}{where[1:]} has no {' > '.join(path[:depth])}.")
        found = found[key]
    return found


def figure_in(record: Any, report: Record, what: str, *, lowest: float) -> Figure:
    """A finite estimate within [lowest, 1] whose ends are in order, at the report's confidence level; anything else is an ERROR."""
    n = count_in(at(record, ("n",), what), f"n of {what}")
    why = record.get("why")
    ends = [number_in(at(record, (key,), what), f"{key} of {what}", why, n) for key in ("value", "low", "high")]
    if n == 0 or not all(lowest <= end <= 1.0 for end in ends) or ends[1] > ends[2]:
        raise NoFigure(
            "ERROR",
            f"{what} has value {ends[0]}, interval {ends[1]} to {ends[2]} and n {n}; expected rows and ordered ends within {lowest:g} and 1.",
            n,
        )
    return Figure(ends[0], ends[1], ends[2], n, confidence_level_of(report))


def confidence_level_of(report: Record) -> float:
    """The confidence level of the record's intervals, in (0, 1)."""
    level = number_in(at(report, ("confidence_level",), "the record"), "the confidence level", None, None)
    if not 0 < level < 1:
        raise NoFigure("ERROR", f"The confidence level is {level}, expected one between 0 and 1.")
    return level


def number_in(value: Any, what: str, why: Any, n: int | None) -> float:
    """`value` as a finite number; anything else raises NoFigure (ERROR), with `why` the record has none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise NoFigure("ERROR", f"{what[0].upper()}{what[1:]} is {value!r}, expected a finite number{f' ({why})' if why else ''}.", n)
    return float(value)


def count_in(value: Any, what: str) -> int:
    """`value` as a whole number from 0; anything else raises NoFigure (ERROR)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise NoFigure("ERROR", f"{what[0].upper()}{what[1:]} is {value!r}, expected a whole number from 0.")
    return value
