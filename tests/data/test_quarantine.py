"""Row rules: which rule catches which row, in which order, and why."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.deduplication import normalise
from pipeline.data.measures import Plan, measure
from pipeline.data.quarantine import PASSES, RULES, apply_row_rules, reasons
from pipeline.data.token_counts import PromptTokens

LABELS = ("negative", "positive")


def batch_of(rows):
    columns = dict(zip(("text", "label", "label_confidence"), zip(*rows, strict=True), strict=True)) if rows else {}
    types = {"text": pa.large_string(), "label": pa.large_string(), "label_confidence": pa.float64()}
    named = {name: pa.array(columns.get(name, []), type=kind) for name, kind in types.items()}
    numbers = pa.array(range(1, len(rows) + 1), type=pa.int64())
    return pa.RecordBatch.from_pydict({"row_id": numbers.cast(pa.large_string()), "source_row": numbers, **named})


def plan_of(workspace, limits, **more):
    counts = PromptTokens(
        base_model="bytes",
        tokenizer=(workspace.root / "model" / "tokenizer.json").read_text(), context_length=2048, virtual_tokens=5, templates=("{text}:",),
        answers=("y", "no"), maximum_field_tokens=128,
    )  # fmt: skip
    script = limits.script
    given = {
        "fields": ("text",),
        "answer": "label",
        "labels": LABELS,
        "tokens": counts,
        "scripts": tuple(script.expected) if script else (),
    }
    return Plan(**{**given, "phone_region": "US", "masked": limits.personal_data.action == "mask", **more})


def judged(workspace, rows, **limits):
    """(rule, reason) of each row, None and None for one that passes."""
    params = workspace.params(validate_={"minimum_text_characters": 3, "maximum_text_characters": 10, **limits})
    plan, batch = plan_of(workspace, params.validate_), batch_of(rows)
    measures = measure([batch] if rows else [], plan, batch.schema)
    found = apply_row_rules(measures, plan, params.validate_)
    aside = np.flatnonzero(found != PASSES)
    sentences = dict(zip(aside.tolist(), reasons(measures.iloc[aside], found[aside].tolist(), plan, params.validate_), strict=True))
    return [(RULES[rule] if index in sentences else None, sentences.get(index)) for index, rule in enumerate(found.tolist())]


def rules(workspace, rows, **limits):
    return [rule for rule, _ in judged(workspace, rows, **limits)]


@pytest.mark.parametrize(
    ("row", "rule", "reason"),
    [
        (("good", "positive", 0.9), None, None),
        (("good", "positive", None), None, None),
        ((None, "positive", 0.9), "missing_text", "The field text is missing."),
        (("good", None, 0.9), "missing_label", "The label is missing."),
        ((None, None, 0.9), "missing_text", "The field text is missing."),
        (("good", "postive", 0.9), "unknown_label", "The label 'postive' is not one of negative, positive."),
        (("ab", "positive", 0.9), "text_length", "The field text has 2 characters, expected 3 to 10."),
        (("abc", "positive", 0.9), None, None),
        (("\U0001f600" * 10, "positive", 0.9), None, None),
        (("\U0001f600" * 11, "positive", 0.9), "text_length", "The field text has 11 characters, expected 3 to 10."),
        (("good", "positive", 0.49), "low_label_confidence", "The label's confidence is 0.49, expected 0.5 or more."),
        (("good", "positive", 0.5), None, None),
        (("ab", "postive", 0.1), "unknown_label", "The label 'postive' is not one of negative, positive."),
        (("ab", "positive", 0.1), "text_length", "The field text has 2 characters, expected 3 to 10."),
    ],
)
def test_one_row(workspace, row, rule, reason):
    assert judged(workspace, [row]) == [(rule, reason)]
    assert rule is None or rule in RULES


def test_low_confidence_can_be_kept(workspace):
    assert rules(workspace, [("good", "positive", 0.1)], low_label_confidence="keep") == [None]


DUPLICATES = [("Good  one", "positive", 1), ("good one", "positive", 1), ("GOOD\tone ", "positive", 1), ("other", "positive", 1)]


def test_duplicates_keep_the_first(workspace):
    assert rules(workspace, DUPLICATES) == [None, "duplicate", "duplicate", None]
    assert rules(workspace, DUPLICATES, duplicates="keep_all") == [None] * 4


CONFLICT = [("same", "positive", 1), ("SAME", "negative", 1), ("same", "positive", 1), ("else", "positive", 1)]


def test_conflicts_take_every_row_of_the_text(workspace):
    assert rules(workspace, CONFLICT) == ["conflicting_labels"] * 3 + [None]
    assert rules(workspace, CONFLICT, duplicates="keep_all") == ["conflicting_labels"] * 3 + [None]


def test_kept_conflicts_leave_one_row_per_label(workspace):
    assert rules(workspace, CONFLICT, conflicting_labels="keep") == [None, None, "duplicate", None]


def test_a_row_set_aside_earlier_makes_no_conflict_and_no_duplicate(workspace):
    assert rules(workspace, [("same", "negative", 0.1), ("same", "positive", 1)]) == ["low_label_confidence", None]
    assert rules(workspace, [("same", "positive", 0.1), ("same", "positive", 1)]) == ["low_label_confidence", None]


def test_two_fields_are_compared_together(workspace):
    values = {"a": ["xxx", "xxx y", "xxx"], "b": ["y zzz", "zzz", "Y ZZZ"], "label": ["positive"] * 3, "label_confidence": [1.0] * 3}
    batch = pa.RecordBatch.from_pydict({"row_id": ["1", "2", "3"], "source_row": [1, 2, 3], **values})
    limits = workspace.params(validate_={"minimum_text_characters": 1, "maximum_text_characters": 10}).validate_
    plan = plan_of(workspace, limits, fields=("a", "b"))
    plan = replace(plan, tokens=replace(plan.tokens, templates=("{a} {b}",)))
    found = apply_row_rules(measure([batch], plan, batch.schema), plan, limits)
    assert (found == PASSES).tolist() == [True, True, False]


def test_no_rows(workspace):
    assert rules(workspace, []) == []


@pytest.mark.parametrize(
    ("text", "rule", "reason", "limits"),
    [
        # Tokens are bytes. A longer text is cut at 128 tokens by default, so it always fits.
        ("a" * 2040, None, None, {"personal_data": {"action": "count"}}),
        ("a" * 129, "cut_text", "The field text has 129 tokens and would be cut at 128 (prompt.maximum_field_tokens).", {"cut_texts": "quarantine"}),
        ("\u00e9" * 64, None, None, {"cut_texts": "quarantine"}),
        ("\u00e9" * 65, "cut_text", "The field text has 130 tokens and would be cut at 128 (prompt.maximum_field_tokens).", {"cut_texts": "quarantine"}),
        (
            "\u043f\u0440\u0438\u0432ab", "foreign_script", "33% of the letters are Latin, expected 50% or more.",
            {"script": {"expected": ["Latin"], "foreign_texts": "quarantine"}},
        ),
        ("12:30!", None, None, {"script": {"expected": ["Latin"], "foreign_texts": "quarantine"}}),
        ("me@example.org", "personal_data", "The text holds 1 e-mail addresses.", {"personal_data": {"action": "quarantine"}}),
        ("me@example.org", None, None, {"personal_data": {"action": "mask"}}),
    ],
)  # fmt: skip
def test_rules_that_a_task_can_switch_on(workspace, text, rule, reason, limits):
    assert judged(workspace, [(text, "positive", 1.0)], **{"maximum_text_characters": 10_000, **limits}) == [(rule, reason)]


def test_a_prompt_that_does_not_fit_is_set_aside(workspace):
    limits = workspace.params(validate_={"maximum_text_characters": 10_000}).validate_
    plan = plan_of(workspace, limits)
    # 5 virtual tokens + 100 of the text + ":" + "no", the longer verbalizer.
    rows = [("a" * 100, "positive", 1.0), ("b" * 101, "positive", 1.0)]
    plan = replace(plan, tokens=replace(plan.tokens, context_length=108))
    measures = measure([batch_of(rows)], plan, batch_of(rows).schema)
    found = apply_row_rules(measures, plan, limits)
    assert found.tolist() == [PASSES, RULES.index("prompt_length")]
    assert reasons(measures.iloc[[1]], [found[1]], plan, limits) == ["The prompt takes 109 tokens, the base model attends to 108."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A\r\nB\u00a0C ", "a b c"),
        ("\uff21\uff22", "ab"),  # full width letters
        ("Stra\u00dfe", "strasse"),
        ("e\u0301", "\u00e9"),
        ("\ufb01", "fi"),
        ("a\x1fb", "a b"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize("start", range(0, 0x30000, 0x8000))
def test_normalise_is_idempotent(start):
    texts = [chr(code) for code in range(start, start + 0x8000) if not 0xD800 <= code < 0xE000]
    once = [normalise(text) for text in texts]
    assert [normalise(text) for text in once] == once
