"""How many more rows would decide a check whose interval holds the limit, if the rates stay as they are."""

from collections.abc import Callable

# Beyond this many times the present rows the answer is that the figure is at its limit, not that rows are missing.
MOST_TIMES = 1000


def rows_to_decide(decided: Callable[[float], bool], rows: int) -> int | None:
    """The smallest number of further rows with which `decided` holds, or None when a thousand times the `rows` do not suffice.

    `decided(times)` says whether the verdict would be clear with `times` as many rows in the same proportions. It is taken to stay true once it is,
    which holds up to rounding: intervals narrow with the root of the rows.
    """
    if decided(1.0):
        return 0
    if not decided(MOST_TIMES):
        return None
    few, enough = 0, (MOST_TIMES - 1) * rows
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if decided(1 + middle / rows) else (middle, enough)
    return enough
