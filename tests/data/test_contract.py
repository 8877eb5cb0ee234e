"""validate: what blocks a run, what only sets rows aside, and that nobody's text leaves the data files."""

import json
import logging
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from pipeline.data import contract
from pipeline.data.contract import judge
from pipeline.data.data_docs import Overview
from pipeline.data.expectations import Check, Suite
from pipeline.data.quarantine import PASSES
from pipeline.errors import ContractError, StageInputError
from pipeline.records import write_parquet

LABELS = ("negative", "neutral", "positive")
SECRET = "Zanzibar"
OVERVIEW = Overview("test", [])


def rows_of(texts, labels, confidences=None):
    count = len(texts)
    frame = pd.DataFrame(
        {
            "row_id": [f"id{i}" for i in range(1, count + 1)],
            "source_row": range(101, count + 101),
            "text": texts,
            "label": labels,
            "label_confidence": confidences or [1.0] * count,
        }
    )
    return frame.astype({"row_id": "str", "text": "str", "label": "str", "source_row": "int64", "label_confidence": "float64"})


def sound(count=30):
    return rows_of([f"{SECRET} text {i}" for i in range(count)], [LABELS[i % 3] for i in range(count)])


def validate(workspace, rows, **limits):
    write_parquet(workspace.path("raw"), rows)
    return workspace.run("validate", workspace.params(validate_=limits))


def blocked(workspace, rows, **limits):
    with pytest.raises(ContractError) as caught:
        validate(workspace, rows, **limits)
    assert not workspace.path("accepted").exists()
    report = json.loads(workspace.path("data_report").read_text())
    assert (workspace.path("data_report").parent / report["data_docs"]).is_file()
    assert len(pd.read_parquet(workspace.path("quarantined"))) == report["quarantined"]
    return str(caught.value), report


def failures(report, severity):
    return {(e["suite"], e["expectation"], e["column"]) for e in report["expectations"] if not e["success"] and e["severity"] == severity}


def test_sound_rows_pass(workspace):
    report = validate(workspace, sound())
    assert (report["rows"], report["accepted"], report["quarantined"]) == (30, 30, 0)
    assert report["labels"] == dict.fromkeys(LABELS, 10)
    assert all(e["success"] for e in report["expectations"])
    assert report["planned"] == report["evaluated"] == len(report["expectations"]) == 32
    assert json.loads(workspace.path("data_report").read_text()) == report
    pd.testing.assert_frame_equal(pd.read_parquet(workspace.path("accepted")), sound())


def test_only_the_declared_outputs_are_written(workspace):
    validate(workspace, sound())
    written = {name for name in workspace.written() if not name.startswith("reports/tweet_sentiment/data_docs/")}
    assert written == {
        "data/raw/tweet_sentiment.parquet",
        "data/raw/tweet_sentiment.parquet.sha256",
        "data/validated/tweet_sentiment/accepted.parquet",
        "data/validated/tweet_sentiment/accepted.parquet.sha256",
        "data/validated/tweet_sentiment/quarantined.parquet",
        "data/validated/tweet_sentiment/quarantined.parquet.sha256",
        "reports/tweet_sentiment/data.json",
    }


def test_warnings_set_rows_aside_and_do_not_block(workspace):
    rows = sound()
    rows.loc[0, "text"] = None
    rows.loc[1, "label"] = None
    rows.loc[2, "text"] = SECRET * 100
    rows.loc[3, "label_confidence"] = 0.1
    report = validate(workspace, rows)
    assert failures(report, "critical") == set()
    assert failures(report, "warning") == {
        ("raw", "ExpectColumnValuesToNotBeNull", "text characters"),
        ("raw", "ExpectColumnValuesToNotBeNull", "label"),
        ("raw", "ExpectColumnValuesToBeBetween", "text characters"),
        ("raw", "ExpectColumnValuesToBeBetween", "label_confidence"),
    }
    aside = pd.read_parquet(workspace.path("quarantined"))
    assert aside["row_id"].tolist() == ["id1", "id2", "id3", "id4"]
    assert aside["rule"].tolist() == ["missing_text", "missing_label", "text_length", "low_label_confidence"]
    assert {rule: n for rule, n in report["quarantined_by_rule"].items() if n} == dict.fromkeys(aside["rule"], 1)
    warning = next(
        e for e in report["expectations"] if e["column"] == "text characters" and e["suite"] == "raw" and "Between" in e["expectation"]
    )
    assert (warning["observed"], warning["row_ids"], warning["source_rows"]) == ("1 of 30 rows do not conform", ["id3"], [103])


def test_a_label_outside_the_set_blocks_and_is_named(workspace):
    rows = sound()
    rows.loc[[4, 7], "label"] = "postive"
    message, report = blocked(workspace, rows)
    for part in (
        "'postive' in source row 105",
        "negative, neutral, positive",
        "2 of 30 rows",
        "prompt.verbalizers",
        "ingest.columns.label",
    ):
        assert part in message
    assert failures(report, "critical") == {("raw", "ExpectColumnValuesToBeInSet", "label")}


def test_a_wrong_label_column_is_named_in_short(workspace):
    rows = sound()
    rows["label"] = rows["text"].str.repeat(30)
    message, _ = blocked(workspace, rows)
    assert "and 25 more labels" in message
    assert SECRET * 2 not in message
    assert max(len(value) for value in re.findall(r"'([^']*)' in source row", message)) == 40


@pytest.mark.parametrize(
    ("change", "limits", "failure", "part"),
    [
        (lambda rows: rows, {"minimum_rows": 31}, ("raw", "ExpectTableRowCountToBeBetween", None), "30 rows"),
        (
            lambda rows: rows.assign(text=rows["text"].where(rows.index > 9, None)),
            {"minimum_rows": 25},
            ("accepted", "ExpectTableRowCountToBeBetween", None),
            "20 rows",
        ),
        (
            lambda rows: rows.assign(text=rows["text"].where(rows.index > 9, None)),
            {"minimum_accepted_share": 0.7},
            ("raw", "ExpectColumnMeanToBeBetween", "accepted share"),
            "0.6667",
        ),
        (
            lambda rows: rows[rows["label"] != "neutral"],
            {},
            ("accepted", "ExpectColumnDistinctValuesToContainSet", "label"),
            "no row with neutral",
        ),
        (
            lambda rows: rows.assign(row_id=rows["row_id"].where(rows.index != 1, "id1")),
            {},
            ("raw", "ExpectColumnValuesToBeUnique", "row_id"),
            "source rows 101, 102",
        ),
        (
            lambda rows: rows.assign(label_confidence=100.0),
            {},
            ("raw", "ExpectColumnValuesToBeBetween", "label_confidence"),
            "set it to null",
        ),
        (lambda rows: rows.assign(extra=1), {}, ("schema", "ExpectTableColumnsToMatchSet", None), "columns unexpected extra"),
    ],
)
def test_critical_failures_block(workspace, change, limits, failure, part):
    message, report = blocked(workspace, change(sound()), **limits)
    assert failure in failures(report, "critical")
    assert part in message


def test_the_share_that_is_just_enough_passes(workspace):
    rows = sound()
    rows.loc[:14, "text"] = None
    assert validate(workspace, rows, minimum_accepted_share=0.5)["accepted"] == 15


def test_every_failure_is_listed(workspace):
    rows = sound(10)
    rows.loc[0, "label"] = "other"
    message, report = blocked(workspace, rows, minimum_rows=50)
    critical = failures(report, "critical")
    assert len(critical) == 3
    assert len(message.splitlines()) == 1 + len(critical)


def test_an_empty_frame_fails_every_check(workspace):
    _, report = blocked(workspace, sound().iloc[:0])
    assert report["expectations"]
    assert {e["suite"] for e in report["expectations"] if e["success"]} == {"schema"}  # it looks at the file's columns


def test_null_labels_only_do_not_pass_as_known_labels(workspace):
    rows = sound()
    rows["label"] = pd.array([None] * 30, dtype="str")
    _, report = blocked(workspace, rows)
    assert ("accepted", "ExpectColumnValuesToNotBeNull", "label") in failures(report, "critical")


def test_null_does_not_pass_where_it_would_go_on(workspace, monkeypatch):
    """Fault injection: row rules that let everything pass. The accepted suite does not rely on them."""
    monkeypatch.setattr("pipeline.stages.validate.apply_row_rules", lambda rows, plan, limits: np.full(len(rows), PASSES, dtype="int8"))
    rows = sound()
    rows.loc[0, "label"] = None
    rows.loc[1, "text"] = None
    _, report = blocked(workspace, rows)
    found = {(e["column"], tuple(e["row_ids"])) for e in report["expectations"] if not e["success"] and e["suite"] == "accepted"}
    assert found == {("label", ("id1",)), ("text characters", ("id2",))}


def test_a_check_that_cannot_be_evaluated_fails(tmp_path):
    check = Check("ExpectColumnMeanToBeBetween", "critical", "a mean", "Mend it.", {"column": "text", "min_value": 0})
    (verdict,) = judge([Suite("raw", sound(), [check])], docs_folder=tmp_path, overview=OVERVIEW)
    assert verdict.blocks
    assert verdict.observed == "could not be evaluated"


def test_a_check_that_cannot_be_evaluated_blocks_however_mild(tmp_path):
    check = Check("ExpectColumnMeanToBeBetween", "info", "a mean", "Mend it.", {"column": "text", "min_value": 0})
    (verdict,) = judge([Suite("raw", sound(), [check])], docs_folder=tmp_path, overview=OVERVIEW)
    assert verdict.blocks
    assert not verdict.evaluated


def test_a_column_of_nulls_conforms_to_nothing(tmp_path):
    """Great Expectations itself passes it: no value, no unexpected value."""
    check = Check("ExpectColumnValuesToMatchRegex", "warning", "words", "Mend it.", {"column": "text", "regex": "a"})
    (verdict,) = judge(
        [Suite("raw", sound().assign(text=pd.array([None] * 30, dtype="str")), [check])], docs_folder=tmp_path, overview=OVERVIEW
    )
    assert not verdict.success


def test_an_unplanned_number_of_checks_is_an_error(tmp_path, monkeypatch):
    """Fault injection: a suite that loses its last check."""
    whole = contract.gx.ExpectationSuite
    monkeypatch.setattr(contract.gx, "ExpectationSuite", lambda name, expectations: whole(name=name, expectations=expectations[:-1]))
    check = Check("ExpectColumnValuesToNotBeNull", "critical", "ids", "Mend it.", {"column": "row_id"})
    other = Check("ExpectColumnValuesToBeUnique", "critical", "ids", "Mend it.", {"column": "row_id"})
    with pytest.raises(ContractError, match="1 checks of the raw rows, 2 were planned"):
        judge([Suite("raw", sound(), [check, other])], docs_folder=tmp_path / "docs", overview=OVERVIEW)
    assert not (tmp_path / "docs").exists()


def test_rows_without_any_confidence_need_none(workspace):
    report = validate(workspace, rows_of([f"text {i}" for i in range(9)], list(LABELS) * 3, [None] * 9))
    assert report["accepted"] == 9
    assert "label_confidence" not in {e["column"] for e in report["expectations"]}


def test_a_blocked_run_leaves_no_accepted_rows_of_an_earlier_one(workspace):
    validate(workspace, sound())
    assert workspace.path("accepted").exists()
    blocked(workspace, sound().assign(label="other"))


def test_a_missing_column_of_raw_is_an_input_error(workspace):
    with pytest.raises(StageInputError, match="label_confidence"):
        validate(workspace, sound().drop(columns="label_confidence"))


# --- what people see --------------------------------------------------------------------------------------------------


def bad_rows():
    rows = sound()
    rows.loc[0, "text"] = SECRET * 100
    rows.loc[1, "text"] = None
    rows.loc[2, "label"] = f"{SECRET}_label"
    rows.loc[3, "row_id"] = "id5"
    rows.loc[6, "text"] = rows.loc[9, "text"]
    rows.loc[12, "label_confidence"] = 7.0
    return rows


def pages(workspace):
    return {
        path.relative_to(workspace.path("data_docs")).as_posix(): path.read_text() for path in workspace.path("data_docs").rglob("*.html")
    }


def test_no_text_of_a_row_in_report_or_pages(workspace, caplog):
    with caplog.at_level(logging.WARNING):
        blocked(workspace, bad_rows())
    assert caplog.records == []  # its renderers log what they could not render
    found = pages(workspace)
    suites = ("schema", "raw", "accepted", "figures")
    assert set(found) == {"index.html", *(f"{folder}/{suite}.html" for folder in ("expectations", "validations") for suite in suites)}
    for name, text in (*found.items(), ("report", workspace.path("data_report").read_text())):
        assert SECRET not in text, name
        assert "Traceback" not in text, name
    assert "row_id id1" in found["validations/raw.html"]


def test_pages_load_nothing_from_elsewhere_and_their_links_work(workspace):
    blocked(workspace, bad_rows())
    folder = workspace.path("data_docs")
    for name, html in pages(workspace).items():
        assert "//" not in html, name
        assert "<script" not in html, name
        assert "src=" not in html, name
        links = [link for link in re.findall(r'href="([^"]*)"', html) if not link.startswith("#")]
        assert links, name
        for link in links:
            assert (folder / name).parent.joinpath(link).resolve().is_file(), (name, link)


def test_index_shows_every_check_with_its_verdict(workspace):
    _, report = blocked(workspace, bad_rows())
    index = pages(workspace)["index.html"]
    assert index.count("<tr><td class=") == len(report["expectations"])
    failed = [e for e in report["expectations"] if not e["success"]]
    assert index.count(">fail</td>") == len(failed)
    assert index.count('<tr class="failed">') == len(failed)
    assert "The run is blocked" in index
    assert all(e["fix"] in unescape(index) for e in failed)
    assert "<td>critical</td>" in index
    validation = pages(workspace)["validations/raw.html"]
    assert validation.count(">pass</span>") == sum(e["success"] for e in report["expectations"] if e["suite"] == "raw")


def test_equal_rows_give_equal_bytes(new_workspace):
    workspaces = new_workspace(), new_workspace()
    for workspace in workspaces:
        validate(workspace, sound())
    first, second = ({name: (w.root / name).read_bytes() for name in w.written()} for w in workspaces)
    assert first == second


def test_nothing_is_printed(workspace, capfd):
    validate(workspace, sound())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
