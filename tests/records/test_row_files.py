"""Rows of users' files: the same in batches of any size, from CSV and from Parquet, and written whole or not at all."""

import csv
import datetime
import os
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.row_files import check_texts, open_rows, read_csv, texts_of, write_rows

ANSWERS = pa.schema([("label", pa.string()), ("p.yes", pa.float64())])


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "in.csv"
    path.write_bytes(content)
    return path


def held(path: Path, rows_at_once: int) -> list[dict[str, object]]:
    with open_rows(path) as rows:
        return [row for batch in rows.batches(rows_at_once) for row in batch.to_pylist()]


def test_quotes_line_breaks_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, '\ufeffid,text\r\n1,"a, ""b""\nc"\r\n\r\n2,ü\r\n'.encode())
    expected = [{"id": "1", "text": 'a, "b"\nc'}, {"id": "2", "text": "ü"}]
    assert read_csv(path) == (["id", "text"], expected)
    assert held(path, 1) == held(path, 100) == expected


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no rows, expected a header and at least one row"),
        (b"text\n", "holds no rows, expected a header and at least one row"),
        (b"text\ncaf\xe9\n", r"line 2: byte 0xe9 at offset 8 is not utf-8 \(.*\)\. Save it as CSV in UTF-8"),
        (b"a,text\n1,b\n2\n", "row 2 has 1 cells, the header has 2"),
        (b"a,text\n1,b,c\n", "row 1 has 3 cells, the header has 2"),
        (b"text,text\na,b\n", r"\['text'\] more than once"),
        (b'text\n"open\n', "not a CSV file"),
        (b"text\nlate\n \n", "row 2, column 'text' is empty"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(SourceError, match=rf"in\.csv.*({complaint})"), open_rows(path) as rows:
        check_texts(rows, ["text"], for_csv=True)
    if b" " not in content:
        with pytest.raises(SourceError, match=rf"in\.csv.*({complaint})"):
            read_csv(path)


def test_a_place_is_right_behind_the_first_batches(tmp_path: Path) -> None:
    rows = "".join(f"{number},late\n" for number in range(5_000))
    with pytest.raises(SourceError, match="row 5001 has 1 cells"), open_rows(file_of(tmp_path, f"id,text\n{rows}x\n".encode())) as found:
        check_texts(found, ["text"], for_csv=False)
    with (
        pytest.raises(SourceError, match="row 5001, column 'text' is empty"),
        open_rows(file_of(tmp_path, f"id,text\n{rows}x,\n".encode())) as found,
    ):
        check_texts(found, ["text"], for_csv=False)
    late = b"id,text\n" + b"0,late\n" * 200_000 + b"x,caf"
    with (
        pytest.raises(SourceError, match=rf"line 200002: byte 0xe9 at offset {len(late)} is not utf-8"),
        open_rows(file_of(tmp_path, late + b"\xe9\n")) as found,
    ):
        check_texts(found, ["text"], for_csv=False)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("nowhere.csv", "nowhere.parquet"):
        with pytest.raises(SourceError, match=rf"{name} cannot be read \(No such file"), open_rows(tmp_path / name):
            pass
    with pytest.raises(SourceError, match="cannot be read"), open_rows(tmp_path):
        pass
    (tmp_path / "text.parquet").write_text("text\nlate\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"text\.parquet is not a readable Parquet file"), open_rows(tmp_path / "text.parquet"):
        pass


def test_a_pipe_is_read_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"text\nlate\nagain\n",))
    writer.start()
    with open_rows(path) as rows:
        assert check_texts(rows, ["text"], for_csv=True) == 2
        assert [batch.to_pylist() for batch in rows.batches(1)] == [[{"text": "late"}], [{"text": "again"}]]
    writer.join()


def test_a_file_that_changes_between_two_readings_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"text\nlate\n")
    with open_rows(path) as rows:
        check_texts(rows, ["text"], for_csv=True)
        with path.open("ab") as stream:
            stream.write(b"again\n")
        with pytest.raises(SourceError, match=r"in\.csv was changed while it was read"):
            list(rows.batches())


def parquet_of(path: Path, rows: int) -> Path:
    columns = {
        "text": pa.array([f"late {number}" for number in range(rows)]).dictionary_encode(),
        "count": pa.array([None if number == 3 else number for number in range(rows)], pa.int64()),
        "day": [datetime.date(2026, 1, 1)] * rows,
        "share": [float("nan") if number == 1 else number / 4 for number in range(rows)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_row_groups_do_not_show_in_the_batches(tmp_path: Path, rows_at_once: int) -> None:
    path = parquet_of(tmp_path / "in.parquet", 10)
    with open_rows(path) as rows:
        batches = list(rows.batches(rows_at_once))
        assert check_texts(rows, ["text", "day"], for_csv=True) == 10
    assert [batch.num_rows for batch in batches[:-1]] == [rows_at_once] * (len(batches) - 1)
    assert pa.Table.from_batches(batches)["count"].to_pylist() == [0, 1, 2, None, 4, 5, 6, 7, 8, 9]
    with open_rows(path) as rows:
        assert texts_of(rows, batches[0], ["text", "day"], 1)[0] == {"text": "late 0", "day": "2026-01-01"}
        with pytest.raises(SourceError, match=r"in\.parquet, row 4, column 'count' is empty"):
            check_texts(rows, ["count"], for_csv=False)
        with pytest.raises(SourceError, match=r"in\.parquet, row 2, column 'share' holds 'nan' \(float\), expected text"):
            check_texts(rows, ["share"], for_csv=False)


def test_what_has_no_text_form_is_refused_for_a_csv_file_before_the_work(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["late"], "tags": [["a", "b"]]}), tmp_path / "in.parquet")
    with open_rows(tmp_path / "in.parquet") as rows:
        assert check_texts(rows, ["text"], for_csv=False) == 1
        with pytest.raises(SourceError, match=r"row 1, column 'tags' holds .*\(list\), expected text, a number"):
            check_texts(rows, ["text"], for_csv=True)


def answered(path: Path, source: Path, rows_at_once: int) -> None:
    with open_rows(source) as rows, write_rows(path, rows.schema, ANSWERS) as write:
        for batch in rows.batches(rows_at_once):
            write(batch, pa.RecordBatch.from_arrays([["yes"] * batch.num_rows, [0.123456789] * batch.num_rows], schema=ANSWERS))


def test_parquet_keeps_the_types_and_csv_is_text(tmp_path: Path) -> None:
    source = parquet_of(tmp_path / "in.parquet", 5)
    for rows_at_once in (2, 100):
        answered(tmp_path / "out.parquet", source, rows_at_once)
        frame = pd.read_parquet(tmp_path / "out.parquet")
        pd.testing.assert_frame_equal(frame[["text", "count", "day", "share"]], pd.read_parquet(source))
        assert frame["p.yes"].to_list() == [0.123456789] * 5
        answered(tmp_path / "out.csv", source, rows_at_once)
        with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
            written = list(csv.DictReader(stream))
        assert written[1] == {"text": "late 1", "count": "1", "day": "2026-01-01", "share": "nan", "label": "yes", "p.yes": "0.123457"}
        assert written[3]["count"] == ""
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == 1


def break_off(path: Path) -> None:
    with write_rows(path, pa.schema([("text", pa.string())]), ANSWERS) as write:
        write(pa.RecordBatch.from_pydict({"text": ["late"]}), pa.RecordBatch.from_arrays([["yes"], [1.0]], schema=ANSWERS))
        raise RuntimeError("in the middle")


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    for name in ("out.csv", "out.parquet"):
        path = tmp_path / name
        path.write_text("before", encoding="utf-8")
        with pytest.raises(RuntimeError, match="in the middle"):
            break_off(path)
        assert path.read_text(encoding="utf-8") == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.parquet"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    @contextmanager
    def full(_path: Path):
        yield Path("/dev/full")

    monkeypatch.setattr("pipeline.row_files.replacing_file", full)
    with pytest.raises(SourceError, match=r"out\.csv cannot be written \(No space left on device\)"):
        answered(tmp_path / "out.csv", file_of(tmp_path, b"text\nlate\n"), 1)
