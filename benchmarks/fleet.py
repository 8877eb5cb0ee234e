"""What orchestration costs for each task of a fleet, and whether one failing task leaves the others alone.

    python -m benchmarks.fleet --tasks 50 --at-once 2

The tasks are the smallest there are: their stages hand out prepared outputs. Everything around them is real: a clone for each task, DVC with all stages, a Prefect server, runs and
versions in MLflow, a fresh process that loads each version (a base model of two layers) and lets it answer, promotion. One task, in the middle, fails in its third stage.

A task's overhead is its wall time less what its stages took, where a stage is the whole of `dvc repro --single-item`: DVC's own start and the stage's process.
Processor seconds are those of the command `promptmill retrain-all` itself and of all that it started; wall times depend on what else the machine does. Results: `benchmarks/results/fleet.json` and `.md`.
"""

import argparse
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.drawing import table, with_spread
from benchmarks.measuring import spread
from benchmarks.recording import RESULTS, write_results
from flows.metrics import FOLDER_VARIABLE
from pipeline.layout import STAGES, find_root
from tests.flows.fleet_checkout import excuse, make_fleet
from tests.flows.flow_workspace import environment
from tests.flows.tiny_bundle import make_tiny_bundle

TITLE = "A fleet: what orchestration costs for each task"
FAILING_STAGE, FAILURE = STAGES[2].name, "row 3 is empty"

STEPS = (
    "record the run",
    "register the version",
    "check the version",
    "publish the verdict",
    "promote",
)  # the tasks of the flow that are no stages

# The command in a process of its own that then writes what it used.
_RUN = """\
import json, pathlib, resource, sys
from flows.cli import main
code = main(sys.argv[2:])
used = {name: sum(resource.getrusage(who)[:2]) for name, who in (("command", resource.RUSAGE_SELF), ("started", resource.RUSAGE_CHILDREN))}
pathlib.Path(sys.argv[1]).write_text(json.dumps(used))
sys.exit(code)
"""
_STAGE_SECONDS = re.compile(r'^promptmill_stage_seconds\{stage="(.+)",task="(.+)"\} (\S+)$', re.MULTILINE)

Row = Mapping[str, Any]


def run_fleet(root: Path, at_once: int) -> dict[str, Any]:
    """Retrain the whole fleet; {rows, wall_seconds, processor_seconds, stage_seconds: task -> seconds, step_seconds: step -> all its seconds, artifact: its rows}."""
    used, figures = root / ".promptmill" / "used.json", root / ".promptmill" / "figures"
    used.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _RUN, str(used), "retrain-all", "--json", "--at-once", str(at_once)]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=root, env={**environment(), FOLDER_VARIABLE: str(figures)}, stdout=subprocess.PIPE, text=True, check=False
    )
    wall = time.perf_counter() - began
    if not done.stdout.strip():
        raise SystemExit(f"`promptmill retrain-all` printed no rows and ended with {done.returncode}.")
    database = root / ".promptmill" / "prefect" / "prefect.db"
    return {
        "rows": json.loads(done.stdout),
        "wall_seconds": wall,
        "processor_seconds": json.loads(used.read_text(encoding="utf-8")),
        "stage_seconds": stage_seconds("".join(path.read_text(encoding="utf-8") for path in sorted(figures.glob("*.prom")))),
        "step_seconds": step_seconds(database),
        "artifact": artifact_rows(database),
    }


def stage_seconds(figures: str) -> dict[str, float]:
    """Seconds that all stages of each task took together, from the figures for Prometheus."""
    found: dict[str, float] = {}
    for _, task, seconds in _STAGE_SECONDS.findall(figures):
        found[task] = found.get(task, 0.0) + float(seconds)
    return found


def artifact_rows(database: Path) -> list[dict[str, str]]:
    """The rows of the artifact `fleet` that Prefect's database holds."""
    with sqlite3.connect(database) as connection:
        (data,) = connection.execute("select data from artifact where key = 'fleet'").fetchone()
    rows: Any = json.loads(data)
    return json.loads(rows) if isinstance(rows, str) else rows


def step_seconds(database: Path) -> dict[str, list[float]]:
    """Step -> its seconds in each task that came so far, from Prefect's database."""
    with sqlite3.connect(database) as connection:
        runs = connection.execute("select name, 86400 * (julianday(end_time) - julianday(start_time)) from task_run").fetchall()
    return {step: [seconds for name, seconds in runs if name == step] for step in STEPS}


def check(found: Mapping[str, Any], tasks: Sequence[str], failing: str) -> None:
    """Stop with what is wrong unless exactly the failing task failed, all others were promoted, and the artifact lists all of them."""
    outcomes = {row["task"]: row["outcome"] for row in found["rows"]}
    expected = {task: "Failed" if task == failing else "Promoted" for task in tasks}
    wrong = {task: outcome for task, outcome in outcomes.items() if outcome != expected.get(task)}
    listed = {row["task"]: row["outcome"] for row in found["artifact"]}
    message = next(row["message"] for row in found["rows"] if row["task"] == failing)
    if wrong or outcomes.keys() != expected.keys() or listed != outcomes or FAILURE not in message:
        raise SystemExit(
            f"Expected {failing} alone to fail, by {FAILURE!r}. Other outcomes: {wrong}; its message: {message!r}; the artifact lists {len(listed)} of {len(tasks)} tasks."
        )


def measure(tasks: Sequence[str], at_once: int, folder: Path) -> dict[str, Any]:
    """A fleet of these tasks, made and retrained below `folder`; the figures of those that were promoted."""
    failing = tasks[len(tasks) // 2]
    bundle = make_tiny_bundle(folder / "model", folder / "bundle")
    root = make_fleet(folder / "fleet", bundle, tasks)
    excuse(root, FAILING_STAGE, failing, FAILURE)
    load = os.getloadavg()
    found = run_fleet(root, at_once)
    check(found, tasks, failing)
    return figures(found, failing) | {"load_before": load, "load_after": os.getloadavg()}


def figures(found: Mapping[str, Any], failing: str) -> dict[str, Any]:
    """Seconds of a task, of its stages and of all else, over the tasks that were promoted, and of the whole."""
    rows: list[Row] = [row for row in found["rows"] if row["task"] != failing]
    stages = [found["stage_seconds"][row["task"]] for row in rows]
    seconds = [float(row["seconds"]) for row in rows]
    every = len(found["rows"])
    return {
        "tasks": every,
        "failed": failing,
        "wall_seconds": found["wall_seconds"],
        "processor_seconds": found["processor_seconds"],
        "processor_seconds_per_task": {name: used / every for name, used in found["processor_seconds"].items()},
        "task_seconds": spread(seconds),
        "stage_seconds": spread(stages),
        "overhead_seconds": spread([whole - part for whole, part in zip(seconds, stages, strict=True)]),
        "step_seconds": {step: spread(values) for step, values in found["step_seconds"].items()},
    }


def tables(found: Mapping[str, Any], at_once: int) -> list[str]:
    """The results as markdown."""
    each = [
        ["wall time of a task", with_spread(found["task_seconds"])],
        [f"of these, its {len(STAGES)} stages under DVC", with_spread(found["stage_seconds"])],
        ["overhead: all else", with_spread(found["overhead_seconds"])],
        *([f"of the overhead: {step}", with_spread(seconds)] for step, seconds in found["step_seconds"].items()),
    ]
    used = found["processor_seconds_per_task"]
    whole = [
        ["tasks, one of which fails", str(found["tasks"])],
        ["tasks at once", str(at_once)],
        ["wall time, minutes", f"{found['wall_seconds'] / 60:.1f}"],
        ["processor seconds per task, the command itself", f"{used['command']:.2f}"],
        ["processor seconds per task, all that it started", f"{used['started']:.1f}"],
        ["load of the machine (1 minute) before and after", f"{found['load_before'][0]:.1f}, {found['load_after'][0]:.1f}"],
    ]
    return [table(["seconds", "median (smallest to largest)"], each), table(["the whole", ""], whole)]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50, help="how many tasks (default: 50)")
    parser.add_argument("--at-once", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure and write the results."""
    tasks = [f"task_{number:02}" for number in range(options.tasks)]
    os.environ["PYTHONPATH"] = str(find_root(Path(__file__).resolve().parent))
    with TemporaryDirectory(prefix="fleet-") as name:
        found = measure(tasks, options.at_once, Path(name))
    write_results(
        "fleet",
        title=TITLE,
        device=torch.device("cpu"),
        settings={"tasks": options.tasks, "at_once": options.at_once, "stages": len(STAGES), "nice": os.nice(0)},
        found=found,
        tables=tables(found, options.at_once),
        panels=[],
        columns=1,
        folder=options.output,
    )


if __name__ == "__main__":
    run(make_parser().parse_args())
