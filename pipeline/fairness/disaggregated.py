"""Metrics of the tuned prompt for each group of rows, and the differences between groups.

Names follow fairlearn (`parity` has the list). Where fairlearn reports a number that rests on nothing (a group without rows of the
label, a single group), the figure here is null with a reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.calibration import calibration
from pipeline.evaluation.intervals import Estimate, estimate, f1_interval, no_estimate, wilson
from pipeline.evaluation.metrics import macro_f1
from pipeline.evaluation.predictions import Predictions
from pipeline.fairness.groups import Attribute, groups_per_row
from pipeline.fairness.parity import PARITIES, GroupRecord, Parity, compare, comparisons, rates_of
from pipeline.fairness.point_values import values_by_group
from pipeline.params import AssessFairnessParams

METHOD = (
    "accuracy, selection rate, recall, precision, false positive rate: Wilson score interval; F1 of a label: from a Wilson interval of hits among "
    "rows so labelled or predicted; macro F1: percentile bootstrap over the group's rows; calibration gap: mean confidence minus accuracy, the "
    "texts and so the confidences taken as given; differences and ratios: the extreme over all pairs of groups with enough rows, Newcombe and "
    "MOVER intervals with Bonferroni's correction for the number of comparisons in this record"
)
CALIBRATION = ("brier", "ece", "ece_null", "ece_excess")
REPLICATES = 2000
SEED = 0


@dataclass(frozen=True)
class _Planned:
    """One comparison of groups: of `attribute` by `parity`, for one label or for all rows, between the groups with enough rows."""

    attribute: str
    parity: str
    label: str | None
    compared: Mapping[str, GroupRecord]
    left_out: tuple[str, ...]

    @property
    def kind(self) -> Parity:
        """The parity itself."""
        return PARITIES[self.parity]

    @property
    def comparisons(self) -> int:
        """Intervals it takes."""
        return comparisons(self.kind, len(self.compared), 1)


def assess(predictions: Predictions, attributes: Mapping[str, Attribute], params: AssessFairnessParams) -> dict[str, Any]:
    """The assessment of every attribute, ready for JSON."""
    described = {name: _describe_attribute(predictions, attribute, params) for name, attribute in attributes.items()}
    planned = [
        _plan(name, parity, label, record["groups"], params.minimum_denominator)
        for name, record in described.items()
        for parity, kind in PARITIES.items()
        for label in (predictions.labels if kind.per_label else (None,))
    ]
    number = sum(one.comparisons for one in planned)
    for record in described.values():
        record["differences"] = {parity: {} for parity in PARITIES}
    for one in planned:
        differences = described[one.attribute]["differences"]
        figure = _difference(one, params, max(1, number))
        if one.label is None:
            differences[one.parity] = figure
        else:
            differences[one.parity][one.label] = figure
    return {
        "n": len(predictions.row_ids),
        "confidence_level": params.confidence_level,
        "minimum_denominator": params.minimum_denominator,
        "comparisons": number,
        "method": METHOD,
        "attributes": described,
    }


def _describe_attribute(predictions: Predictions, attribute: Attribute, params: AssessFairnessParams) -> dict[str, Any]:
    """Figures of every group of one attribute, and of the rows in none of them."""
    rows = len(predictions.texts)
    return {
        "derived_from": attribute.derived_from,
        "expected": list(attribute.expected),
        "groups": _describe_groups(predictions, attribute.groups, params),
        "unknown": _describe_groups(predictions, {"": attribute.unknown(rows)}, params)[""],
        "in_several_groups": int((groups_per_row(attribute.groups, rows) > 1).sum()),
    }


def _describe_groups(
    predictions: Predictions, membership: Mapping[str, NDArray[np.bool_]], params: AssessFairnessParams
) -> dict[str, dict[str, Any]]:
    values = values_by_group(predictions.actual, predictions.tuned.predicted, predictions.labels, membership)
    return {name: _describe(predictions, rows, values.get(name, {}), params) for name, rows in membership.items()}


def _describe(
    predictions: Predictions, rows: NDArray[np.bool_], values: Mapping[str, float], params: AssessFairnessParams
) -> dict[str, Any]:
    labels, level, n = predictions.labels, params.confidence_level, int(rows.sum())
    actual, predicted = predictions.actual[rows], predictions.tuned.predicted[rows]
    has = {label: int((actual == index).sum()) for index, label in enumerate(labels)}
    given = {label: int((predicted == index).sum()) for index, label in enumerate(labels)}
    union = {label: int(((actual == index) | (predicted == index)).sum()) for index, label in enumerate(labels)}
    empty = "no test row belongs to this group"

    def share(metric: str, denominator: int, why: str) -> Estimate:
        # The denominator is ours: fairlearn gives 0.0 where it is 0.
        if denominator == 0:
            return no_estimate(0, empty if n == 0 else why)
        value = values[metric]
        return estimate(value, wilson(round(value * denominator), denominator, level), denominator)

    def f1(label: str) -> Estimate:
        if union[label] == 0:
            return no_estimate(0, empty if n == 0 else f"no row of this group has or is given label {label!r}")
        value = values[f"f1.{label}"]
        return estimate(value, f1_interval(round(value / (2 - value) * union[label]), union[label], level), union[label])

    accuracy = share("accuracy", n, empty)
    confidence = float(predictions.tuned.probabilities[rows].max(axis=1).mean()) if n else None
    return {
        "n": n,
        "share": n / len(rows),
        "label_counts": has,
        "predicted": given,
        "accuracy": accuracy,
        "macro_f1": macro_f1(actual, predicted, labels, confidence_level=level, replicates=REPLICATES, seed=SEED)
        if n
        else no_estimate(0, empty),
        "selection_rate": {label: share(f"selection_rate.{label}", n, empty) for label in labels},
        "recall": {label: share(f"recall.{label}", has[label], f"no row of this group has label {label!r}") for label in labels},
        "precision": {
            label: share(f"precision.{label}", given[label], f"no row of this group is given label {label!r}") for label in labels
        },
        "false_positive_rate": {
            label: share(f"false_positive_rate.{label}", n - has[label], f"every row of this group has label {label!r}") for label in labels
        },
        "f1": {label: f1(label) for label in labels},
        "mean_confidence": confidence,
        "calibration_gap": _calibration_gap(confidence, accuracy),
        "calibration": _calibration(predictions, rows, level) if n else {name: no_estimate(0, empty) for name in CALIBRATION},
        "sufficient": n >= params.minimum_denominator,
    }


def _calibration_gap(confidence: float | None, accuracy: Estimate) -> Estimate:
    """Mean probability of the predicted label minus accuracy, in [-1, 1], ideal 0; above 0 the prompt is too sure of itself."""
    if confidence is None:
        return no_estimate(0, accuracy["why"])
    return estimate(confidence - accuracy["value"], (confidence - accuracy["high"], confidence - accuracy["low"]), accuracy["n"])


def _calibration(predictions: Predictions, rows: NDArray[np.bool_], level: float) -> dict[str, Estimate]:
    """Brier score and calibration error of the group's rows; the error of a small group is large even where it is calibrated, hence the excess."""
    tuned = predictions.tuned
    found = calibration(
        predictions.actual[rows], tuned.predicted[rows], tuned.probabilities[rows], confidence_level=level, replicates=REPLICATES, seed=SEED
    )
    return {name: found[name] for name in CALIBRATION}


def _plan(attribute: str, parity: str, label: str | None, groups: Mapping[str, GroupRecord], minimum: int) -> _Planned:
    compared = {
        name: group for name, group in groups.items() if min(rate.n for rate in rates_of(group, PARITIES[parity], label)) >= minimum
    }
    return _Planned(attribute, parity, label, compared, tuple(name for name in groups if name not in compared))


def _difference(planned: _Planned, params: AssessFairnessParams, number: int) -> Estimate:
    """The extreme over the groups whose denominators suffice; names the groups compared and those left out."""
    rates = {name: rates_of(group, planned.kind, planned.label) for name, group in planned.compared.items()}
    if len(rates) < 2:
        what = "rows" if planned.label is None else f"rows that {' and '.join(planned.kind.rates)} of label {planned.label!r} can rest on"
        why = f"{len(rates)} group(s) have at least {params.minimum_denominator} {what}; a difference needs two"
        figure = {**no_estimate(round(sum(rate.n for group in rates.values() for rate in group)), why), "between": None}
    else:
        figure = compare(planned.kind, rates, params.confidence_level, number)
    return {**figure, "compared": list(rates), "left_out": list(planned.left_out)}
