"""How far probabilities can be believed: Brier score, expected calibration error with its null band, selective accuracy.

The expected calibration error of a finite sample is above 0 even when every probability is right: with 300 rows it is about 0.06. So a
limit belongs on the excess over what a calibrated model would show, and the reliability diagram needs that model's band (Bröcker
and Smith 2007, "Increasing the reliability of reliability diagrams"). The null band is simulated: answers are drawn to be right with
exactly the stated confidence.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Estimate, Floats, Integers, estimate, percentile_interval, proportion, resampled_column_means

BINS = 15  # equal width over [0, 1], as in Guo et al. 2017
COVERAGES = (0.5, 0.7, 0.9)
_CHUNK = 1_000_000

Booleans = NDArray[np.bool_]


def calibration(
    actual: Integers, predicted: Integers, probabilities: Floats, *, confidence_level: float, replicates: int, seed: int
) -> dict[str, Any]:
    """The calibration figures of one variant, from `probabilities` [N, K].

    `brier`: mean squared distance of the probabilities from the answer, summed over the labels, in [0, 2], ideal 0 (Brier 1950).
    `ece`: expected calibration error of the chosen label, mean of |confidence - accuracy| over BINS bins of confidence, weighted by rows,
    in [0, 1], ideal near `ece_null`, what a calibrated model of these confidences shows: its mean and central interval. `ece_excess` is
    `ece` minus that mean, in [-1, 1], ideal at or below 0. `selective_accuracy`: accuracy on the share of rows (the key) of which the
    model is surest, in [0, 1], ideal 1. `reliability`: the bins that hold rows, with the band of a calibrated model's accuracy.
    """
    n = len(actual)
    confidence, right = probabilities[np.arange(n), predicted], predicted == actual
    squared = ((probabilities - np.eye(probabilities.shape[1])[actual]) ** 2).sum(axis=1)
    members = _bins(confidence)
    gaps = members * (confidence - right)[:, None]
    resampled = resampled_column_means(np.column_stack([squared, gaps]), replicates, seed)
    null = _calibrated_hits(confidence, members, replicates, seed)
    null_ece = np.abs(null - (members * confidence[:, None]).sum(axis=0)).sum(axis=1) / n
    expected = float(null_ece.mean())
    ece = float(np.abs(gaps.sum(axis=0)).sum() / n)
    low, high = _recentred(np.abs(resampled[:, 1:]).sum(axis=1), ece, confidence_level)
    null_low, null_high = percentile_interval(null_ece, confidence_level)
    return {
        "brier": estimate(float(squared.mean()), percentile_interval(resampled[:, 0], confidence_level), n),
        "ece": estimate(ece, (max(0.0, low), min(1.0, high)), n),
        "ece_null": estimate(expected, (null_low, null_high), n),
        "ece_excess": estimate(ece - expected, (max(-1.0, low - expected), min(1.0, high - expected)), n),
        "selective_accuracy": _selective_accuracy(confidence, right, confidence_level),
        "reliability": _reliability(confidence, right, members, null, confidence_level),
    }


def _bins(confidence: Floats) -> Floats:
    """[N, BINS]: 1 where the row's confidence lies in the bin; bins are closed above, and the first is closed below too."""
    index = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return (index[:, None] == np.arange(BINS)).astype(np.float64)


def _calibrated_hits(confidence: Floats, members: Floats, replicates: int, seed: int) -> Floats:
    """[R, BINS]: right answers in each bin, drawn with exactly the stated confidences."""
    generator = np.random.default_rng([seed, 1])  # not the numbers that drew the resamples
    size = max(1, _CHUNK // len(confidence))
    counts: list[Floats] = []
    for start in range(0, replicates, size):
        shape = (min(size, replicates - start), len(confidence))
        counts.append((generator.random(shape, dtype=np.float32) < confidence.astype(np.float32)).astype(np.float64) @ members)
    return np.concatenate(counts)


def _recentred(replicates: Floats, value: float, confidence_level: float) -> tuple[float, float]:
    """The percentile interval moved so that the replicates' mean is the value.

    Resampling adds to a calibration error the sampling noise once more, so the replicates as they are lie above the value.
    """
    low, high = percentile_interval(replicates, confidence_level)
    shift = float(replicates.mean()) - value
    return min(low - shift, value), max(high - shift, value)


def _selective_accuracy(confidence: Floats, right: Booleans, confidence_level: float) -> dict[str, Estimate]:
    order = np.argsort(-confidence, kind="stable")
    found: dict[str, Estimate] = {}
    for coverage in COVERAGES:
        kept = order[: int(np.ceil(coverage * len(order)))]
        found[f"{coverage:g}"] = proportion(int(right[kept].sum()), len(kept), confidence_level, "there are no rows")
    return found


def _reliability(confidence: Floats, right: Booleans, members: Floats, null: Floats, confidence_level: float) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = []
    for index in range(BINS):
        inside = members[:, index] > 0
        rows = int(inside.sum())
        if not rows:
            continue
        low, high = percentile_interval(null[:, index] / rows, confidence_level)
        described.append(
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "confidence": float(confidence[inside].mean()),
                "accuracy": proportion(int(right[inside].sum()), rows, confidence_level, "no row has this confidence"),
                "null_low": low,
                "null_high": high,
            }
        )
    return described
