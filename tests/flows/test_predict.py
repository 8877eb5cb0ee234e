import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.predict import answer_file, answer_object, as_json, check_destination, rows_of_texts
from pipeline.answering import answer_batch, answers_here, check_columns, label_answers
from pipeline.errors import SourceError, TemplateError
from pipeline.row_files import open_rows, read_csv
from tests.registry.registry_workspace import LABELS as SENTIMENTS
from tests.registry.registry_workspace import TASK

LABELS = ["no", "yes"]
PROBABILITIES = np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("columns", "labels", "complaint"),
    [
        (["id"], LABELS, r"lacks the columns \['text'\]; it has \['id'\]"),
        (["text", "label"], LABELS, r"already has the columns \['label'\]"),
        (["text", "p.yes"], LABELS, r"already has the columns \['p\.yes'\]"),
        (["text", "answer"], [], r"already has the columns \['answer'\]"),
    ],
)
def test_columns_that_cannot_be_answered_are_refused(columns: list[str], labels: list[str], complaint: str) -> None:
    with pytest.raises(SourceError, match=rf"^in\.csv {complaint}"):
        check_columns(Path("in.csv"), columns, ["text"], labels)
    check_columns(Path("in.csv"), ["text", "label"], ["text"], [])


def test_texts_fill_the_only_field() -> None:
    assert rows_of_texts(["a", "b"], ["question"]) == [{"question": "a"}, {"question": "b"}]
    with pytest.raises(SourceError, match=r"takes the fields \['question', 'context'\]"):
        rows_of_texts(["a"], ["question", "context"])
    with pytest.raises(SourceError, match="--text number 2 is empty"):
        rows_of_texts(["a", " "], ["text"])


def test_the_likeliest_label_and_all_probabilities_are_given() -> None:
    rows = label_answers(LABELS, PROBABILITIES).to_pylist()
    assert rows[0] == {"label": "yes", "p.no": 0.25, "p.yes": 0.75}
    assert (rows[1]["label"], rows[1]["p.no"]) == ("no", float(np.float32(0.9)))
    found = json.loads(as_json("t", 3, [{"text": "a", **answer_object(LABELS, rows[0])}]))
    assert (found["task"], found["version"]) == ("t", 3)
    assert found["predictions"][0] == {"text": "a", "label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}
    assert answer_object([], {"answer": "42"}) == {"answer": "42"}


def test_a_destination_is_checked_before_the_work(tmp_path: Path) -> None:
    check_destination(tmp_path / "new.csv")
    with pytest.raises(SourceError, match="it is a folder"):
        check_destination(tmp_path)
    with pytest.raises(SourceError, match="its folder does not exist"):
        check_destination(tmp_path / "a" / "b.csv")


def texts(count: int) -> list[str]:
    return [f"{'late again ' * (number % 7)}and my bag is lost at gate {number}" for number in range(count)]


def test_answers_do_not_depend_on_the_rows_that_are_asked_together(tiny_bundle: Path, tiny_text_bundle: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": texts(75)}), tmp_path / "in.parquet", row_group_size=20)
    for bundle in (tiny_bundle, tiny_text_bundle):
        found: list[pa.Table] = []
        with open_rows(tmp_path / "in.parquet") as rows:
            for rows_at_once in (1, 10, 1_000):
                with answers_here(rows, bundle, ["text"], rows_at_once=rows_at_once) as pairs:
                    found.append(pa.Table.from_batches([answers for _, answers in pairs]))
        assert found[0].column(0).to_pylist() == found[1].column(0).to_pylist() == found[2].column(0).to_pylist()
        assert len(set(found[0].column(0).to_pylist())) > (1 if bundle == tiny_text_bundle else 0)
        for name in found[0].column_names[1:]:
            np.testing.assert_allclose(found[0][name], found[2][name], atol=1e-6)
            np.testing.assert_allclose(found[1][name], found[2][name], atol=1e-6)


def test_csv_and_parquet_give_the_same_answers(tiny_bundle: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(30), "text": texts(30)}), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("".join(["id,text\n", *(f"{n},{text}\n" for n, text in enumerate(texts(30)))]), encoding="utf-8")
    for name in ("in.csv", "in.parquet"):
        with open_rows(tmp_path / name) as rows:
            options = Namespace(task=TASK, engine="local", out=tmp_path / f"{name}.csv")
            answer_file(options, rows, 1, tiny_bundle, ["text"], SENTIMENTS)
    columns, rows_there = read_csv(tmp_path / "in.csv.csv")
    assert columns == ["id", "text", "label", *(f"p.{label}" for label in SENTIMENTS)]
    assert [(row["id"], row["text"]) for row in rows_there] == [(str(n), text) for n, text in enumerate(texts(30))]
    assert (tmp_path / "in.csv.csv").read_bytes() == (tmp_path / "in.parquet.csv").read_bytes()


def test_a_bad_row_is_told_before_the_bundle_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\nlate\n \n", encoding="utf-8")
    options = Namespace(task=TASK, engine="local", out=tmp_path / "out.csv")
    with open_rows(tmp_path / "in.csv") as rows, pytest.raises(SourceError, match=r"in\.csv, row 2, column 'text' is empty"):
        answer_file(options, rows, 1, tmp_path / "no bundle", ["text"], SENTIMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_what_the_engine_says_of_a_row_is_told_with_the_rows_of_the_file(tmp_path: Path) -> None:
    def refuse(_rows: object) -> pa.RecordBatch:
        raise TemplateError("Prompt 2 needs 900 tokens.")

    (tmp_path / "in.csv").write_text("text\nlate\nagain\n", encoding="utf-8")
    with (
        open_rows(tmp_path / "in.csv") as rows,
        pytest.raises(TemplateError, match=r"in\.csv, rows 11 to 12, of which 11 counts as 1: Prompt 2"),
    ):
        answer_batch(refuse, rows, next(rows.batches()), ["text"], 11)
