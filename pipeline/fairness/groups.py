"""Groups of rows as a property of their text: a row belongs to every group whose pattern its text matches."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Group name -> which rows belong to it [N].
Membership = Mapping[str, NDArray[np.bool_]]


def text_groups(texts: Sequence[str], patterns: Mapping[str, str]) -> Membership:
    """Group name -> rows [N] in whose text the group's regular expression is found; a row may be in several groups or in none."""
    return {name: _matches(re.compile(pattern), texts) for name, pattern in patterns.items()}


def groups_per_row(membership: Membership, rows: int) -> NDArray[np.int64]:
    """In how many groups each of `rows` rows is [N]."""
    counts = np.zeros(rows, dtype=np.int64)
    for members in membership.values():
        counts += members
    return counts


def _matches(pattern: re.Pattern[str], texts: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([pattern.search(text) is not None for text in texts], dtype=np.bool_)
