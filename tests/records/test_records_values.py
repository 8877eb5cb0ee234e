"""What is written can be read back, and what is not strict JSON is neither written nor read."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import StageInputError
from pipeline.records import (
    checksum_file,
    iterate_parquet,
    read_json,
    read_jsonl,
    read_parquet,
    sha256_file,
    sha256_json,
    write_json,
    write_jsonl,
    write_parquet,
)

# U+2028, U+0085 and form feed are line boundaries to str.splitlines, not to JSON lines.
TEXTS = ["plain", "zwei\nZeilen", "a\u2028b\u0085c\x0cd\r\ne", "Zürich 🎈", '"quoted" \\ and \t', ""]


def test_json_comes_back_with_its_key_order(tmp_path: Path):
    record = {"z": TEXTS, "a": {"x": 0.1 + 0.2, "n": None, "t": True, "i": 2**63}}
    write_json(tmp_path / "deep/er/file.json", record)
    assert list(read_json(tmp_path / "deep/er/file.json").items()) == list(record.items())
    assert json.loads((tmp_path / "deep/er/file.json").read_text(encoding="utf-8")) == record


def test_json_lines_come_back_whatever_the_text_holds(tmp_path: Path):
    path = tmp_path / "file.jsonl"
    write_jsonl(path, ({"text": text, "n": n} for n, text in enumerate(TEXTS)))
    assert [record["text"] for record in read_jsonl(path)] == TEXTS
    assert path.read_bytes().count(b"\n") == len(TEXTS)


def test_no_json_lines_are_an_empty_file(tmp_path: Path):
    write_jsonl(tmp_path / "file.jsonl", [])
    assert (tmp_path / "file.jsonl").read_bytes() == b""
    assert read_jsonl(tmp_path / "file.jsonl") == []


def test_parquet_comes_back_with_nulls_and_without_index(tmp_path: Path):
    frame = pd.DataFrame({"text": TEXTS, "p": [0.5, None, 1.0, 0.25, 0.0, 1e-300]}, index=range(6, 12))
    write_parquet(tmp_path / "file.parquet", frame)
    again = read_parquet(tmp_path / "file.parquet", columns=("text", "p"))
    pd.testing.assert_frame_equal(again, frame.reset_index(drop=True), check_dtype=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("writer", [write_json, lambda path, record: write_jsonl(path, [{"a": 1}, record])])
def test_numbers_that_are_no_json_are_refused_and_nothing_is_left(tmp_path: Path, value: float, writer: Callable[[Path, Any], None]):
    with pytest.raises(ValueError, match=r"file\.json was not written: .*null with a reason"):
        writer(tmp_path / "file.json", {"accuracy": {"value": [value]}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": NaN}', "NaN is no JSON value"),
        (b'{"a": -Infinity}', "-Infinity is no JSON value"),
        (b'{"a": 1', "line 1, column 8"),
        (b"", "line 1, column 1"),
        (b"[1]", "holds list, expected a JSON object"),
        (b"null", "holds NoneType, expected a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[" * 100_000, "not strict JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not strict JSON"),
    ],
)
def test_a_file_that_is_no_json_object_is_named_with_the_place(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(StageInputError) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"a": 1}\n{"a"\n', "line 2 is not JSON"), (b'{"a": 1}\n\n{"a": 1}\n', "line 2"), (b'{}\n"x"\n', "line 2 holds str")],
)
def test_a_broken_json_line_is_named_by_its_number(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(StageInputError, match=words):
        read_jsonl(path)


@pytest.mark.parametrize("reader", [read_json, read_jsonl, read_parquet])
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, reader: Callable[[Path], Any]):
    with pytest.raises(StageInputError, match=r"nothing does not exist.*dvc repro"):
        reader(tmp_path / "nothing")
    with pytest.raises(StageInputError, match=str(tmp_path)):
        reader(tmp_path)


def test_a_parquet_file_that_is_broken_or_lacks_a_column_is_named(tmp_path: Path):
    path = tmp_path / "file.parquet"
    write_parquet(path, pd.DataFrame({"text": ["a"], "label": ["b"]}))
    with pytest.raises(StageInputError, match=r"lacks the columns \['row_id'\]; it has \['text', 'label'\]"):
        read_parquet(path, columns=("row_id", "text"))
    path.write_bytes(b"PAR1 and no more")
    checksum_file(path).write_text(f"{sha256_file(path)}  file.parquet\n")
    with pytest.raises(StageInputError, match="not a readable Parquet file"):
        read_parquet(path)
    with pytest.raises(StageInputError, match="not a readable Parquet file"):
        next(iterate_parquet(path))


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_sha256_of_json_ignores_key_order_and_tells_values_apart():
    assert sha256_json({"b": 1, "a": "ü"}) == sha256_json({"a": "ü", "b": 1}) == hashlib.sha256('{"a":"ü","b":1}'.encode()).hexdigest()
    assert len({sha256_json(value) for value in (0, 0.0, False, None, "", [], {}, "0")}) == 8
    with pytest.raises(ValueError, match="JSON compliant"):
        sha256_json({"a": math.nan})
