"""What would change this verdict: for each check that does not pass, what is missing, in numbers.

Where the gate record says how many more rows would decide, that stands here. Else it is worked out from the check's own interval, whose
width is taken to shrink with the root of the rows; so every figure here is a rough one, for planning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from pipeline.evaluation.sample_size import MOST_TIMES
from pipeline.reporting.formats.gate import Check

Way = Literal["low", "high", "gain", "rows", "other"]

# How the rules that the gate writes beside its checks begin, and which end of the interval they look at.
_WAYS: tuple[tuple[str, Way], ...] = (
    ("PASS when low >= limit", "low"),
    ("PASS when high <= limit", "high"),
    ("PASS when value >= limit and low > 0", "gain"),
    ("PASS when one-sided exact McNemar p <= level", "gain"),
    ("PASS when low > 0; FAIL when value <= 0", "gain"),
    ("PASS when n >= limit", "rows"),
)


@dataclass(frozen=True)
class Change:
    """A check that does not pass and what would have to be otherwise, as sentences."""

    check: str
    verdict: str
    sentences: list[str]


def changes(checks: Sequence[Check]) -> list[Change]:
    """One for each check that does not pass, in the gate's order."""
    return [Change(check.name, check.verdict, _sentences(check)) for check in checks if check.verdict != "PASS"]


def way_to_pass(rule: str) -> Way:
    """Which figure a rule of the gate compares with its limit; `other` where it is no single end of an interval."""
    for start, way in _WAYS:
        if rule.startswith(start):
            return way
    return "other"


def value_needed(check: Check) -> float | None:
    """The value with which the check would pass if its interval stayed as wide; None where no single end decides."""
    if check.value is None or check.low is None or check.high is None or check.limit is None:
        return None
    way = way_to_pass(check.rule)
    if way == "low":
        return check.limit + (check.value - check.low)
    if way == "high":
        return check.limit - (check.high - check.value)
    return max(check.limit, check.value - check.low) if way == "gain" else None


def rows_needed(check: Check) -> int | None:
    """About how many more rows would decide a check that has too few; None where nobody can say, or a thousand times as many do not."""
    if check.more_rows is not None:
        return check.more_rows
    if check.n is None:
        return None
    if way_to_pass(check.rule) == "rows" and check.limit is not None:
        return max(0, ceil(check.limit) - check.n)
    if check.verdict != "INCONCLUSIVE" or check.value is None or check.low is None or check.high is None or check.limit is None:
        return None
    way = way_to_pass(check.rule)
    bound = 0.0 if way == "gain" else check.limit
    distance = abs(check.value - bound)
    if way not in ("low", "high", "gain") or distance == 0:
        return None
    width = check.value - check.low if check.value > bound else check.high - check.value
    times = (width / distance) ** 2
    return ceil(check.n * (times - 1) - 1e-6) if 1 <= times <= MOST_TIMES else None


def _sentences(check: Check) -> list[str]:
    if check.verdict in ("MISSING", "ERROR", "DEGENERATE") or (check.value is None and rows_needed(check) is None):
        return [f"Nothing that can be counted: {check.sentence}"]
    said = [*_of_value(check), *_of_rows(check)]
    return said or [f"No number can be given; the rule is: {check.rule}."]


def _of_value(check: Check) -> list[str]:
    needed = value_needed(check)
    if needed is None or check.value is None:
        return []
    step = needed - check.value
    possible = "" if -1 <= needed <= 1 else ", which no figure of this kind can be: only more rows, or another limit, would do"
    return [
        f"With as many rows, the value would have to be about {_number(needed)} instead of {_number(check.value)} ({_signed(step)}){possible}."
    ]


def _of_rows(check: Check) -> list[str]:
    if check.verdict == "FAIL":
        return [] if check.low is None else ["More rows of the same kind would only confirm it."]
    rows = rows_needed(check)
    if rows is None:
        return (
            []
            if check.verdict != "INCONCLUSIVE"
            else ["No affordable number of rows would decide it, because the value lies so close to the limit."]
        )
    if check.verdict != "INCONCLUSIVE":
        return [f"About {rows:,} more rows would be enough to judge it."]
    return [f"With about {rows:,} more rows, and rates as they are, it would {'pass' if _on_the_right_side(check) else 'fail'}."]


def _on_the_right_side(check: Check) -> bool:
    if check.value is None or check.limit is None:
        return False
    return check.value <= check.limit if way_to_pass(check.rule) == "high" else check.value >= check.limit


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
