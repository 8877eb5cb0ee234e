"""Averages over the labels: macro and weighted precision, recall and F1, and Matthews' correlation coefficient.

Point values are scikit-learn's, intervals a percentile bootstrap over test rows. A label that is never predicted counts with
precision 0 in an average, as in scikit-learn's report; its own precision is undefined.
"""

from typing import Any

import numpy as np
from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support

from pipeline.evaluation.intervals import (
    Estimate,
    Floats,
    Integers,
    estimate,
    f1_interval,
    no_estimate,
    percentile_interval,
    resampled_sums,
    wilson,
)


def class_rows(actual: Integers, predicted: Integers, classes: int) -> Integers:
    """[N, 3K]: for each row and class whether it is a hit, whether it has the label, whether it is given the label."""
    has, given = (values[:, None] == np.arange(classes) for values in (actual, predicted))
    return np.concatenate([has & given, has, given], axis=1).astype(np.int64)


def averaged(
    actual: Integers, predicted: Integers, labels: tuple[str, ...], *, confidence_level: float, replicates: int, seed: int
) -> dict[str, Estimate]:
    """Macro and weighted precision, recall and F1 in [0, 1], ideal 1, and `mcc` in [-1, 1], ideal 1.

    A macro average is undefined when a label has no row; a weighted one weighs each label by its rows. MCC is that of Gorodkin (2004)
    for several labels; it is undefined when all rows have, or are given, one label.
    """
    classes = len(labels)
    sums = resampled_sums(class_rows(actual, predicted, classes), replicates, seed)
    hits, has, given = (part.astype(np.float64) for part in np.split(sums, 3, axis=1))
    per_class = {
        "precision": hits / np.maximum(given, 1),
        "recall": hits / np.maximum(has, 1),
        "f1": 2 * hits / np.maximum(has + given, 1),
    }
    ends = _class_ends(actual, predicted, classes, confidence_level)
    found: dict[str, Estimate] = {}
    for average in ("macro", "weighted"):
        values = _point_values(actual, predicted, classes, average)
        weights = has / len(actual) if average == "weighted" else np.full(has.shape, 1 / classes)
        shares = np.bincount(actual, minlength=classes) / len(actual) if average == "weighted" else np.full(classes, 1 / classes)
        absent = [label for index, label in enumerate(labels) if not (actual == index).any()]
        for name, rows in per_class.items():
            if average == "macro" and absent:
                found[f"macro_{name}"] = no_estimate(len(actual), f"no row has label {', '.join(map(repr, absent))}")
                continue
            interval = percentile_interval((rows * weights).sum(axis=1), confidence_level)
            if interval[0] == interval[1]:  # every row right: the bootstrap sees no other outcome, the Wilson ends of the labels do
                low, high = (shares @ ends[name]).tolist()
                interval = (low, high)
            found[f"{average}_{name}"] = estimate(values[name], interval, len(actual))
    return found | {"mcc": _mcc(actual, predicted, classes, _mcc_of(hits, has, given), confidence_level)}


def _point_values(actual: Integers, predicted: Integers, classes: int, average: str) -> dict[str, float]:
    options: dict[str, Any] = {"average": average, "zero_division": 0}  # scikit-learn's own annotations forbid both
    values: Any = precision_recall_fscore_support(actual, predicted, labels=range(classes), **options)
    return dict(zip(("precision", "recall", "f1"), map(float, values[:3]), strict=True))


def _class_ends(actual: Integers, predicted: Integers, classes: int, level: float) -> dict[str, Floats]:
    """[K, 2] Wilson ends of each label's figures; a figure without rows is 0."""
    ends: dict[str, list[tuple[float, float]]] = {"precision": [], "recall": [], "f1": []}
    for index in range(classes):
        has, given = actual == index, predicted == index
        hits, union = int((has & given).sum()), int((has | given).sum())
        for name, rows in (("precision", int(given.sum())), ("recall", int(has.sum()))):
            ends[name].append(wilson(hits, rows, level) if rows else (0.0, 0.0))
        ends["f1"].append(f1_interval(hits, union, level) if union else (0.0, 0.0))
    return {name: np.array(values) for name, values in ends.items()}


def _mcc_of(hits: Floats, has: Floats, given: Floats) -> Floats:
    """MCC [R] of class counts [R, K]; 0 where one label has, or is given, all rows."""
    n = has.sum(axis=1)
    numerator = hits.sum(axis=1) * n - (has * given).sum(axis=1)
    product = (n**2 - (given**2).sum(axis=1)) * (n**2 - (has**2).sum(axis=1))
    return np.where(product > 0, numerator / np.sqrt(np.maximum(product, 1)), 0.0)


def _mcc(actual: Integers, predicted: Integers, classes: int, replicates: Floats, level: float) -> Estimate:
    n = len(actual)
    if len(np.unique(actual)) < 2 or len(np.unique(predicted)) < 2:
        which = "have" if len(np.unique(actual)) < 2 else "are given"
        return no_estimate(n, f"all rows {which} one label, with which nothing correlates")
    interval = percentile_interval(replicates, level)
    if (actual == predicted).all():
        interval = (_mcc_with_errors(actual, classes, 1 - wilson(n, n, level)[0]), 1.0)
    return estimate(float(matthews_corrcoef(actual, predicted)), interval, n)


def _mcc_with_errors(actual: Integers, classes: int, share: float) -> float:
    """MCC if this share of each label's rows were given the other labels in equal parts: what right answers alone cannot rule out."""
    has = np.bincount(actual, minlength=classes).astype(np.float64)
    hits = has * (1 - share)
    given = hits + (has.sum() - has) * share / (classes - 1)
    return float(_mcc_of(hits[None], has[None], given[None])[0])
