"""Per-group point values from fairlearn; no other module imports it.

Traps of fairlearn that the callers must guard against, because it reports a number all the same: a group without rows of a
label gets recall 0.0; a group without rows is left out; a single group has difference 0.0; labels given as strings give a
selection rate of 0.0 (hence the 0/1 indicators here). A feature array of a single row raises (hence the list).
"""

from functools import partial
from typing import Any, cast

import numpy as np
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from sklearn.metrics import accuracy_score, f1_score, precision_score

from pipeline.evaluation.intervals import Integers
from pipeline.fairness.groups import Membership

_UNDEFINED_AS_0: dict[str, Any] = {"zero_division": 0}  # scikit-learn's own annotations forbid it

_OF_A_LABEL: dict[str, Any] = {
    "selection_rate": selection_rate,
    "recall": true_positive_rate,
    "false_positive_rate": false_positive_rate,
    "precision": partial(precision_score, **_UNDEFINED_AS_0),
    "f1": partial(f1_score, **_UNDEFINED_AS_0),
}


def values_by_group(actual: Integers, predicted: Integers, labels: tuple[str, ...], membership: Membership) -> dict[str, dict[str, float]]:
    """Group -> metric -> value in [0, 1], for every group that has rows.

    The metrics are `accuracy`, and for each label `<metric>.<label>` with the metrics selection_rate, recall, false_positive_rate,
    precision and f1.

    `actual` and `predicted` [N] are indices of `labels`. A row in several groups counts in each of them.
    """
    rows = np.concatenate([np.flatnonzero(members) for members in membership.values()])
    if len(rows) == 0:
        return {}
    names = [name for name, members in membership.items() for _ in range(int(members.sum()))]
    values = _by_group({"accuracy": accuracy_score}, actual[rows], predicted[rows], names)
    for index, label in enumerate(labels):
        metrics = {f"{name}.{label}": metric for name, metric in _OF_A_LABEL.items()}
        found = _by_group(metrics, (actual[rows] == index).astype(int), (predicted[rows] == index).astype(int), names)
        for group, figures in found.items():
            values[group] |= figures
    return values


def _by_group(metrics: dict[str, Any], actual: Any, predicted: Any, groups: list[str]) -> dict[str, dict[str, float]]:
    frame = MetricFrame(metrics=metrics, y_true=actual, y_pred=predicted, sensitive_features=groups)
    return cast(Any, frame.by_group).to_dict(orient="index")
