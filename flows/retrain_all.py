"""The flow `retrain-all`: retrain many tasks, some at once, each in a workspace of its own; one task's failure leaves the others alone."""

import contextvars
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.base_model import with_base_model
from flows.dvc_cache import cache_folder
from flows.events import tag_of, where_to_read
from flows.fleet_limit import fleet_slot
from flows.fleet_workspace import checkout_lock, task_workspace
from flows.handled import handled_version
from flows.retrain import UNCHANGED, changed_outside, retrain
from flows.tasks import STAGE_SECONDS
from flows.terminal import lines_of, say
from pipeline.errors import StageInputError
from pipeline.layout import PARAMS_FILE, Layout, find_root
from pipeline.params import load_task, load_tasks
from pipeline.records import read_json

FAILED = "Failed"
COLUMNS = ("task", "outcome", "version", "verdict", "seconds", "link", "message")


@dataclass(frozen=True)
class _Fleet:
    """What the tasks of one fleet have in common; `trial` is the text of a params.yaml to try."""

    root: Path
    cache: Path
    changed_only: bool
    refresh: bool
    trial: str | None
    stage_seconds: float


@flow(name="retrain-all", flow_run_name="retrain-all", persist_result=False)
def retrain_all(
    tasks: list[str] | None = None,
    root: str = ".",
    at_once: int = 1,
    changed_only: bool = False,
    refresh: bool = False,
    base_model: dict[str, str] | None = None,
    stage_seconds: float = STAGE_SECONDS,
) -> list[dict[str, Any]]:
    """Retrain `tasks` (default: all of params.yaml), `at_once` of them at a time; returns one row for each, in the order of `tasks`.

    `refresh` reads the sources again first, of those tasks whose `deployment.refresh` says so. On a server that the user's settings name, a task waits for a slot of its work pool.
    With the source of a `base_model` this is a trial: each task is retuned on that one, its version stays challenger whatever the gate says, and params.yaml, dvc.lock and the
    outputs in the checkout stay as they are.

    A row is {task, outcome, version, verdict, seconds, link, message, comparison}: `outcome` is the name of the state that its flow `retrain` ended with, Failed for whatever else went
    wrong, or with `changed_only` Unchanged for a task that needs nothing. The rows are the artifact `fleet` of the run. Raises ParamsError for an unknown task.
    """
    workspace = find_root(Path(root).resolve())
    names = list(load_tasks(workspace / PARAMS_FILE, tasks or None))
    trial = None if base_model is None else with_base_model(workspace / PARAMS_FILE, base_model, tasks or None)
    fleet = _Fleet(workspace, cache_folder(workspace).parents[1], changed_only, refresh, trial, stage_seconds)
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        # Each in a copy of this flow's context, so that Prefect knows whose subflows they are.
        waiting = [pool.submit(contextvars.copy_context().run, _member, fleet, name) for name in names]
        rows = [one.result() for one in waiting]
    shown = [{column: str(row[column]) for column in COLUMNS} for row in rows]
    create_table_artifact(key="fleet", table=shown, description=counted(rows))
    return rows


def counted(rows: Sequence[dict[str, Any]]) -> str:
    """One sentence on how many tasks ended how."""
    outcomes = [row["outcome"] for row in rows]
    return f"{len(rows)} tasks: " + ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes)) + "."


def _member(fleet: _Fleet, task: str) -> dict[str, Any]:
    """Retrain one task and say how that ended; it raises nothing, as the others go on."""
    started = time.monotonic()
    row: dict[str, Any] = {"task": task, "version": None, "verdict": None, "link": "", "message": "", "comparison": None}
    try:
        with lines_of(task):
            row |= _retrained(fleet, task)
            say(f"{row['outcome']} {row['message']}")
    except Exception as error:  # noqa: BLE001  whatever it is, it is this task's alone
        row |= {"outcome": FAILED, "message": f"{error}" or type(error).__name__}
        say(f"{task}: {FAILED}: {row['message']}")
    return {**row, "seconds": round(time.monotonic() - started, 1)}


def _retrained(fleet: _Fleet, task: str) -> dict[str, Any]:
    from prefect import tags

    root, deployment = fleet.root, load_task(fleet.root / PARAMS_FILE, task).deployment
    refresh = fleet.refresh and deployment.refresh
    if fleet.changed_only and not refresh:
        with checkout_lock(root):
            version = None if changed_outside(root, task) else handled_version(root, task)
        if version is not None:
            return {"outcome": UNCHANGED, "version": version["version"], "verdict": version["gate_decision"]}
    with fleet_slot(deployment.pool.name), task_workspace(root, task, fleet.cache, trial=fleet.trial) as folder, tags(tag_of(task)):
        more = {"refresh": refresh, "unless_unchanged": fleet.changed_only, "trial": fleet.trial is not None}
        state: Any = retrain(task, str(folder), fleet.stage_seconds, **more, return_state=True)
        comparison = _comparison(folder, task) if state.is_completed() else None
    message = " ".join((state.message or "").split())
    if not state.is_completed():
        return {"outcome": state.name, "message": message}
    found = state.result()
    links = where_to_read(root, task, found["version"], found["run_id"])
    outcome = "Promoted" if state.name == "Completed" else state.name
    return {
        "outcome": outcome,
        "version": found["version"],
        "verdict": found["decision"],
        "comparison": comparison,
        "link": links[0].partition(": ")[2] if links else "",
        "message": "" if outcome == "Promoted" else message,
    }


def _comparison(folder: Path, task: str) -> dict[str, Any] | None:
    """The candidate against the champion, as the stage `compare` wrote it; None without one."""
    try:
        return read_json(Layout(folder, task).path("comparison"))
    except StageInputError:
        return None
