"""The task's own expectations: Great Expectations' names in params, checked before a row is read, and never passed by mistake."""

import json

import great_expectations.expectations.core as core
import pandas as pd
import pytest

from pipeline.data.contract import judge, own_checks
from pipeline.data.data_docs import Overview
from pipeline.data.expectations import Suite
from pipeline.errors import ContractError, ParamsError
from pipeline.params import ExpectationParams
from pipeline.records import write_parquet

LABELS = ("negative", "neutral", "positive")
SECRET = "Zanzibar"
COLUMNS = ("row_id", "source_row", "text", "label", "text characters")


def wanted(**given):
    return ExpectationParams.model_validate({"expectation": "expect_column_values_to_match_regex", "column": "text", **given})


def refused(*given, columns=COLUMNS):
    with pytest.raises(ParamsError) as caught:
        own_checks(list(given), columns)
    return str(caught.value)


def rows_of(texts):
    count = len(texts)
    frame = pd.DataFrame(
        {
            "row_id": [f"id{i}" for i in range(1, count + 1)],
            "source_row": range(101, count + 101),
            "text": texts,
            "label": [LABELS[i % 3] for i in range(count)],
            "label_confidence": [1.0] * count,
        }
    )
    return frame.astype({"row_id": "str", "text": "str", "label": "str"})


def validate(workspace, rows, *expectations, **limits):
    write_parquet(workspace.path("raw"), rows)
    return workspace.run("validate", workspace.params(validate_={"expectations": list(expectations), **limits}))


TEXTS = [f"{SECRET} text {i}" for i in range(27)] + ["no such word", "me@example.org wrote", f"{SECRET} end"]
REGEX = {"expectation": "expect_column_values_to_match_regex", "column": "text", "regex": SECRET}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"expectation": "expect_column_values_to_match_regexp", "regex": "a"}, ["did you mean expect_column_values_to_match_regex"]),
        ({"expectation": "expect_nothing"}, ["'expect_nothing' is no expectation"]),
        ({"regx": "a"}, ["has no argument 'regx'", "regex"]),
        ({}, ["demands nothing without one of regex"]),
        ({"mostly": 0.5}, ["demands nothing without one of regex"]),
        ({"regex": "a", "column": "txt"}, ["no column 'txt'", "'text characters'"]),
        ({"regex": "a", "mostly": 3.0}, ["mostly", "less than or equal to 1"]),
        ({"regex": "("}, ["'(' is not a regular expression"]),
        (
            {"regex": "a", "row_condition": "text == 'a'", "condition_parser": "pandas"},
            ["has no argument 'row_condition', 'condition_parser'"],
        ),
        ({"regex": "a", "catch_exceptions": False}, ["has no argument 'catch_exceptions'"]),
        ({"expectation": "expect_column_max_to_be_between"}, ["demands nothing without one of max_value, min_value"]),
        ({"expectation": "expect_table_columns_to_match_set", "column_set": ["text"]}, ["is no expectation that can be asked"]),
        ({"expectation": "expect_query_results_to_match_comparison"}, ["is no expectation that can be asked"]),
    ],
)
def test_a_mistake_is_named_with_its_place(given, parts):
    message = refused(wanted(regex="b"), wanted(**given))
    assert "validate.expectations.1: " in message
    assert "validate.expectations.0" not in message
    for part in parts:
        assert part in message


def test_all_mistakes_are_named_together():
    message = refused(wanted(regx="a"), wanted(regex="a"), wanted(expectation="expect_nothing"))
    assert message.startswith("2 problem(s)")
    assert "expectations.0" in message
    assert "expectations.2" in message


@pytest.mark.parametrize(
    "name", ["os.system", "Expectation", "expect_column.__class__", "great_expectations.expectations.core.expect_column_to_exist"]
)
def test_a_name_can_only_be_one_of_great_expectations(name):
    with pytest.raises(ValueError, match="expectation"):
        wanted(expectation=name)


def test_params_are_refused_before_a_row_is_measured(workspace, monkeypatch):
    monkeypatch.setattr("pipeline.stages.validate.iterate_parquet", lambda *given, **more: pytest.fail("a row was read"))
    with pytest.raises(ParamsError, match=r"validate\.expectations\.0"):
        validate(workspace, rows_of(TEXTS), {**REGEX, "expectation": "expect_column_values_to_match_regexp"})
    assert not workspace.path("accepted").exists()


@pytest.mark.parametrize("on", ["raw", "accepted"])
def test_a_failure_blocks_names_rows_and_quotes_none(workspace, on):
    with pytest.raises(ContractError) as caught:
        validate(workspace, rows_of(TEXTS), {**REGEX, "on": on})
    assert "source rows 128, 129" in str(caught.value)
    assert "no such word" not in str(caught.value)
    report = json.loads(workspace.path("data_report").read_text())
    (failed,) = [e for e in report["expectations"] if not e["success"] and e["severity"] == "critical"]
    assert (failed["suite"], failed["observed"], failed["row_ids"]) == (on, "2 of 30 rows do not conform", ["id28", "id29"])
    assert report["planned"] == report["evaluated"] == 33
    for path in workspace.path("data_docs").rglob("*.html"):
        assert "no such word" not in path.read_text(), path.name


@pytest.mark.parametrize("more", [{"severity": "warning"}, {"severity": "info"}, {"mostly": 0.9}])
def test_what_may_fail_does_not_block(workspace, more):
    report = validate(workspace, rows_of(TEXTS), {**REGEX, **more})
    (found,) = [e for e in report["expectations"] if e["expectation"] == "ExpectColumnValuesToMatchRegex"]
    assert found["success"] == ("mostly" in more)
    assert found["observed"] == "2 of 30 rows do not conform"


def test_it_can_look_at_measures_and_at_several_columns(workspace):
    report = validate(
        workspace,
        rows_of(TEXTS),
        {"expectation": "expect_column_mean_to_be_between", "column": "text tokens", "min_value": 1.0, "max_value": 20.0},
        {"expectation": "expect_compound_columns_to_be_unique", "column_list": ["text", "label"], "on": "raw"},
    )
    found = {e["expectation"]: e["observed"] for e in report["expectations"]}
    mean = sum(len(" " + text) for text in TEXTS) / 30  # tokens are bytes; the space of the template belongs to the field
    assert found["ExpectColumnMeanToBeBetween"] == f"{mean:.4g}"
    assert found["ExpectCompoundColumnsToBeUnique"] == "all 30 rows conform"


def test_what_cannot_be_evaluated_blocks_even_as_info(workspace):
    """Great Expectations has no such check for pandas, and says so by an exception alone."""
    like = {"expectation": "expect_column_values_to_match_like_pattern", "column": "text", "like_pattern": "%a%", "severity": "info"}
    with pytest.raises(ContractError, match="could not be evaluated"):
        validate(workspace, rows_of(TEXTS), like)
    report = json.loads(workspace.path("data_report").read_text())
    assert (report["planned"], report["evaluated"]) == (33, 32)


def test_accepted_rows_are_looked_at_as_they_go_on(workspace):
    masked = {"personal_data": {"action": "mask"}}
    at = {"expectation": "expect_column_values_to_not_match_regex", "column": "text", "regex": "@example"}
    assert validate(workspace, rows_of(TEXTS), {**at, "on": "accepted"}, **masked)["accepted"] == 30
    with pytest.raises(ContractError, match="source rows 129"):
        validate(workspace, rows_of(TEXTS), {**at, "on": "raw"}, **masked)


# One for each kind of result; what they observe are values of rows.
VALUES = [
    {"expectation": "expect_column_most_common_value_to_be_in_set", "column": "text", "value_set": ["x"]},
    {"expectation": "expect_column_distinct_values_to_be_in_set", "column": "text", "value_set": ["x"]},
    {"expectation": "expect_column_distinct_values_to_equal_set", "column": "text", "value_set": ["x"]},
    {"expectation": "expect_column_unique_value_count_to_be_between", "column": "text", "max_value": 3},
    {"expectation": "expect_column_proportion_of_unique_values_to_be_between", "column": "text", "max_value": 0.1},
    {"expectation": "expect_column_quantile_values_to_be_between", "column": "source_row", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[0, 1]]}},
    {"expectation": "expect_column_values_to_be_in_set", "column": "text", "value_set": ["x"]},
    {"expectation": "expect_column_pair_values_to_be_equal", "column_A": "text", "column_B": "label"},
    {"expectation": "expect_multicolumn_sum_to_equal", "column_list": ["source_row", "text characters"], "sum_total": 1},
    {"expectation": "expect_column_value_lengths_to_equal", "column": "text", "value": 3},
    {"expectation": "expect_column_values_to_be_unique", "column": "label"},
    {"expectation": "expect_column_values_to_be_null", "column": "text"},
]  # fmt: skip


def test_no_value_of_a_row_leaves_it(tmp_path, caplog):
    checks = own_checks([ExpectationParams.model_validate(given) for given in VALUES], COLUMNS)["accepted"]
    frame = rows_of(TEXTS).assign(**{"text characters": [len(text) for text in TEXTS]})
    verdicts = judge([Suite("accepted", frame, checks)], docs_folder=tmp_path, overview=Overview("test", []))
    assert [verdict.check.expectation for verdict in verdicts if verdict.success] == []
    assert [verdict.check.expectation for verdict in verdicts if not verdict.evaluated] == []
    assert caplog.records == []
    for text in (*(path.read_text() for path in tmp_path.rglob("*.html")), repr([verdict.record() for verdict in verdicts])):
        assert SECRET not in text
        assert "no such word" not in text


def test_every_expectation_named_here_is_one_of_great_expectations():
    """An oracle that shares nothing with the look-up but the package."""
    names = {"".join(part.capitalize() for part in given["expectation"].split("_")) for given in VALUES}
    assert names <= set(dir(core))
    assert len(names) == len(VALUES)
