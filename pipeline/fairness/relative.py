"""Whether groups of rows differ more with the candidate than with the champion, on the same rows: a paired bootstrap.

The figure is the largest difference of a rate between two of the listed groups (parity.py has the rates) with the candidate's answers, minus
that with the champion's: in [-1, 1] (of calibration gaps [-2, 2]), at most 0 where groups differ no more than before. Rows are resampled
with both answers, since the two are right and wrong on the same rows; all figures see the same resamples. The percentile intervals are at
the level 1 - (1 - confidence level) / number of figures (Bonferroni), so that they hold together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Floats, Integers, estimate, no_estimate, percentile_interval, resampled_column_means
from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.fairness.groups import UNKNOWN, Attribute
from pipeline.fairness.parity import PARITIES
from pipeline.params import RelativeDifferenceThreshold

METHOD = "percentile bootstrap of the paired change over test rows, at a level corrected (Bonferroni) for all changes that the gate limits"
REPLICATES = 10_000
SEED = 0

Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Limited:
    """One difference whose change the gate limits: of `attribute` between `groups`, for one label or for all rows."""

    attribute: str
    metric: str
    label: str | None
    groups: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """What names it in the record."""
        return {"attribute": self.attribute, "metric": self.metric, "label": self.label, "groups": list(self.groups)}


def limited_differences(thresholds: Sequence[RelativeDifferenceThreshold], labels: Sequence[str]) -> list[tuple[Limited, float]]:
    """Every difference that the thresholds limit, label by label, with its limit."""
    return [
        (Limited(one.attribute, one.metric, label, tuple(one.groups)), one.maximum_increase)
        for one in thresholds
        for label in ((one.labels or labels) if PARITIES[one.metric].per_label else [None])
    ]


def corrected_level(confidence_level: float, number: int) -> float:
    """The level of each of `number` intervals that are to hold together at `confidence_level`."""
    return 1 - (1 - confidence_level) / number


def relative_differences(
    predictions: Predictions,
    champion: Scored,
    attributes: Mapping[str, Attribute],
    asked: Sequence[Limited],
    *,
    minimum_denominator: int,
    confidence_level: float,
    replicates: int = REPLICATES,
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """A record for each of `asked`: the two largest differences and the estimate of their change, null where fewer than `minimum_denominator`
    rows are behind a rate of either. `smallest_denominator` says how few; `rows` how many each group has."""
    parts = [_Parts.of(predictions, champion, attributes[one.attribute], one) for one in asked]
    columns = [part.columns for part in parts]
    if not columns:
        return []
    means = resampled_column_means(np.concatenate(columns, axis=1), replicates, seed)
    level, start, records = corrected_level(confidence_level, len(asked)), 0, []
    for one, part in zip(asked, parts, strict=True):
        end = start + part.columns.shape[1]
        records.append(_record(one, part, means[:, start:end], minimum_denominator, level))
        start = end
    return records


@dataclass(frozen=True)
class _Parts:
    """Numerators and denominators of every rate as columns [N, 2 * 2 * S * G]: candidate then champion, rates S, groups G."""

    rows: dict[str, int]
    n: int
    columns: Floats
    smallest_denominator: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, predictions: Predictions, champion: Scored, attribute: Attribute, asked: Limited) -> "_Parts":
        members = [_members(attribute, group, len(predictions.row_ids)) for group in asked.groups]
        rates = PARITIES[asked.metric].rates
        label = None if asked.label is None else predictions.labels.index(asked.label)
        pairs = [
            _fraction(rate, predictions.actual, scored, label, rows)
            for scored in (predictions.tuned, champion)
            for rate in rates
            for rows in members
        ]
        return cls(
            rows={group: int(rows.sum()) for group, rows in zip(asked.groups, members, strict=True)},
            n=int(np.any(members, axis=0).sum()),
            columns=np.concatenate([np.stack([pair[part] for pair in pairs], axis=1) for part in (0, 1)], axis=1),
            smallest_denominator=min(int((pair[1] > 0).sum()) for pair in pairs),
            shape=(len(rates), len(members)),
        )


def _members(attribute: Attribute, group: str, rows: int) -> Rows:
    return attribute.unknown(rows) if group == UNKNOWN else attribute.groups.get(group, np.zeros(rows, dtype=np.bool_))


def _fraction(rate: str, actual: Integers, scored: Scored, label: int | None, members: Rows) -> tuple[Floats, Floats]:
    """What each row adds to a rate's numerator and to its denominator, both [N]."""
    right = scored.predicted == actual
    if rate == "accuracy":
        return _floats(right & members), _floats(members)
    if rate == "calibration_gap":
        return (scored.probabilities.max(axis=1) - right) * members, _floats(members)
    given, has = (scored.predicted == label) & members, (actual == label) & members
    if rate == "f1":
        return 2 * _floats(given & has), _floats(given) + _floats(has)
    numerator = {"selection_rate": given, "recall": given & has, "false_positive_rate": given & ~has, "precision": given & has}[rate]
    denominator = {"selection_rate": members, "recall": has, "false_positive_rate": members & ~has, "precision": given}[rate]
    return _floats(numerator), _floats(denominator)


def _record(asked: Limited, part: _Parts, means: Floats, minimum: int, level: float) -> dict[str, Any]:
    record = {**asked.described(), "rows": part.rows, "smallest_denominator": part.smallest_denominator}
    if part.smallest_denominator < max(1, minimum):
        why = f"a rate rests on {part.smallest_denominator} rows, fewer than the minimum denominator of {minimum}"
        return {**record, "candidate": None, "champion": None, "change": no_estimate(part.n, why)}
    candidate, champion = _largest(part.columns.mean(axis=0)[None], None, part.shape)[:, 0]
    resampled = _largest(means, part.columns.mean(axis=0)[None], part.shape)
    change = estimate(candidate - champion, percentile_interval(resampled[0] - resampled[1], level), part.n)
    return {**record, "candidate": float(candidate), "champion": float(champion), "change": change}


def _largest(means: Floats, observed: Floats | None, shape: tuple[int, int]) -> Floats:
    """The largest difference between two groups over the rates, of candidate and champion: [2, R] from column means [R, M].

    In a resample that holds no row for a rate, the group keeps its `observed` rate.
    """
    numerators, denominators = np.split(means, 2, axis=1)
    rates = np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators > 0)
    if observed is not None:
        known, of = np.split(observed, 2, axis=1)
        rates = np.where(denominators > 0, rates, known / of)
    by_group = rates.reshape(len(means), 2, *shape)
    return (by_group.max(axis=3) - by_group.min(axis=3)).max(axis=2).T


def _floats(rows: Rows) -> Floats:
    return rows.astype(np.float64)
