"""Two sets of answers to the same labelled rows: who is right where, and whether the difference is beyond chance."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from pipeline.evaluation.intervals import Estimate, Floats, Integers
from pipeline.evaluation.metrics import accuracy, compare, describe, macro_f1
from pipeline.evaluation.predictions import TUNED, Predictions, Scored

SETTINGS: dict[str, Any] = {"confidence_level": 0.95, "replicates": 10_000, "seed": 0}


class Side(TypedDict):
    """The figures of one of the two."""

    accuracy: Estimate
    macro_f1: Estimate


class Paired(TypedDict):
    """The comparison of two sets of answers on n rows; differences are first minus second, in [-1, 1].

    `p_value` is that of the exact two-sided McNemar test, null where the two are right on the same rows; `significance` what it
    is judged by.
    """

    n: int
    first: Side
    second: Side
    difference: dict[str, Estimate]
    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int
    p_value: float | None
    significance: float


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p value, in [0, 1], of "each is as often right alone as the other" (McNemar 1947, with the binomial distribution).

    The rows on which only one of the two is right are coin tosses then. Raises ValueError for negative counts or no such row.
    """
    tosses = only_first + only_second
    if min(only_first, only_second) < 0 or tosses == 0:
        raise ValueError(f"McNemar's test needs rows on which only one side is right; found {only_first} and {only_second}")
    from scipy.stats import binomtest

    return float(binomtest(only_first, tosses, 0.5).pvalue)


def mcnemar_superior(only_first: int, only_second: int) -> float:
    """One-sided exact p value, in [0, 1], of "the first is right alone no more often than the second"; 1 where neither ever is.

    Raises ValueError for negative counts.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"McNemar's test needs counts of rows; found {only_first} and {only_second}")
    from scipy.stats import binom

    return float(binom.sf(only_first - 1, only_first + only_second, 0.5))


def level_of_attempt(significance: float, attempt: int) -> float:
    """The level, in (0, significance), at which attempt 1, 2, 3, ... against one champion on one test set is tested.

    significance / (attempt * (attempt + 1)): the levels of all attempts sum to `significance`, so that a candidate no better than the
    champion is ever found superior with at most that probability, however many attempts are made. Dividing by the number of attempts alone
    would not do: 1 + 1/2 + 1/3 + ... has no bound, and after 20 attempts the probability could be 3.6 times as high.
    Raises ValueError for an attempt below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1; found {attempt}")
    return significance / (attempt * (attempt + 1))


def measure(labels: Sequence[str], actual: Sequence[str], probabilities: Floats) -> dict[str, Any]:
    """The metrics record of one variant (see `docs/stage-files.md`) for label probabilities [N, K] of rows with these labels [N]."""
    exact = probabilities.astype(np.float64)
    scored = Scored(probabilities.argmax(axis=1).astype(np.int64), exact / exact.sum(axis=1, keepdims=True))
    return describe(_predictions(labels, actual, scored), scored, **SETTINGS)


def compare_answers(labels: Sequence[str], actual: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Paired:
    """Compare two sets of answers [N] to rows with the labels `actual` [N]; every answer and label is one of `labels`."""
    indices = {label: index for index, label in enumerate(labels)}
    left, right = (_only_labels([indices[answer] for answer in answers], len(labels)) for answers in (first, second))
    predictions = _predictions(labels, actual, left)
    ours, theirs = left.predicted == predictions.actual, right.predicted == predictions.actual
    counts = {
        "both_right": int((ours & theirs).sum()),
        "only_first_right": int((ours & ~theirs).sum()),
        "only_second_right": int((~ours & theirs).sum()),
        "both_wrong": int((~ours & ~theirs).sum()),
    }
    alone = counts["only_first_right"], counts["only_second_right"]
    return Paired(
        n=len(actual),
        first=_side(predictions, left),
        second=_side(predictions, right),
        difference=compare(predictions, right, **SETTINGS),
        both_right=counts["both_right"],
        only_first_right=alone[0],
        only_second_right=alone[1],
        both_wrong=counts["both_wrong"],
        p_value=mcnemar_exact(*alone) if sum(alone) else None,
        significance=1 - SETTINGS["confidence_level"],
    )


def _side(predictions: Predictions, scored: Scored) -> Side:
    return Side(
        accuracy=accuracy(predictions.actual, scored.predicted, SETTINGS["confidence_level"]),
        macro_f1=macro_f1(predictions.actual, scored.predicted, predictions.labels, **SETTINGS),
    )


def _predictions(labels: Sequence[str], actual: Sequence[str], tuned: Scored) -> Predictions:
    indices = {label: index for index, label in enumerate(labels)}
    rows: Integers = np.array([indices[label] for label in actual], dtype=np.int64)
    names = [str(number) for number in range(len(rows))]
    return Predictions(labels=tuple(labels), row_ids=names, texts=names, actual=rows, variants={TUNED: tuned})


def _only_labels(predicted: Sequence[int], classes: int) -> Scored:
    """Answers without probabilities, of which the paired figures need none."""
    chosen: Integers = np.array(predicted, dtype=np.int64)
    return Scored(chosen, np.eye(classes)[chosen])
