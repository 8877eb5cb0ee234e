"""Intervals of proportions, of their differences, and bootstrap intervals of figures without a closed form.

A proportion (accuracy, recall, precision, selection rate) gets the Wilson score interval (Wilson 1927): unlike a bootstrap it
keeps its width when every row is right or every row is wrong, and its coverage stays near the stated one at a few dozen rows.
A difference of proportions between separate sets of rows gets Newcombe's hybrid score interval (Newcombe 1998, method 10).
The rest is resampled over rows.

An *estimate* is a dict with `value`, `low`, `high` and `n`, as docs/stage-files.md defines it.
"""

from collections.abc import Iterator
from math import hypot, inf, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Estimate = dict[str, Any]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# A figure with the two ends of its interval: (value, low, high).
Ends = tuple[float, float, float]

# Numbers held at once while resampling: 32 MB of int64, whatever the number of rows and replicates.
_CHUNK = 4_000_000
# Fewer where they are counted one by one, which is quick as long as the counts stay in the processor's cache.
_COUNTED = 200_000


def estimate(value: float, interval: tuple[float, float], n: int) -> Estimate:
    """A point value with the ends of its interval and the number of rows behind it."""
    return {"value": float(value), "low": float(interval[0]), "high": float(interval[1]), "n": int(n)}


def no_estimate(n: int, why: str) -> Estimate:
    """A figure that cannot be computed, with the reason; it passes no check."""
    return {"value": None, "low": None, "high": None, "n": int(n), "why": why}


def wilson(successes: float, n: float, confidence_level: float) -> tuple[float, float]:
    """Wilson score interval of a proportion, within [0, 1]; raises ValueError unless 0 <= successes <= n and n >= 1.

    Both are counts; planning with more rows of the same share makes fractions of them.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n >= 1; found {successes} of {n}")
    z = _normal_quantile(confidence_level)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == n else min(1.0, centre + half_width)
    return low, high


def proportion(successes: int, n: int, confidence_level: float, why: str) -> Estimate:
    """Estimate of successes / n with its Wilson interval; without rows (n 0) an undefined one that says `why`."""
    if n == 0:
        return no_estimate(0, why)
    return estimate(successes / n, wilson(successes, n, confidence_level), n)


def f1_interval(hits: float, union: float, confidence_level: float) -> tuple[float, float]:
    """Interval of one class's F1 from `hits` correct rows among `union` rows that have the class or are predicted as it.

    F1 = 2J / (1 + J) rises with J = hits / union, which is a proportion, so the Wilson ends of J map to those of F1.
    """
    low, high = wilson(hits, union, confidence_level)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def newcombe(first: tuple[int, int], second: tuple[int, int], confidence_level: float) -> tuple[float, float]:
    """Interval of share(first) - share(second), each given as (successes, n) of separate rows, within [-1, 1]."""
    ends = [(counts[0] / counts[1], *wilson(*counts, confidence_level)) for counts in (first, second)]
    return difference_interval(ends[0], ends[1])


def difference_interval(first: Ends, second: Ends) -> tuple[float, float]:
    """Interval of first - second from (value, low, high) of each, made from separate rows: Zou and Donner's MOVER (2008).

    With Wilson intervals of two proportions this is Newcombe's interval. Nothing is added where both have no width.
    """
    (one, one_low, one_high), (other, other_low, other_high) = first, second
    difference = one - other
    return difference - hypot(one - one_low, other_high - other), difference + hypot(one_high - one, other - other_low)


def ratio_interval(first: Ends, second: Ends) -> tuple[float, float]:
    """Interval of first / second, both non-negative, from (value, low, high) of each: MOVER-R (Donner and Zou 2012), within [0, inf].

    The ends solve (first - r second)^2 = (distance of first to its end)^2 + (r times the distance of second to its end)^2.
    """
    (one, one_low, one_high), (other, other_low, other_high) = first, second
    product = one * other
    low_a, low_c = other_high * (2 * other - other_high), one_low * (2 * one - one_low)
    high_a, high_c = other_low * (2 * other - other_low), one_high * (2 * one - one_high)
    low_root, high_root = product + sqrt(max(0.0, product**2 - low_a * low_c)), sqrt(max(0.0, product**2 - high_a * high_c))
    low = low_c / low_root if low_c > 0 else 0.0
    high = (product + high_root) / high_a if high_a > 0 else inf
    return low, high


def paired_difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], confidence_level: float) -> tuple[Estimate, float]:
    """Share of True in `ours` [N] minus that in `theirs` [N], of the same rows, in [-1, 1]; and McNemar's exact two-sided p value.

    The interval is Newcombe's (1998, paired data, method 10), which keeps its width where no row differs. Raises ValueError without rows.
    """
    n = len(ours)
    both, neither = int((ours & theirs).sum()), int((~ours & ~theirs).sum())
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    (one, one_low, one_high), (other, other_low, other_high) = (
        (count / n, *wilson(count, n, confidence_level)) for count in (both + only_ours, both + only_theirs)
    )
    phi = _correlation(both, only_ours, only_theirs, neither)
    below, above, other_below, other_above = one - one_low, one_high - one, other - other_low, other_high - other
    low = one - other - sqrt(max(0.0, below**2 - 2 * phi * below * other_above + other_above**2))
    high = one - other + sqrt(max(0.0, above**2 - 2 * phi * above * other_below + other_below**2))
    discordant = only_ours + only_theirs
    p_value = float(binomtest(only_ours, discordant, 0.5).pvalue) if discordant else 1.0
    return estimate(one - other, (low, high), n), p_value


def _correlation(both: int, only_ours: int, only_theirs: int, neither: int) -> float:
    """Correlation of two paired proportions, a positive one corrected for continuity as in Newcombe's method 10."""
    margins = (both + only_ours) * (only_theirs + neither) * (both + only_theirs) * (only_ours + neither)
    if margins == 0:
        return 0.0
    product = both * neither - only_ours * only_theirs
    if product > 0:
        product = max(product - (both + only_ours + only_theirs + neither) / 2, 0)
    return product / sqrt(margins)


def resampled_sums(rows: Integers, replicates: int, seed: int) -> Integers:
    """Column sums of `rows` [N, M] over `replicates` resamples of N rows with replacement: [R, M].

    Equal rows are drawn together, as one multinomial count, so the cost follows the distinct rows and the result
    does not depend on the order of the rows.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    shares = counts / len(rows)
    drawn = [generator.multinomial(len(rows), shares, size=size) @ distinct for size in _chunks(replicates, len(distinct))]
    return np.concatenate(drawn)


def resampled_means(values: Floats, replicates: int, seed: int) -> Floats:
    """Means of `values` [N] over `replicates` resamples of N values with replacement: [R]."""
    generator = np.random.default_rng(seed)
    n = len(values)
    means = [values[generator.integers(0, n, size=(size, n))].mean(axis=1) for size in _chunks(replicates, n)]
    return np.concatenate(means)


def resampled_column_means(values: Floats, replicates: int, seed: int) -> Floats:
    """Column means of `values` [N, M] over `replicates` resamples of N rows with replacement: [R, M].

    All columns see the same resamples, which are drawn once as counts per row; the rest is a matrix product, so that many figures
    of many variants cost little more than one, and their replicates are paired.
    """
    generator = np.random.default_rng(seed)
    n = len(values)
    means: list[Floats] = []
    for size in _chunks(replicates, n, _COUNTED):
        drawn = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means.append(counts.astype(np.float64) @ values / n)
    return np.concatenate(means)


def percentile_interval(replicates: Floats, confidence_level: float) -> tuple[float, float]:
    """The central `confidence_level` of the replicate values; raises ValueError when one of them is not finite."""
    if not np.isfinite(replicates).all():
        raise ValueError("a bootstrap replicate is not finite; give undefined replicates a value first")
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def _normal_quantile(confidence_level: float) -> float:
    return NormalDist().inv_cdf((1 + confidence_level) / 2)


def _chunks(replicates: int, width: int, at_once: int | None = None) -> Iterator[int]:
    size = max(1, (at_once or _CHUNK) // width)
    for start in range(0, replicates, size):
        yield min(size, replicates - start)
