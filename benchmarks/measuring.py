"""Turns and spreads: what is compared takes turns, so that a busy moment of the machine meets every side."""

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)


def take_turns(arms: Mapping[Name, Callable[[], T]], repetitions: int) -> dict[Name, list[T]]:
    """Call every arm once per repetition; each repetition begins with the next arm, so that none is always first."""
    found: dict[Name, list[T]] = {name: [] for name in arms}
    names = list(arms)
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in [*names[first:], *names[:first]]:
            found[name].append(arms[name]())
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and all values in the order they were measured."""
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values), "values": list(values)}


def goal(description: str, value: float, limit: float, *, at_least: bool = True) -> dict[str, Any]:
    """A figure against what was hoped for."""
    return {
        "goal": description,
        "value": value,
        "limit": limit,
        "at_least": at_least,
        "reached": value >= limit if at_least else value <= limit,
    }
