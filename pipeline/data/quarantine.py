"""Row rules of the data contract: which rows are set aside, under which rule and why."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.data.measures import (
    ANSWER_KEY,
    PERSONAL_DATA,
    PROMPT_TOKENS,
    SCRIPT_SHARE,
    TEXT_KEY,
    UNKNOWN,
    Measures,
    Plan,
    characters,
    tokens,
)
from pipeline.data.personal_data import KINDS
from pipeline.params import ValidateParams

# The order in which rules are tried; a row is quarantined under the first that applies. Conflicts come before duplicates,
# so that every row of a text with contradicting labels is reported as such, and not half of them as mere repetitions.
RULES = (
    "missing_text",
    "missing_label",
    "missing_target",
    "unknown_label",
    "text_length",
    "target_length",
    "prompt_length",
    "cut_text",
    "foreign_script",
    "personal_data",
    "low_label_confidence",
    "conflicting_labels",
    "duplicate",
)
PASSES = -1

Flags = npt.NDArray[np.bool_]


def apply_row_rules(rows: Measures, plan: Plan, limits: ValidateParams) -> npt.NDArray[np.int8]:
    """The rule of each row as an index into RULES, PASSES for a row that no rule sets aside.

    Conflicts and duplicates are looked for among the rows that no earlier rule set aside.
    """
    found = np.full(len(rows), PASSES, dtype="int8")
    for rule, applies in _single_row_rules(rows, plan, limits):
        found[applies & (found == PASSES)] = RULES.index(rule)
    if limits.conflicting_labels == "quarantine" and plan.labels:
        remaining = np.flatnonzero(found == PASSES)
        found[remaining[_conflicts(rows, remaining)]] = RULES.index("conflicting_labels")
    if limits.duplicates == "keep_first":
        remaining = np.flatnonzero(found == PASSES)
        found[remaining[_repetitions(rows, remaining)]] = RULES.index("duplicate")
    return found


def rules_of(plan: Plan) -> tuple[str, ...]:
    """The rules that can apply to a task of this kind."""
    foreign = (
        {"missing_target", "target_length"}
        if plan.labels
        else {"missing_label", "unknown_label", "low_label_confidence", "conflicting_labels"}
    )
    return tuple(rule for rule in RULES if rule not in foreign)


def reasons(rows: Measures, found: Sequence[int], plan: Plan, limits: ValidateParams) -> list[str]:
    """A sentence for each of `rows`, which the rules `found` set aside; it holds no text of the row but an unknown label's first 40 characters."""
    sentences = _sentences(plan, limits)
    records = cast("list[dict[str, Any]]", rows.to_dict("records"))
    return [sentences[RULES[rule]](row) for rule, row in zip(found, records, strict=True)]


def _single_row_rules(rows: Measures, plan: Plan, limits: ValidateParams) -> Iterator[tuple[str, Flags]]:
    """(rule, which rows it applies to) for every rule that looks at one row by itself, in order."""
    yield "missing_text", _any(rows, [rows[characters(name)].isna() for name in plan.fields])
    if plan.labels:
        yield "missing_label", rows["label"].isna().to_numpy()
        yield "unknown_label", rows[ANSWER_KEY].to_numpy() == UNKNOWN
    else:
        yield "missing_target", rows[characters("target")].isna().to_numpy()
    yield "text_length", _any(rows, [_outside(rows, name, limits) for name in plan.fields])
    if not plan.labels:
        yield "target_length", rows[characters("target")].to_numpy() > limits.maximum_target_characters
    yield "prompt_length", rows[PROMPT_TOKENS].to_numpy() > plan.tokens.context_length
    if limits.cut_texts == "quarantine":
        yield "cut_text", _any(rows, [rows[tokens(name)] > plan.tokens.maximum_field_tokens for name in plan.fields])
    if limits.script is not None and limits.script.foreign_texts == "quarantine":
        yield "foreign_script", rows[SCRIPT_SHARE].to_numpy() < limits.script.minimum_share
    if limits.personal_data.action == "quarantine":
        yield "personal_data", rows[PERSONAL_DATA].to_numpy() > 0
    if limits.low_label_confidence == "quarantine":  # rows without a confidence are kept: nothing speaks against them
        yield "low_label_confidence", rows["label_confidence"].to_numpy() < limits.minimum_label_confidence


def _any(rows: Measures, flags: Sequence[Any]) -> Flags:
    return np.any([np.asarray(flag, dtype=bool) for flag in flags], axis=0) if flags else np.zeros(len(rows), dtype=bool)


def _outside(rows: Measures, name: str, limits: ValidateParams) -> Flags:
    lengths = rows[characters(name)].to_numpy()
    return (lengths < limits.minimum_text_characters) | (lengths > limits.maximum_text_characters)


def _conflicts(rows: Measures, at: npt.NDArray[np.intp]) -> Flags:
    """Of the rows `at`: those whose text also stands in another of them with another label."""
    _, text = np.unique(rows[TEXT_KEY].to_numpy()[at], return_inverse=True)
    labels = rows[ANSWER_KEY].to_numpy()[at]
    lowest, highest = np.full(len(at), np.iinfo("int64").max), np.full(len(at), np.iinfo("int64").min)
    np.minimum.at(lowest, text, labels)
    np.maximum.at(highest, text, labels)
    return (lowest < highest)[text]


def _repetitions(rows: Measures, at: npt.NDArray[np.intp]) -> Flags:
    """Of the rows `at`: those whose text and answer stand in an earlier one of them."""
    texts, answers = rows[TEXT_KEY].to_numpy()[at], rows[ANSWER_KEY].to_numpy()[at]
    order = np.lexsort((at, answers, texts))
    repeated = np.zeros(len(at), dtype=bool)
    repeated[order[1:]] = (texts[order[1:]] == texts[order[:-1]]) & (answers[order[1:]] == answers[order[:-1]])
    return repeated


def _sentences(plan: Plan, limits: ValidateParams) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Rule -> the sentence about one row of measures."""
    low, high = limits.minimum_text_characters, limits.maximum_text_characters
    cut = plan.tokens.maximum_field_tokens

    def first(is_meant: Callable[[str], bool]) -> str:
        return next(name for name in plan.fields if is_meant(name))

    def missing(row: Mapping[str, Any]) -> str:
        return f"The field {first(lambda name: bool(np.isnan(row[characters(name)])))} is missing."

    def length(row: Mapping[str, Any]) -> str:
        name = first(lambda name: not low <= row[characters(name)] <= high)
        return f"The field {name} has {int(row[characters(name)])} characters, expected {low} to {high}."

    def cut_text(row: Mapping[str, Any]) -> str:
        name = first(lambda name: row[tokens(name)] > cut)
        return f"The field {name} has {row[tokens(name)]} tokens and would be cut at {cut} (prompt.maximum_field_tokens)."

    return {
        "missing_text": missing,
        "missing_label": lambda row: "The label is missing.",
        "missing_target": lambda row: "The target is missing.",
        "unknown_label": lambda row: f"The label {row['label'][:40]!r} is not one of {', '.join(plan.labels)}.",
        "text_length": length,
        "target_length": lambda row: (
            f"The target has {int(row[characters('target')])} characters, expected at most {limits.maximum_target_characters}."
        ),
        "prompt_length": lambda row: (
            f"The prompt takes {row[PROMPT_TOKENS]} tokens, the base model attends to {plan.tokens.context_length}."
        ),
        "cut_text": cut_text,
        "foreign_script": lambda row: (
            f"{row[SCRIPT_SHARE]:.0%} of the letters are {' or '.join(plan.scripts)}, expected {limits.script.minimum_share if limits.script else 0:.0%} or more."
        ),
        "personal_data": lambda row: f"The text holds {', '.join(f'{row[kind]} {kind}' for kind in KINDS if row[kind])}.",
        "low_label_confidence": lambda row: (
            f"The label's confidence is {row['label_confidence']:g}, expected {limits.minimum_label_confidence:g} or more."
        ),
        "conflicting_labels": lambda row: "The same normalised text stands in other rows with another label.",
        "duplicate": lambda row: f"The same normalised text stands in an earlier row with the same {plan.answer}.",
    }
