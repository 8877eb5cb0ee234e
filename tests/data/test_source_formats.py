"""Formats: the same rows from every one of them, whatever the blocks they are read in; text forms of values; mapping; caps."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import random
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipeline.data.sources import row_ids
from pipeline.data.sources.limits import BLOCK_ROWS
from pipeline.errors import SourceError
from tests.data.source_reading import nulls_as_none, read

ROWS = [
    ("positive", "good"),
    ("negative", 'a "quoted", text\nover two lines'),
    (None, "no label"),
    ("negative", None),
    ("neutral", "Z\u00fcrich \u2014 \U0001f600"),
    ("positive", "good"),
]


def delimited(delimiter, rows=ROWS):
    frame = pd.DataFrame(rows, columns=["label", "text"])
    return frame.to_csv(index=False, sep=delimiter).encode()


def json_lines(rows=ROWS):
    return "".join(json.dumps({"label": label, "text": text, "rest": [1, {"a": 2}]}) + "\n" for label, text in rows).encode()


def table(rows=ROWS):
    return pa.table({"text": [text for _, text in rows], "other": [1.5] * len(rows), "label": [label for label, _ in rows]})


def parquet(data=None, **options):
    sink = io.BytesIO()
    pq.write_table(table() if data is None else data, sink, **options)
    return sink.getvalue()


def arrow(data=None, *, stream=False):
    data = table() if data is None else data
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, data.schema) as writer:
        writer.write_table(data)
    return sink.getvalue()


def zstd(content):
    return pa.Codec("zstd").compress(content, asbytes=True)


def feather_file():
    sink = io.BytesIO()
    feather.write_feather(table(), sink)
    return sink.getvalue()


FILES = {
    "a.csv": (delimited(","), {}),
    "a.CSV": (delimited(","), {}),
    "b.tsv": (delimited("\t"), {}),
    "c.txt": (delimited("|"), {"format": "csv", "delimiter": "|"}),
    "d.jsonl": (json_lines(), {}),
    "e.ndjson": (b"\n" + json_lines().replace(b"\n", b"\r\n") + b"\n", {}),
    "f.parquet": (parquet(), {}),
    "g.pq": (parquet(row_group_size=2, use_dictionary=False, compression="zstd", version="1.0"), {}),
    "h.arrow": (arrow(), {}),
    "i.arrow": (arrow(stream=True), {}),
    "j.feather": (feather_file(), {}),
    "k.csv.gz": (gzip.compress(delimited(",")), {}),
    "l.csv.gz": (gzip.compress(delimited(",")[:30]) + gzip.compress(delimited(",")[30:]), {}),  # members, as joined logs have
    "m.jsonl.zst": (zstd(json_lines()), {}),
    "n.jsonl.zst": (zstd(json_lines()[:40]) + zstd(json_lines()[40:]), {}),
    "o.parquet.gz": (gzip.compress(parquet()), {}),
    "p.data": (gzip.compress(arrow(stream=True)), {"format": "arrow", "compression": "gzip"}),
    "q.csv": (delimited(",").decode().encode("utf-16"), {"encoding": "utf-16"}),
    "r.csv": (b"\xff\xfe" + delimited(",").decode().encode("utf-16-le"), {"encoding": "utf-16-le"}),
    "s.csv": (delimited(",").decode().encode("utf-8-sig"), {}),
    "t.parquet": (parquet(table().cast(pa.schema({"text": pa.large_string(), "other": pa.float64(), "label": pa.large_string()}))), {}),
    "u.parquet": (parquet(table().set_column(2, "label", table()["label"].dictionary_encode())), {}),
    "v.arrow": (arrow(table().set_column(0, "text", table()["text"].dictionary_encode())), {}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    content, options = FILES[name]
    (tmp_path / name).write_bytes(content)
    rows, facts = read({"path": name, **options}, root=tmp_path)
    assert nulls_as_none(rows["label"]) == [label for label, _ in ROWS]
    assert nulls_as_none(rows["text"]) == [text for _, text in ROWS]
    assert rows["source_row"].tolist() == [1, 2, 3, 4, 5, 6]
    # The ids of this module's first version, computed apart from it: they are in published bundles.
    assert rows["row_id"].tolist() == row_ids([{"label": label, "fields": {"text": text}} for label, text in ROWS])
    assert rows["row_id"][5] == rows["row_id"][0] + "-2"
    assert (facts.rows, facts.size, facts.sha256_of) == (6, len(content), "bytes")


@pytest.mark.parametrize(
    ("encoding", "letters"),
    [
        ("utf-8", "a\u00e9\u20ac\U0001f600"),
        ("utf-16", "a\u00e9\U0001f600"),
        ("shift_jis", "a\u3042\u6f22"),
        ("gb18030", "a\u6f22\U0001f600"),
    ],
)
def test_characters_across_the_borders_of_pieces_are_whole(tmp_path, encoding, letters):
    randomness = random.Random(3)
    rows = [(f"l{i % 3}", "".join(randomness.choices(letters, k=randomness.randint(500, 3_000)))) for i in range(900)]
    text = "label,text\r\n" + "".join(f"{label},{text}\r\n" for label, text in rows)
    (tmp_path / "in.csv").write_bytes(text.encode(encoding))
    assert (tmp_path / "in.csv").stat().st_size > 2 * 2**20
    found, _ = read({"path": "in.csv", "encoding": encoding}, root=tmp_path)
    assert list(zip(found["label"], found["text"], strict=True)) == rows


def test_blocks_leave_no_trace_in_ids_and_row_numbers(tmp_path):
    randomness = random.Random(5)
    rows = [(randomness.choice("ab"), f"text {randomness.randint(0, 900)}") for _ in range(2 * BLOCK_ROWS + 77)]
    (tmp_path / "in.jsonl").write_bytes(json_lines(rows))
    found, _ = read({"path": "in.jsonl"}, root=tmp_path)
    seen: Counter[tuple[str, str]] = Counter()
    for row, made in zip(rows, found["row_id"], strict=True):
        seen[row] += 1
        assert made.partition("-")[2] == ("" if seen[row] == 1 else str(seen[row]))
    assert found["row_id"].is_unique
    assert found["source_row"].tolist() == list(range(1, len(rows) + 1))


VALUES = {
    "True": True,
    "False": False,
    "7": 7,
    "-3": -3,
    "0.5": 0.5,
    "1.0": 1.0,
    "1e+20": 1e20,
    "as it is": "as it is",
}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_values_have_one_text_form_in_all_formats(tmp_path, text, value):
    (tmp_path / "in.jsonl").write_text(json.dumps({"label": value, "text": "x"}) + "\n")
    (tmp_path / "in.parquet").write_bytes(parquet(pa.table({"label": [value], "text": ["x"]})))
    assert read({"path": "in.jsonl"}, root=tmp_path)[0]["label"].tolist() == [text]
    assert read({"path": "in.parquet"}, root=tmp_path)[0]["label"].tolist() == [text]


def test_dates_and_decimals_in_parquet(tmp_path):
    values = {"date": datetime.date(2024, 2, 29), "time": datetime.datetime(2024, 2, 29, 12, 30), "amount": decimal.Decimal("10.50")}
    (tmp_path / "in.parquet").write_bytes(parquet(pa.table({name: [value] for name, value in values.items()})))
    columns = {"fields": {"when": "date", "amount": "amount"}, "label": "time"}
    rows, _ = read({"path": "in.parquet"}, columns, root=tmp_path)
    assert rows.loc[0, ["when", "amount", "label"]].tolist() == ["2024-02-29", "10.50", "2024-02-29T12:30:00"]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([[1, 2]], "'[1, 2]' (list)"),
        ([{"a": 1}], "(dict)"),
        ([b"bytes"], "(bytes)"),
        (pa.array(np.array([np.nan])), "'nan' (float)"),
        (pa.array([np.inf]), "'inf' (float)"),
        ([datetime.timedelta(1)], "(timedelta)"),
    ],
)
def test_values_without_a_text_form_are_refused(tmp_path, column, words):
    (tmp_path / "in.parquet").write_bytes(parquet(pa.table({"text": ["x"], "label": column})))
    with pytest.raises(SourceError, match=r"in\.parquet, data row 1, column 'label'") as caught:
        read({"path": "in.parquet"}, root=tmp_path)
    assert words in str(caught.value)


def test_all_parts_of_a_mapping(tmp_path):
    content = "n,q,c,a,p,l,where\n1,who,x,yes,0.25,de,d1\n2,what,x,no,,en,d1\n3,why,,no,1,,d2\n"
    (tmp_path / "in.csv").write_text(content)
    columns = {
        "fields": {"question": "q", "context": "c"},
        "label": "a",
        "label_confidence": "p",
        "groups": {"language": "l"},
        "id": "n",
        "origin": "where",
    }
    rows, _ = read({"path": "in.csv"}, columns, root=tmp_path)
    names = ["row_id", "source_row", "question", "context", "label", "label_confidence", "source_id", "origin", "group.language"]
    assert list(rows.columns) == names
    assert nulls_as_none(rows["group.language"]) == ["de", "en", None]
    assert rows["source_id"].tolist() == ["1", "2", "3"]
    assert rows["origin"].tolist() == ["d1", "d1", "d2"]
    assert nulls_as_none(rows["context"]) == ["x", "x", None]
    assert nulls_as_none(rows["label_confidence"]) == [0.25, None, 1.0]
    plain, _ = read({"path": "in.csv"}, {"fields": {"question": "q", "context": "c"}, "label": "a"}, root=tmp_path)
    assert plain["row_id"].tolist() == rows["row_id"].tolist()  # ids are of the text and the label alone


def test_one_source_column_may_play_two_parts(tmp_path):
    (tmp_path / "in.csv").write_text("label,text\na,x\nb,y\n")
    rows, _ = read({"path": "in.csv"}, {"fields": {"text": "text"}, "label": "label", "groups": {"kind": "label"}}, root=tmp_path)
    assert rows["group.kind"].tolist() == rows["label"].tolist() == ["a", "b"]
    (tmp_path / "in.parquet").write_bytes(parquet(pa.table({"label": ["a", "b"], "text": ["x", "y"]})))
    again, _ = read({"path": "in.parquet"}, {"fields": {"text": "text"}, "label": "label", "groups": {"kind": "label"}}, root=tmp_path)
    assert again.equals(rows)


def test_free_text_targets(tmp_path):
    (tmp_path / "in.csv").write_text("summary,text\nshort,long\n,longer\n")
    rows, _ = read({"path": "in.csv"}, {"fields": {"text": "text"}, "target": "summary"}, root=tmp_path)
    assert list(rows.columns) == ["row_id", "source_row", "text", "target", "label_confidence"]
    assert nulls_as_none(rows["target"]) == ["short", None]


@pytest.mark.parametrize(("content", "words"), [("1,a\n1,b\n", "data row 2"), ("1,a\n,b\n", "data row 2, column 'n': no id")])
def test_an_id_tells_rows_apart(tmp_path, content, words):
    (tmp_path / "in.csv").write_text("n,text\n" + content)
    with pytest.raises(SourceError, match=words):
        read({"path": "in.csv"}, {"fields": {"text": "text"}, "label": "text", "id": "n"}, root=tmp_path)


# --- caps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "d.jsonl", "f.parquet", "h.arrow", "i.arrow", "m.jsonl.zst", "o.parquet.gz"])
def test_caps_are_errors_that_name_themselves(tmp_path, name):
    content, options = FILES[name]
    (tmp_path / name).write_bytes(content)
    read({"path": name, **options}, root=tmp_path, maximum_rows=6)
    with pytest.raises(SourceError, match=r"more than 5 rows \(ingest.maximum_rows\)"):
        read({"path": name, **options}, root=tmp_path, maximum_rows=5)
    with pytest.raises(SourceError, match=r"more than 60 bytes when unpacked \(ingest.maximum_bytes\)"):
        read({"path": name, **options}, root=tmp_path, maximum_bytes=60)


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path):
    line = b"label,text\n" + (b"a," + b"b" * 1_000 + b"\n") * 100_000
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(line, 1))
    (tmp_path / "in.csv.zst").write_bytes(zstd(line))
    for name in ("in.csv.gz", "in.csv.zst"):
        assert (tmp_path / name).stat().st_size < 1_000_000
        with pytest.raises(SourceError, match=r"ingest\.maximum_bytes"):
            read({"path": name}, root=tmp_path, maximum_bytes=2**21)


@pytest.fixture
def arrow_memory():
    """What Arrow allocates from here on, counted apart from what it allocated before."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(before)


def test_a_parquet_file_of_repeated_long_texts_is_spread_out_a_few_rows_at_a_time(tmp_path, arrow_memory):
    """800 GB of text in a file of a few kilobytes; a block of rows alone would take 1.6 GB."""
    rows = 4_000_000
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array(["x" * 100_000]))
    (tmp_path / "in.parquet").write_bytes(parquet(pa.table({"text": column, "label": column}), compression="zstd", store_schema=False))
    assert (tmp_path / "in.parquet").stat().st_size < 100_000
    with pytest.raises(SourceError, match=r"ingest\.maximum_bytes"):
        read({"path": "in.parquet"}, root=tmp_path, maximum_bytes=100 * 2**20)
    assert 2**20 < arrow_memory.max_memory() < 150 * 2**20


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "in.parquet").write_bytes(parquet())
    from pipeline.data.sources import open_source
    from pipeline.params import Columns, FileSource

    source = FileSource(kind="file", path="in.parquet")
    with open_source(source, Columns(fields={"text": "text"}, label="label"), root=tmp_path) as stream:
        next(stream.batches)
        with (tmp_path / "in.parquet").open("ab") as file:
            file.write(b"x")
        with pytest.raises(SourceError, match="was changed while it was read"):
            list(stream.batches)


def test_bzip2_is_named(tmp_path):
    (tmp_path / "in.csv").write_bytes(bz2.compress(delimited(",")))
    with pytest.raises(SourceError, match="is a bzip2 archive, expected text"):
        read({"path": "in.csv"}, root=tmp_path)
