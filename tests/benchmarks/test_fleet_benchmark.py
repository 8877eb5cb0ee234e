"""The fleet benchmark's own parts: figures from files and rows, and that it stops where a fleet did not end as it must."""

import json
import sqlite3

import pytest

from benchmarks.fleet import FAILURE, artifact_rows, check, figures, stage_seconds, step_seconds, tables
from flows import metrics


def fleet(outcomes):
    rows = [
        {"task": task, "outcome": outcome, "seconds": 60.0 + number, "message": FAILURE if outcome == "Failed" else ""}
        for number, (task, outcome) in enumerate(outcomes.items())
    ]
    return {
        "rows": rows,
        "artifact": [{"task": row["task"], "outcome": row["outcome"]} for row in rows],
        "wall_seconds": 200.0,
        "processor_seconds": {"command": 6.0, "started": 60.0},
        "stage_seconds": {row["task"]: 20.0 + 2 * number for number, row in enumerate(rows)},
        "step_seconds": {"promote": [0.5, 0.25]},
    }


ENDED = {"a": "Promoted", "b": "Failed", "c": "Promoted"}


def test_stage_seconds_are_those_that_a_run_writes(tmp_path, monkeypatch):
    monkeypatch.setenv(metrics.FOLDER_VARIABLE, str(tmp_path))
    for task, stage, seconds in (("a", "ingest", 1.5), ("a", "split", 2.25), ("b", "ingest", 1e-05)):
        metrics.stage_ran(tmp_path, task, stage, seconds)
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("*.prom")))
    assert stage_seconds(text) == {"a": 3.75, "b": 1e-05}


def test_the_overhead_is_the_wall_time_less_the_stages_of_the_tasks_that_were_promoted():
    found = figures(fleet(ENDED), "b")
    assert found["overhead_seconds"]["values"] == [40.0, 38.0]
    assert found["task_seconds"]["values"] == [60.0, 62.0]
    assert found["processor_seconds_per_task"] == {"command": 2.0, "started": 20.0}
    each, whole = tables(found | {"load_before": (1.0,), "load_after": (2.0,)}, 2)
    assert "| overhead: all else | 39 (38 to 40) |" in each
    assert "| tasks, one of which fails | 3 |" in whole


@pytest.mark.parametrize(
    "change",
    [
        {"c": "NotPromoted"},  # another task did not end well
        {"b": "Promoted"},  # the failing one did not fail
        {"d": "Promoted"},  # a task that nobody asked for
    ],
)
def test_a_fleet_that_did_not_end_as_it_must_stops_the_benchmark(change):
    check(fleet(ENDED), ["a", "b", "c"], "b")
    with pytest.raises(SystemExit, match="Expected b alone to fail"):
        check(fleet(ENDED | change), ["a", "b", "c"], "b")


def test_a_task_that_the_artifact_does_not_list_stops_the_benchmark():
    found = fleet(ENDED)
    with pytest.raises(SystemExit, match="the artifact lists 2 of 3 tasks"):
        check({**found, "artifact": found["artifact"][:2]}, ["a", "b", "c"], "b")


def test_what_prefects_database_says(tmp_path):
    rows = [{"task": "a", "outcome": "Promoted"}]
    with sqlite3.connect(tmp_path / "prefect.db") as connection:
        connection.execute("create table artifact (key text, data text)")
        connection.executemany("insert into artifact values (?, ?)", [("gate-a", "[]"), ("fleet", json.dumps(json.dumps(rows)))])
        connection.execute("create table task_run (name text, start_time text, end_time text)")
        times = [
            ("promote", "2026-01-01 10:00:00.000000", "2026-01-01 10:00:02.500000"),
            ("tune-a", "2026-01-01 10:00:00", "2026-01-01 11:00:00"),
        ]
        connection.executemany("insert into task_run values (?, ?, ?)", times)
    assert artifact_rows(tmp_path / "prefect.db") == rows
    found = step_seconds(tmp_path / "prefect.db")
    assert found["promote"] == pytest.approx([2.5], abs=1e-3)
    assert found["record the run"] == []
