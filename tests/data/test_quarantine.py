"""Row rules: which rule catches which row, in which order, and why."""

import pandas as pd
import pytest

from pipeline.data.deduplication import normalise
from pipeline.data.quarantine import RULES, apply_row_rules

LABELS = ("negative", "positive")


def judged(workspace, rows, **limits):
    frame = pd.DataFrame(rows, columns=["text", "label", "label_confidence"]).astype(
        {"text": "str", "label": "str", "label_confidence": "float64"}
    )
    params = workspace.params(validate_={"minimum_text_characters": 3, "maximum_text_characters": 10, **limits})
    return apply_row_rules(frame, fields=["text"], labels=LABELS, limits=params.validate_)


def rules(workspace, rows, **limits):
    found = judged(workspace, rows, **limits)
    return [None if pd.isna(rule) else rule for rule in found["rule"]]


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
    found = judged(workspace, [row])
    assert [None if pd.isna(value) else value for value in found.loc[0, ["rule", "reason"]]] == [rule, reason]
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
    frame = pd.DataFrame(
        {"a": ["xxx", "xxx y", "xxx"], "b": ["y zzz", "zzz", "Y ZZZ"], "label": ["positive"] * 3, "label_confidence": [1.0] * 3}
    )
    params = workspace.params(validate_={"minimum_text_characters": 1, "maximum_text_characters": 10})
    found = apply_row_rules(frame, fields=["a", "b"], labels=LABELS, limits=params.validate_)
    assert found["rule"].isna().tolist() == [True, True, False]


def test_no_rows(workspace):
    assert rules(workspace, []) == []


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
