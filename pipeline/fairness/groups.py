"""Which rows belong to which group: by patterns in the text, by a column of the test split, or by two attributes at once.

A row that no group claims (no pattern matches, the column is empty) is in the group `unknown`. It is described like any other and
takes part in a comparison only where it is named: that nothing is known about a row is no property its rows share.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.params import UNKNOWN_GROUP, AssessFairnessParams, intersection_name

# Group name -> which rows belong to it [N].
Membership = Mapping[str, NDArray[np.bool_]]

UNKNOWN = UNKNOWN_GROUP


@dataclass(frozen=True)
class Attribute:
    """One way of sorting the rows into groups, each with its rows [N]; `expected` are the groups that must have rows."""

    derived_from: Literal["text", "column", "intersection"]
    groups: Membership
    expected: tuple[str, ...]

    def unknown(self, rows: int) -> NDArray[np.bool_]:
        """The rows [N] that are in no group."""
        return groups_per_row(self.groups, rows) == 0


def make_attributes(
    params: AssessFairnessParams, texts: Sequence[str], columns: Mapping[str, Sequence[str | None]]
) -> dict[str, Attribute]:
    """Every attribute of the params by name, intersections last; `columns` holds the values [N] of each attribute with a column."""
    found: dict[str, Attribute] = {}
    for name, by_text in params.groups.items():
        found[name] = Attribute("text", text_groups(texts, by_text.patterns), tuple(by_text.expected))
    for name, by_column in params.columns.items():
        found[name] = Attribute("column", column_groups(columns[name], by_column.expected), tuple(by_column.expected))
    for first, second in params.intersections:
        crossed = intersection(found[first].groups, found[second].groups)
        found[intersection_name(first, second)] = Attribute("intersection", crossed, ())
    return found


def text_groups(texts: Sequence[str], patterns: Mapping[str, str]) -> Membership:
    """Group name -> rows [N] in whose text the group's regular expression is found; a row may be in several groups or in none."""
    return {name: _matches(re.compile(pattern), texts) for name, pattern in patterns.items()}


def column_groups(values: Sequence[str | None], expected: Sequence[str]) -> Membership:
    """Group name -> rows [N] with that value: the expected groups first, with or without rows, then the others in order of name.

    An empty value is none. The value `unknown` says the same as an empty one.
    """
    given = np.array([value if value and value != UNKNOWN else "" for value in values], dtype=object)
    others = sorted(set(given) - {"", *expected})
    return {name: np.asarray(given == name, dtype=np.bool_) for name in (*expected, *others)}


def intersection(first: Membership, second: Membership) -> Membership:
    """Every group of the one with every group of the other, those without rows included, named `<one> & <other>`."""
    return {intersection_name(one, other): first[one] & second[other] for one in first for other in second}


def groups_per_row(membership: Membership, rows: int) -> NDArray[np.int64]:
    """In how many groups each of `rows` rows is [N]."""
    counts = np.zeros(rows, dtype=np.int64)
    for members in membership.values():
        counts += members
    return counts


def _matches(pattern: re.Pattern[str], texts: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([pattern.search(text) is not None for text in texts], dtype=np.bool_)
