"""The data benchmark's own parts: rows that are hardly duplicates, exponents, and pandas asking what Great Expectations asks."""

import csv
import json

import pandas as pd
import pytest

from benchmarks import data
from benchmarks.data import exponents, goals, kept, make_parser, run, synthesise
from benchmarks.data_stage import PLAIN, stage_params
from benchmarks.measuring import spread
from pipeline.data.deduplication import normalise


def test_synthesised_rows_are_real_words_and_hardly_duplicates(tmp_path):
    synthesise(tmp_path / "rows.csv", 3000)
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3000
    assert {row["sentiment"] for row in rows} == {"negative", "neutral", "positive"}
    assert len({normalise(row["text"]) for row in rows}) > 2950
    assert 70 < sum(len(row["text"]) for row in rows) / 3000 < 120  # the tweets have 96
    assert stage_params(tmp_path).ingest.source.path == "rows.csv"


def test_exponents_are_those_of_a_power_law():
    rows = [
        {"step": step, "rows": size, "cpu_seconds": spread([factor * size**power])}
        for step, factor, power in (("linear", 0.1, 1.0), ("quadratic", 3.0, 2.0))
        for size in (100, 1000, 10_000)
    ]
    found = exponents(rows)
    assert found["linear"] == pytest.approx({"all sizes": 1.0, "two largest": 1.0})
    assert found["quadratic"] == pytest.approx({"all sizes": 2.0, "two largest": 2.0})
    assert exponents(rows[:1]) == {}


def test_the_memory_goal_is_that_of_a_million_rows():
    rows = [{"step": "split", "rows": size, "peak_gibibytes": spread([size / 400_000])} for size in (1000, 1_000_000)]
    tweets = {"validate_process_seconds": spread([12.0])}
    memory, seconds = goals(rows, tweets)
    assert (memory["value"], memory["reached"]) == (2.5, False)
    assert seconds["reached"]
    assert len(goals(rows[:1], tweets)) == 1


def measured(size):
    figures = ("seconds", "cpu_seconds", "rows_per_second", "peak_gibibytes")
    return [{"step": step, "rows": size, **{name: spread([float(size)]) for name in figures}} for step in data.STEPS]


def test_a_call_keeps_what_it_does_not_measure(tmp_path, monkeypatch):
    keys = ("great_expectations_seconds", "import_seconds", "pandas_seconds", "validate_seconds", "validate_cpu_seconds")
    tweets = {name: spread([1.0]) for name in (*keys, "validate_process_seconds")} | {"rows": 7, "checks": 3}
    monkeypatch.setattr(data, "measure_size", lambda size, repetitions: measured(size))
    monkeypatch.setattr(data, "panels", lambda rows: [])  # drawing takes seconds
    monkeypatch.setattr(data, "measure_tweets", lambda repetitions: tweets | {"times": repetitions})

    def call(*arguments):
        run(make_parser().parse_args([*arguments, "--output", str(tmp_path)]))
        return json.loads((tmp_path / "data.json").read_text())

    def sizes(record):
        return [row["rows"] for row in record["rows"] if row["step"] == "split"]

    assert sizes(call("--sizes", "200", "100")) == [100, 200]
    record = call("--sizes", "10", "200", "--keep", "--repetitions", "2")
    assert sizes(record) == [10, 100, 200]
    assert len(record["rows"]) == 3 * len(data.STEPS)
    assert record["tweets"]["times"] == 1
    record = call("--sizes", "--keep", "--repetitions", "2")
    assert (sizes(record), record["tweets"]["times"]) == ([10, 100, 200], 2)
    record["machine"]["cores"] = 1000
    (tmp_path / "data.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="another machine"):
        kept(tmp_path / "data.json", [])


@pytest.mark.parametrize(
    ("expectation", "arguments", "sound"),
    [
        ("ExpectTableRowCountToBeBetween", {"min_value": 3}, True),
        ("ExpectTableRowCountToBeBetween", {"min_value": 4}, False),
        ("ExpectColumnValuesToNotBeNull", {"column": "a"}, True),
        ("ExpectColumnValuesToNotBeNull", {"column": "b"}, False),
        ("ExpectColumnValuesToBeUnique", {"column": "a"}, True),
        ("ExpectColumnValuesToBeUnique", {"column": "c"}, False),
        ("ExpectColumnValuesToBeInSet", {"column": "c", "value_set": ["x"]}, True),
        ("ExpectColumnValuesToBeInSet", {"column": "c", "value_set": ["y"]}, False),
        ("ExpectColumnValuesToBeBetween", {"column": "b", "min_value": 1, "max_value": 2}, True),
        ("ExpectColumnValuesToBeBetween", {"column": "a", "max_value": 2}, False),
        ("ExpectColumnMeanToBeBetween", {"column": "a", "min_value": 2, "max_value": 2}, True),
        ("ExpectColumnMeanToBeBetween", {"column": "a", "min_value": 2.1}, False),
    ],
)
def test_the_plain_checks(expectation, arguments, sound):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [1.0, 2.0, None], "c": ["x", "x", None]})
    assert bool(PLAIN[expectation](frame, arguments)) is sound
