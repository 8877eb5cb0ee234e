"""Row rules of the data contract: which rows are set aside, under which rule and why."""

from collections.abc import Hashable, Sequence

import pandas as pd

from pipeline.data.deduplication import has_conflict, is_repetition, text_keys
from pipeline.params import ValidateParams

# The order in which rules are tried; a row is quarantined under the first that applies. Conflicts come before duplicates,
# so that every row of a text with contradicting labels is reported as such, and not half of them as mere repetitions.
RULES = ("missing_text", "missing_label", "unknown_label", "text_length", "low_label_confidence", "conflicting_labels", "duplicate")


Findings = dict[Hashable, tuple[str, str]]


def apply_row_rules(rows: pd.DataFrame, *, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> pd.DataFrame:
    """`rows` with the columns `rule` and `reason` (a sentence) added: null for a row that passes, filled for one to be set aside.

    Conflicts and duplicates are looked for among the rows that no earlier rule set aside.
    """
    findings: Findings = {}
    for finder in (_missing, _unknown_labels, _text_lengths, _low_confidences, _conflicts, _duplicates):
        remaining = rows.loc[~rows.index.isin(list(findings))]
        findings.update(finder(remaining, fields, labels, limits))
    nothing = (None, None)
    judged = rows.copy()
    judged["rule"] = pd.array([findings.get(i, nothing)[0] for i in rows.index], dtype="str")
    judged["reason"] = pd.array([findings.get(i, nothing)[1] for i in rows.index], dtype="str")
    return judged


def _missing(rows: pd.DataFrame, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Findings:  # noqa: ARG001
    found: Findings = dict.fromkeys(rows.index[rows["label"].isna()], ("missing_label", "The label is missing."))
    for name in fields:
        found.update(dict.fromkeys(rows.index[rows[name].isna()], ("missing_text", f"The field {name} is missing.")))
    return found


def _unknown_labels(rows: pd.DataFrame, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Findings:  # noqa: ARG001
    unknown = rows.loc[~rows["label"].isin(list(labels)), "label"]
    return {i: ("unknown_label", f"The label {label[:40]!r} is not one of {', '.join(labels)}.") for i, label in unknown.items()}


def _text_lengths(rows: pd.DataFrame, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Findings:  # noqa: ARG001
    low, high = limits.minimum_text_characters, limits.maximum_text_characters
    found: Findings = {}
    for name in fields:
        lengths = rows[name].str.len()
        outside = lengths[(lengths < low) | (lengths > high)]
        found.update(
            {i: ("text_length", f"The field {name} has {int(n)} characters, expected {low} to {high}.") for i, n in outside.items()}
        )
    return found


def _low_confidences(rows: pd.DataFrame, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Findings:  # noqa: ARG001
    """Rows without a confidence are kept: nothing speaks against them."""
    if limits.low_label_confidence == "keep":
        return {}
    low = limits.minimum_label_confidence
    below = rows.loc[rows["label_confidence"] < low, "label_confidence"]
    return {i: ("low_label_confidence", f"The label's confidence is {value:g}, expected {low:g} or more.") for i, value in below.items()}


def _conflicts(rows: pd.DataFrame, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Findings:  # noqa: ARG001
    if limits.conflicting_labels == "keep":
        return {}
    conflicting = rows.index[has_conflict(text_keys(rows, fields), rows["label"])]
    return dict.fromkeys(conflicting, ("conflicting_labels", "The same normalised text stands in other rows with another label."))


def _duplicates(rows: pd.DataFrame, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Findings:  # noqa: ARG001
    if limits.duplicates == "keep_all":
        return {}
    repeated = rows.index[is_repetition(text_keys(rows, fields), rows["label"])]
    return dict.fromkeys(repeated, ("duplicate", "The same normalised text stands in an earlier row with the same label."))
