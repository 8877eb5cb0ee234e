"""Metrics of the tuned prompt for each group of rows, and the differences between groups.

Names follow fairlearn: the selection rate of a label is the share of rows that are given it; the demographic parity
difference is the largest difference of selection rates between two groups, the equal opportunity difference that of
recalls. Both lie in [0, 1], ideal 0. Where fairlearn reports a number that rests on nothing (a group without rows of the
label, a single group), the figure here is null with a reason.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Estimate, estimate, largest_difference, no_estimate, wilson
from pipeline.evaluation.metrics import macro_f1
from pipeline.evaluation.predictions import Predictions
from pipeline.fairness.groups import Membership, groups_per_row, text_groups
from pipeline.fairness.point_values import values_by_group
from pipeline.params import AssessFairnessParams, TextGroups

METHOD = (
    "accuracy, selection rate, recall: Wilson score interval; macro F1: percentile bootstrap over the group's rows; differences: the "
    "largest over all pairs of groups with enough rows, Newcombe intervals with Bonferroni's correction for the number of pairs"
)
REPLICATES = 2000
SEED = 0

# Group name -> (successes, denominator) of one proportion.
Counts = Mapping[str, tuple[int, int]]


def assess(predictions: Predictions, params: AssessFairnessParams) -> dict[str, Any]:
    """The assessment of every attribute of `params.groups`, ready for JSON."""
    return {
        "n": len(predictions.row_ids),
        "confidence_level": params.confidence_level,
        "minimum_denominator": params.minimum_denominator,
        "method": METHOD,
        "attributes": {name: assess_attribute(predictions, groups, params) for name, groups in params.groups.items()},
    }


def assess_attribute(predictions: Predictions, groups: TextGroups, params: AssessFairnessParams) -> dict[str, Any]:
    """Figures of every group of one attribute, of the rows in none of them, and the differences between groups with enough rows."""
    membership = text_groups(predictions.texts, groups.patterns)
    per_row = groups_per_row(membership, len(predictions.texts))
    return {
        "derived_from": groups.derived_from,
        "groups": _describe_groups(predictions, membership, params),
        "without_group": _describe_groups(predictions, {"": per_row == 0}, params)[""],
        "in_several_groups": int((per_row > 1).sum()),
        "differences": _differences(predictions, membership, params),
    }


def _describe_groups(predictions: Predictions, membership: Membership, params: AssessFairnessParams) -> dict[str, Any]:
    values = values_by_group(predictions.actual, predictions.tuned.predicted, predictions.labels, membership)
    return {name: _describe(predictions, rows, values.get(name, {}), params) for name, rows in membership.items()}


def _describe(
    predictions: Predictions, rows: NDArray[np.bool_], values: Mapping[str, float], params: AssessFairnessParams
) -> dict[str, Any]:
    labels = predictions.labels
    n, level = int(rows.sum()), params.confidence_level
    counts = {label: int((predictions.actual[rows] == index).sum()) for index, label in enumerate(labels)}
    empty = "no test row belongs to this group"

    def figure(metric: str, denominator: int, why: str) -> Estimate:
        # The denominator is ours: fairlearn gives 0.0 where it is 0.
        if denominator == 0:
            return no_estimate(0, why)
        value = values[metric]
        return estimate(value, wilson(round(value * denominator), denominator, level), denominator)

    return {
        "n": n,
        "share": n / len(rows),
        "label_counts": counts,
        "accuracy": figure("accuracy", n, empty),
        "macro_f1": macro_f1(
            predictions.actual[rows], predictions.tuned.predicted[rows], labels, confidence_level=level, replicates=REPLICATES, seed=SEED
        )
        if n
        else no_estimate(0, empty),
        "selection_rate": {label: figure(f"selection_rate.{label}", n, empty) for label in labels},
        "recall": {label: figure(f"recall.{label}", counts[label], f"no row of this group has label {label!r}") for label in labels},
        "sufficient": n >= params.minimum_denominator,
    }


def _differences(predictions: Predictions, membership: Membership, params: AssessFairnessParams) -> dict[str, Any]:
    actual, predicted = predictions.actual, predictions.tuned.predicted
    right = actual == predicted
    accuracy = {name: (int(right[rows].sum()), int(rows.sum())) for name, rows in membership.items()}
    selected: dict[str, Counts] = {}
    recalled: dict[str, Counts] = {}
    for index, label in enumerate(predictions.labels):
        given, has = predicted == index, actual == index
        selected[label] = {name: (int(given[rows].sum()), int(rows.sum())) for name, rows in membership.items()}
        recalled[label] = {name: (int((given & has)[rows].sum()), int(has[rows].sum())) for name, rows in membership.items()}
    return {
        "accuracy": _difference(accuracy, params, "rows"),
        "demographic_parity_difference": {label: _difference(counts, params, "rows") for label, counts in selected.items()},
        "equal_opportunity_difference": {
            label: _difference(counts, params, f"rows with label {label!r}") for label, counts in recalled.items()
        },
    }


def _difference(counts: Counts, params: AssessFairnessParams, what: str) -> Estimate:
    """Largest difference between the groups whose denominator suffices; names the groups compared and those left out."""
    compared = {name: pair for name, pair in counts.items() if pair[1] >= params.minimum_denominator}
    left_out = [name for name in counts if name not in compared]
    if len(compared) < 2:
        why = f"{len(compared)} group(s) have at least {params.minimum_denominator} {what}; a difference needs two"
        figure = {**no_estimate(sum(n for _, n in compared.values()), why), "between": None}
    else:
        figure = largest_difference(compared, params.confidence_level)
    return {**figure, "compared": list(compared), "left_out": left_out}
