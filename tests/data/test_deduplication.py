"""What counts as the same text: normalised, without ignored parts, and as digests."""

import unicodedata

import pyarrow as pa
import pytest

from pipeline.data.deduplication import DistinctTexts, bare, bare_texts, digests, normalise, text_keys

ALL = ("urls", "handles", "digits", "punctuation")


@pytest.mark.parametrize(
    ("text", "ignored", "expected"),
    [
        ("@united thanks for flight 123!", ALL, "thanks for flight"),
        ("see https://t.co/ab?x=1 and www.example.org now", ALL, "see and now"),
        ("12 + 13 = 25", (), "12 + 13 = 25"),
        ("12 plus 13", ("punctuation",), "12 plus 13"),
        ("aren't you", ALL, "aren t you"),
        ("¡qué día! 😡 ½", ALL, "qué día"),
        ("नमस्ते दुनिया ३", ALL, "नमस्ते दुनिया"),  # vowel signs are marks (M), which are no punctuation
        ("@united", ALL, "@united"),
        ("12:30 !!!", ALL, "12:30 !!!"),
        ("mail joe@example.org", ("handles",), "mail joe .org"),
    ],
)
def test_bare_text(text, ignored, expected):
    assert bare(text, ignored) == expected


def test_what_is_ignored_is_told_by_unicodes_categories():
    """Every character but those of a word: an oracle over the whole range, two characters to a text."""
    for code in range(0x20, 0x30000):
        character = chr(code)
        category = unicodedata.category(character)[0]
        if category in "CZ":
            continue
        left = bare(f"a{character}b", ("digits", "punctuation"))
        assert left == ("a b" if category in "NPS" else f"a{character}b"), hex(code)


def test_fields_are_kept_apart():
    batch = pa.RecordBatch.from_pydict({"one": ["a b", "a", "A "], "two": ["c", "b c", "B  c"]})
    keys = text_keys(batch, ["one", "two"])
    assert keys[0] != keys[1] == keys[2]
    assert len(set(bare_texts(batch, ["one", "two"], ALL))) == 2


def test_keys_are_equal_exactly_where_normalised_texts_are():
    texts = ["Straße", "STRASSE", "ﬁne", "fine", "a\u00a0b", "a b", "a\tb ", "ab", "", " ", "\ud800", "\ud801"]
    keys = text_keys(pa.RecordBatch.from_pydict({"text": pa.array(texts[:-2])}), ["text"])
    for i, left in enumerate(texts[:-2]):
        for j, right in enumerate(texts[:-2]):
            assert (keys[i] == keys[j]) == (normalise(left) == normalise(right))
    assert len(set(digests(texts[-2:], 2))) == 2  # lone surrogates are texts too


def test_distinct_texts_come_in_an_order_of_their_own():
    texts = [f"text {number}" for number in range(300)]
    first, second = DistinctTexts(), DistinctTexts()
    first.add([*texts, *texts[:50]])
    for start in range(0, 300, 70):
        second.add(texts[::-1][start : start + 70])
        second.add(texts[:30])
    (ours, ours_digests), (theirs, theirs_digests) = first.in_order(), second.in_order()
    assert ours.to_pylist() == theirs.to_pylist()
    assert sorted(ours.to_pylist()) == sorted(texts)
    assert (ours_digests == theirs_digests).all()
    assert (ours_digests == digests(ours.to_pylist(), 300)).all()
