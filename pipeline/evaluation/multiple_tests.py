"""Tests of proportions against a floor, and the correction for making several of them at once."""

from collections.abc import Sequence


def binomial_below(successes: int, n: int, share: float) -> float:
    """One-sided exact p value, in [0, 1], of "the true share is at least `share`" on `successes` of `n` rows: P(X <= successes).

    Small when so few successes are unlikely for that share (Clopper and Pearson 1934). Raises ValueError unless
    0 <= successes <= n, n >= 1 and 0 <= share <= 1.
    """
    if not 0 <= successes <= n or n < 1 or not 0 <= share <= 1:
        raise ValueError(
            f"a test of a share needs 0 <= successes <= n, n >= 1 and a share from 0 to 1; found {successes} of {n} and {share}"
        )
    from scipy.stats import binom

    return float(binom.cdf(successes, n, share))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted for all of them being tested, in their order, each in [0, 1] and at least its own p value.

    Rejecting those whose adjusted value is at most alpha rejects a true hypothesis with probability at most alpha, however the
    tests depend on each other (Holm 1979, A simple sequentially rejective multiple test procedure).
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted
