"""A candidate against the champion on the same test rows: how sure it is that one is better, or not worse than by a margin.

Each row is answered by both, so only the rows that one has right and the other wrong (the discordant ones) tell them apart. The exact
McNemar test (McNemar 1947) is a binomial test on those. The interval of the difference of two accuracies on the same rows is Tango's
score interval (Tango 1998, Statistics in Medicine 17): unlike a bootstrap it keeps its width when few rows are discordant, or none is.

The level of an attempt is that of `paired.level_of_attempt`: whoever tries often enough against one champion on one test set wins by luck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.evaluation.intervals import Estimate, Integers, estimate
from pipeline.evaluation.metrics import accuracy, compare, macro_f1
from pipeline.evaluation.paired import level_of_attempt, mcnemar_superior
from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.params import CompareParams

ACCURACY = "accuracy"
RIGHT_OR_WRONG = (ACCURACY, "exact_match")  # a row is right or wrong; other metrics have no rows that only one has right
_EDGE = 1e-12


@dataclass(frozen=True)
class PairedCounts:
    """How many rows each of the two has right."""

    both_right: int
    candidate_only: int
    champion_only: int
    both_wrong: int

    @property
    def n(self) -> int:
        """All rows."""
        return self.both_right + self.candidate_only + self.champion_only + self.both_wrong


def paired_counts(actual: Integers, candidate: Integers, champion: Integers) -> PairedCounts:
    """Count the rows by which of the two gives the actual label; all [N]."""
    first, second = candidate == actual, champion == actual
    return counts_of(first, second)


def counts_of(candidate_right: NDArray[np.bool_], champion_right: NDArray[np.bool_]) -> PairedCounts:
    """The rows by which of the two is right; both [N]."""
    first, second = candidate_right, champion_right
    return PairedCounts(
        both_right=int((first & second).sum()),
        candidate_only=int((first & ~second).sum()),
        champion_only=int((~first & second).sum()),
        both_wrong=int((~first & ~second).sum()),
    )


def tango(counts: PairedCounts, confidence_level: float) -> tuple[float, float]:
    """Score interval of accuracy(candidate) - accuracy(champion) on the same rows, within [-1, 1]; raises ValueError without rows."""
    if counts.n == 0:
        raise ValueError("a difference on the same rows needs rows")
    z = NormalDist().inv_cdf((1 + confidence_level) / 2)
    observed = (counts.candidate_only - counts.champion_only) / counts.n
    low, high = -1.0 + _EDGE, 1.0 - _EDGE

    def beyond(difference: float, bound: float) -> float:
        return _tango_statistic(counts, difference) - bound

    def where(first: float, last: float, bound: float) -> float:
        found: Any = brentq(beyond, first, last, args=(bound,), xtol=1e-10)
        return float(found)

    return (
        where(low, observed, z) if observed > low else -1.0,
        where(observed, high, -z) if observed < high else 1.0,
    )


def compare_with_champion(
    predictions: Predictions,
    champion: Scored,
    *,
    settings: CompareParams,
    attempts: int,
    replicates: int,
    confidence_level: float,
    seed: int,
) -> dict[str, Any]:
    """The figures of comparison.json; `confidence_level` is that of each one's own metric, the difference has 1 - 2 * level.

    `guarded` has the difference of every metric a guard may name at `confidence_level`: metrics that have only to hold need no share of the level.
    """
    actual, candidate = predictions.actual, predictions.tuned
    counts = paired_counts(actual, candidate.predicted, champion.predicted)
    level = level_of_attempt(settings.significance, attempts)
    own = {
        name: _metric(settings.metric, predictions, scored, confidence_level, replicates, seed)
        for name, scored in (("candidate", candidate), ("champion", champion))
    }
    difference = _difference(settings.metric, predictions, champion, counts, 1 - 2 * level, replicates, seed)
    return {
        "n": counts.n,
        "attempts": attempts,
        "level": level,
        "confidence_level": 1 - 2 * level,
        "metrics": own,
        "difference": difference,
        "p_value": mcnemar_superior(counts.candidate_only, counts.champion_only) if settings.metric == ACCURACY else None,
        "paired": vars(counts),
        "better": None,
        "guarded": {
            "confidence_level": confidence_level,
            **compare(predictions, champion, confidence_level=confidence_level, replicates=replicates, seed=seed),
        },
        "examples": discordant_examples(predictions, champion, settings.examples),
        "method": method_of(settings.metric),
    }


def method_of(metric: str) -> str:
    """How the p value and the interval of a comparison by `metric` are made."""
    if metric in RIGHT_OR_WRONG:
        return "one-sided exact McNemar test; Tango's score interval of the difference on the same rows"
    return "percentile bootstrap of the difference over the test rows"


def discordant_examples(predictions: Predictions, champion: Scored, count: int) -> dict[str, list[dict[str, str]]]:
    """Up to `count` rows that the candidate alone has right, and as many of the champion's; row ids are hashes, so the first are a sample."""
    actual, labels = predictions.actual, predictions.labels
    first, second = predictions.tuned.predicted, champion.predicted
    sides: Mapping[str, Any] = {
        "candidate_only": (first == actual) & (second != actual),
        "champion_only": (first != actual) & (second == actual),
    }

    def shown(row: int) -> dict[str, str]:
        answers = {"label": labels[actual[row]], "candidate": labels[first[row]], "champion": labels[second[row]]}
        return {"row_id": predictions.row_ids[row], "text": predictions.texts[row], **answers}

    return {side: [shown(row) for row in _first(mask.nonzero()[0].tolist(), count)] for side, mask in sides.items()}


def _first(rows: Sequence[int], count: int) -> Sequence[int]:
    return rows[:count]


def _metric(name: str, predictions: Predictions, scored: Scored, confidence_level: float, replicates: int, seed: int) -> Estimate:
    if name == ACCURACY:
        return accuracy(predictions.actual, scored.predicted, confidence_level)
    settings: dict[str, Any] = {"confidence_level": confidence_level, "replicates": replicates, "seed": seed}
    return macro_f1(predictions.actual, scored.predicted, predictions.labels, **settings)


def _difference(
    name: str, predictions: Predictions, champion: Scored, counts: PairedCounts, confidence_level: float, replicates: int, seed: int
) -> Estimate:
    if name == ACCURACY:
        return estimate((counts.candidate_only - counts.champion_only) / counts.n, tango(counts, confidence_level), counts.n)
    return compare(predictions, champion, confidence_level=confidence_level, replicates=replicates, seed=seed)[name]


def _tango_statistic(counts: PairedCounts, difference: float) -> float:
    """(observed - n difference) over its standard deviation if `difference` were true: the champion-only share is its likeliest then."""
    n, b, c = counts.n, counts.candidate_only, counts.champion_only
    linear, constant = -b - c + (2 * n - b + c) * difference, -c * difference * (1 - difference)
    champion_only = (sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    distance = b - c - n * difference
    variance = n * (2 * champion_only + difference * (1 - difference))
    if abs(distance) < _EDGE * n:
        return 0.0
    return distance / sqrt(max(variance, _EDGE * _EDGE))
