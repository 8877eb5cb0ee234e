"""Metrics of one variant, and paired differences between two variants on the same rows.

Point values of accuracy, F1 and log loss and the confusion matrix come from scikit-learn. Accuracy, precision and recall are
proportions and get Wilson intervals, a class's F1 the interval of `intervals.f1_interval`; macro F1, log loss and differences
between variants are resampled over rows.

What is undefined stays undefined: precision of a label never predicted, recall of a label without rows, and macro F1 when
a label has no row are null with a reason. In a bootstrap replicate that happens to draw neither a row nor a prediction of a
label, that label's F1 counts as 0, its lowest value, so that the lower end of the interval is never too high for it.
A bootstrap interval of macro F1 without any width (every row right) is replaced by the mean of the classes' F1 intervals.
"""

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from pipeline.evaluation.averages import averaged, class_rows
from pipeline.evaluation.calibration import calibration
from pipeline.evaluation.intervals import (
    Estimate,
    Floats,
    Integers,
    estimate,
    f1_interval,
    no_estimate,
    percentile_interval,
    proportion,
    resampled_means,
    resampled_sums,
)
from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.variants import TUNED

METHOD = (
    "accuracy, precision, recall: Wilson score interval; per-class F1: from a Wilson interval of hits among rows so labelled or predicted; "
    "averages over labels, MCC, log loss, Brier score and paired differences: percentile bootstrap over test rows; "
    "calibration error: the same, moved to have its mean at the value; its null band: simulated answers that are right as often as stated"
)


def evaluate(predictions: Predictions, *, confidence_level: float, replicates: int, seed: int) -> dict[str, Any]:
    """Metrics of every variant and the paired comparisons of the tuned prompt with each baseline, ready for JSON."""
    settings: dict[str, Any] = {"confidence_level": confidence_level, "replicates": replicates, "seed": seed}
    return {
        "n": len(predictions.row_ids),
        "labels": list(predictions.labels),
        "confidence_level": confidence_level,
        "replicates": replicates,
        "method": METHOD,
        "variants": {name: describe(predictions, scored, **settings) for name, scored in predictions.variants.items()},
        "comparisons": {
            f"{TUNED}_minus_{name}": compare(predictions, scored, **settings)
            for name, scored in predictions.variants.items()
            if name != TUNED
        },
    }


def describe(predictions: Predictions, scored: Scored, *, confidence_level: float, replicates: int, seed: int) -> dict[str, Any]:
    """All metrics of one variant. Accuracy and F1 lie in [0, 1], ideal 1; log loss is in nats, at least 0, ideal 0.

    averages.py and calibration.py define the others.
    """
    settings: dict[str, Any] = {"confidence_level": confidence_level, "replicates": replicates, "seed": seed}
    labels, actual, predicted = predictions.labels, predictions.actual, scored.predicted
    averages = averaged(actual, predicted, labels, **settings)
    confusion = confusion_matrix(actual, predicted, labels=range(len(labels))).astype(np.int64)
    return {
        "accuracy": accuracy(actual, predicted, confidence_level),
        "macro_f1": averages.pop("macro_f1"),
        "log_loss": mean_log_loss(actual, scored.probabilities, **settings),
        **averages,
        **calibration(actual, predicted, scored.probabilities, **settings),
        "per_class": per_class(actual, predicted, labels, confidence_level),
        "confusion_matrix": confusion.tolist(),
        "predicted": dict(zip(labels, confusion.sum(axis=0).tolist(), strict=True)),
    }


def accuracy(actual: Integers, predicted: Integers, confidence_level: float) -> Estimate:
    """Share of rows with the right label, in [0, 1], ideal 1, with its Wilson interval."""
    if len(actual) == 0:
        return no_estimate(0, "there are no rows")
    successes = int(accuracy_score(actual, predicted, normalize=False))
    return proportion(successes, len(actual), confidence_level, why="there are no rows")


def per_class(actual: Integers, predicted: Integers, labels: tuple[str, ...], confidence_level: float) -> dict[str, Any]:
    """Precision, recall and F1 of each label, in [0, 1], ideal 1, and its support (rows that have the label)."""
    f1 = _class_f1(actual, predicted, len(labels))
    described: dict[str, Any] = {}
    for index, label in enumerate(labels):
        has, given = actual == index, predicted == index
        hits, union = int((has & given).sum()), int((has | given).sum())
        described[label] = {
            "precision": proportion(hits, int(given.sum()), confidence_level, f"label {label!r} is never predicted"),
            "recall": proportion(hits, int(has.sum()), confidence_level, f"no row has label {label!r}"),
            "f1": estimate(f1[index], f1_interval(hits, union, confidence_level), union)
            if union
            else no_estimate(0, f"no row has or is given label {label!r}"),
            "support": int(has.sum()),
        }
    return described


def macro_f1(
    actual: Integers, predicted: Integers, labels: tuple[str, ...], *, confidence_level: float, replicates: int, seed: int
) -> Estimate:
    """Unweighted mean of the labels' F1, in [0, 1], ideal 1; undefined when a label has no row (see averages.py)."""
    return averaged(actual, predicted, labels, confidence_level=confidence_level, replicates=replicates, seed=seed)["macro_f1"]


def mean_log_loss(actual: Integers, probabilities: Floats, *, confidence_level: float, replicates: int, seed: int) -> Estimate:
    """Mean of -log(probability of the actual label), in nats; a probability of 0 counts as float64's epsilon, as in scikit-learn."""
    value = log_loss(actual, probabilities, labels=range(probabilities.shape[1]))
    epsilon = np.finfo(np.float64).eps
    losses = -np.log(np.clip(probabilities[np.arange(len(actual)), actual], epsilon, 1 - epsilon))
    interval = percentile_interval(resampled_means(losses, replicates, seed), confidence_level)
    return estimate(value, interval, len(actual))


def compare(predictions: Predictions, baseline: Scored, *, confidence_level: float, replicates: int, seed: int) -> dict[str, Estimate]:
    """Accuracy and macro F1 of the tuned prompt minus those of `baseline`, in [-1, 1], resampled as pairs of answers to one row."""
    actual, tuned, labels = predictions.actual, predictions.tuned.predicted, predictions.labels
    both = np.concatenate([class_rows(actual, tuned, len(labels)), class_rows(actual, baseline.predicted, len(labels))], axis=1)
    resampled = np.concatenate([both.sum(axis=0, keepdims=True), resampled_sums(both, replicates, seed)])  # row 0: the rows as they are
    ours, theirs = (_thirds(half) for half in np.split(resampled, 2, axis=1))
    accuracies = (ours[0].sum(axis=1) - theirs[0].sum(axis=1)) / len(actual)
    f1s = _macro_f1(*ours) - _macro_f1(*theirs)
    absent = _absent(actual, labels)
    return {
        "accuracy": _difference(accuracies, confidence_level, len(actual)),
        "macro_f1": no_estimate(len(actual), absent) if absent else _difference(f1s, confidence_level, len(actual)),
    }


def _class_f1(actual: Integers, predicted: Integers, classes: int) -> Floats:
    """F1 of each class [K]; 0 where the class is neither there nor predicted."""
    options: dict[str, Any] = {"average": None, "zero_division": 0}  # scikit-learn's own annotations forbid both
    f1: Any = f1_score(actual, predicted, labels=range(classes), **options)
    return np.asarray(f1, dtype=np.float64)


def _difference(values: Floats, confidence_level: float, n: int) -> Estimate:
    return estimate(values[0], percentile_interval(values[1:], confidence_level), n)


def _absent(actual: Integers, labels: tuple[str, ...]) -> str:
    missing = [label for index, label in enumerate(labels) if not (actual == index).any()]
    return f"no row has label {', '.join(repr(label) for label in missing)}" if missing else ""


def _thirds(sums: Integers) -> tuple[Integers, Integers, Integers]:
    hits, has, given = np.split(sums, 3, axis=1)
    return hits, has, given


def _macro_f1(hits: Integers, has: Integers, given: Integers) -> Floats:
    """Macro F1 [R] of class counts [R, K]; a class without rows and predictions counts as 0."""
    return (2 * hits / np.maximum(has + given, 1)).mean(axis=1)
