"""The benchmark of orchestration's overhead: what it makes of its measurements, and that it sees a run that was not what it should be."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from benchmarks import overhead
from benchmarks.overhead import COMMAND, EMBEDDED, FLOW, FULL, GOALS, RUNNING, Checkout, kept, summary, tables
from pipeline.layout import STAGES
from tests.registry.registry_workspace import TASK


def figures(wall: float, stages: float, steps: dict[str, float]) -> dict[str, Any]:
    return {"wall": wall, "stages": stages, "overhead": wall - stages, "flow": wall - 1.0, "steps": steps, "processor": 2.0, "load": 0.5}


def test_goals_are_judged_by_the_median_and_every_step_has_a_row(tmp_path: Path) -> None:
    walls = (40.0, 33.0, 90.0)
    runs = {
        (what, kind): [figures(wall, 20.0, {} if what == COMMAND else {"promote": 0.5}) for wall in walls]
        for what in (FULL, COMMAND, FLOW)
        for kind in (EMBEDDED, RUNNING)
    }
    found = summary(runs)
    assert {run["overhead"]["median"] for run in found} == {20.0}
    (tmp_path / "overhead.json").write_text(json.dumps({"runs": found}), encoding="utf-8")
    assert kept(tmp_path / "overhead.json") == runs
    assert kept(tmp_path / "nowhere.json") == {}

    judged = overhead.judge(found)
    assert [one["reached"] for one in judged] == [limit >= 20.0 for limit in GOALS.values()]
    text = "\n".join(tables(found, judged))
    assert "40.00 (33.00 to 90.00)" in text or "40.0 (33.0 to 90.0)" in text or "40 (33 to 90)" in text
    assert text.count("promote") == 4
    assert "1 minute) before each run: 0.5 to 0.5" in text


def checkout_on(database: Path) -> Checkout:
    checkout = Checkout.__new__(Checkout)
    checkout._database = database
    return checkout


def test_stages_and_steps_are_read_from_prefects_database_and_a_missing_stage_is_told(tmp_path: Path) -> None:
    names = [f"{stage.name}-{TASK}" for stage in STAGES]
    with sqlite3.connect(tmp_path / "prefect.db") as connection:
        connection.execute("CREATE TABLE flow_run (id, start_time, end_time)")
        connection.execute("CREATE TABLE task_run (flow_run_id, name, state_type, start_time, end_time)")
        connection.execute("INSERT INTO flow_run VALUES ('f', '2026-01-01 00:00:00', '2026-01-01 00:01:00')")
        rows = [("f", name, "COMPLETED", "2026-01-01 00:00:00", "2026-01-01 00:00:02") for name in (*names, "promote")]
        connection.executemany("INSERT INTO task_run VALUES (?, ?, ?, ?, ?)", [*rows, ("g", "promote", *rows[0][2:])])
    connection.close()
    stages, steps, flow = checkout_on(tmp_path / "prefect.db")._tasks("f", FULL)
    assert (round(stages, 2), round(flow, 2)) == (2.0 * len(STAGES), 60.0)
    assert {name: round(seconds, 2) for name, seconds in steps.items()} == {"promote": 2.0}
    with sqlite3.connect(tmp_path / "prefect.db") as connection:
        connection.execute("DELETE FROM task_run WHERE name = ?", (names[3],))
    connection.close()
    with pytest.raises(SystemExit, match=rf"no end of \['{names[3]}'\]"):
        checkout_on(tmp_path / "prefect.db")._tasks("f", FULL)
