import csv
import json
from pathlib import Path

import numpy as np
import pytest

from flows.predict import as_json, check_destination, check_rows, label_objects, label_rows, read_csv, rows_of_texts, write_csv
from pipeline.errors import SourceError

LABELS = ["no", "yes"]
PROBABILITIES = np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32)


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "in.csv"
    path.write_bytes(content)
    return path


def test_quotes_line_breaks_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, '\ufeffid,text\r\n1,"a, ""b""\nc"\r\n2,ü\r\n'.encode())
    assert read_csv(path) == (["id", "text"], [{"id": "1", "text": 'a, "b"\nc'}, {"id": "2", "text": "ü"}])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"holds 0 line\(s\)"),
        (b"text\n", r"holds 1 line\(s\)"),
        (b"text\ncaf\xe9\n", "not UTF-8 at byte 8"),
        (b"a,text\n1,b\n2\n", "row 2 has 1 cells, the header has 2"),
        (b"a,text\n1,b,c\n", "row 1 has 3 cells, the header has 2"),
        (b"text,text\na,b\n", r"\['text'\] more than once"),
        (b'text\n"open\n', "not a CSV file"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(SourceError, match=rf"in\.csv.*({complaint})"):
        read_csv(file_of(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.csv cannot be read \(No such file"):
        read_csv(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("columns", "row", "complaint"),
    [
        (["id"], {"id": "1"}, r"lacks the columns \['text'\]; it has \['id'\]"),
        (["text", "label"], {"text": "a", "label": "x"}, r"already has the columns \['label'\]"),
        (["text", "p.yes"], {"text": "a", "p.yes": "x"}, r"already has the columns \['p\.yes'\]"),
        (["text"], {"text": "  "}, "row 1, column 'text' is empty"),
    ],
)
def test_rows_that_cannot_be_labelled_are_refused(columns: list[str], row: dict[str, str], complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint):
        check_rows(Path("in.csv"), columns, [row], ["text"], LABELS)


def test_texts_fill_the_only_field() -> None:
    assert rows_of_texts(["a", "b"], ["question"]) == [{"question": "a"}, {"question": "b"}]
    with pytest.raises(SourceError, match=r"takes the fields \['question', 'context'\]"):
        rows_of_texts(["a"], ["question", "context"])
    with pytest.raises(SourceError, match="--text number 2 is empty"):
        rows_of_texts(["a", " "], ["text"])


def test_the_likeliest_label_and_all_probabilities_are_given() -> None:
    assert label_rows(LABELS, PROBABILITIES) == [
        {"label": "yes", "p.no": "0.250000", "p.yes": "0.750000"},
        {"label": "no", "p.no": "0.900000", "p.yes": "0.100000"},
    ]
    found = json.loads(as_json("t", 3, label_objects([{"text": "a"}, {"text": "b"}], LABELS, PROBABILITIES)))
    assert (found["task"], found["version"]) == ("t", 3)
    assert found["predictions"][0] == {"text": "a", "label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}


def test_a_written_file_is_whole_and_read_again_the_same(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": 'a, "b"\nc', "label": "yes"}, {"id": "2", "text": "ü", "label": "no"}]
    path = tmp_path / "out.csv"
    write_csv(path, ["id", "text", "label"], rows)
    with path.open(encoding="utf-8", newline="") as stream:
        assert list(csv.DictReader(stream)) == rows
    path.write_text("before", encoding="utf-8")
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_csv(path, ["id"], [{"id": "1"}, {"other": "2"}])
    assert path.read_text(encoding="utf-8") == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


def test_a_destination_is_checked_before_the_work(tmp_path: Path) -> None:
    check_destination(tmp_path / "new.csv")
    with pytest.raises(SourceError, match="it is a folder"):
        check_destination(tmp_path)
    with pytest.raises(SourceError, match="its folder does not exist"):
        check_destination(tmp_path / "a" / "b.csv")


def test_a_column_that_a_written_answer_would_overwrite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"already has the columns \['answer'\]"):
        check_rows(tmp_path / "rows.csv", ["text", "answer"], [{"text": "a", "answer": "b"}], ["text"], [])
    assert check_rows(tmp_path / "rows.csv", ["text", "label"], [{"text": "a", "label": "b"}], ["text"], []) == [
        {"text": "a", "label": "b"}
    ]
