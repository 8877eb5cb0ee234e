"""What orchestration adds to a run: wall time less what its stages took, with the embedded Prefect server and with one that is running.

    python -m benchmarks.overhead --repetitions 3
    python -m benchmarks.overhead --repetitions 1 --keep    # one turn more, beside those of the results file

The task is the smallest there is: its stages hand out prepared outputs. Everything around them is real: DVC with all stages, a Prefect server on SQLite, runs and versions in MLflow, a fresh
process that loads the version (a base model of two layers) and lets it answer over HTTP, promotion. Each repetition changes what the stages hand out, so that all of them run and a version is
registered and promoted; then nothing has changed, and the command and the flow are run once more. One run in each checkout that is not counted makes the databases.

A stage's time is that of its Prefect task, so of all of `dvc repro --single-item`: DVC's own start, and the process of the stage where it runs. Results: `benchmarks/results/overhead.json`, `.md`.
"""

import argparse
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.drawing import table, with_spread
from benchmarks.measuring import goal, spread, take_turns
from benchmarks.recording import RESULTS, write_results
from flows.services import prefect_service, running
from flows.settings import prefect_defaults
from pipeline.layout import STAGES, find_root
from pipeline.records import read_json
from tests.flows.flow_workspace import environment, make_prepared, prepare
from tests.flows.tiny_bundle import make_tiny_bundle
from tests.registry.registry_workspace import TASK

TITLE = "What orchestration adds to a run"
EMBEDDED, RUNNING = "embedded server", "running server"
FULL, COMMAND, FLOW = "full run", "`promptmill run`, nothing changed", "flow, all stages cached"
GOALS = {
    (FULL, EMBEDDED): 20.0,
    (FULL, RUNNING): 5.0,
    **{(what, kind): limit for what in (COMMAND, FLOW) for kind, limit in ((EMBEDDED, 15.0), (RUNNING, 3.0))},
}

# The flow with every stage asked, which `promptmill run` leaves out when nothing changed.
_FLOW = """\
import sys
from pathlib import Path
from flows.commands import prefect_api
from flows.settings import apply_prefect_defaults
apply_prefect_defaults(Path.cwd())
with prefect_api(Path.cwd(), verbose=False):
    from flows.retrain import retrain
    retrain(sys.argv[1], str(Path.cwd()))
"""
_SECONDS = "86400 * (julianday(end_time) - julianday(start_time))"

Arm = tuple[str, str]
Figures = dict[str, Any]


class Checkout:
    """One checkout with the environment its commands run in, and the Prefect database that tells how long they took."""

    def __init__(self, root: Path, bundle: Path, database: Path, variables: Mapping[str, str]) -> None:
        self.root, self._bundle, self._database = root, bundle, database
        self._environment = {**environment(), **variables}
        self._versions = 0
        self.run_all()

    def run_all(self) -> Figures:
        """Change what the stages hand out, and run them all."""
        prepare(self.root, self._bundle, "promote", champion=self._versions or None)
        found = self._timed([sys.executable, "-m", "flows.cli", "run", TASK], FULL)
        self._versions += 1
        return found

    def command(self) -> Figures:
        """The command once more, with nothing to do."""
        return self._timed([sys.executable, "-m", "flows.cli", "run", TASK], COMMAND)

    def flow(self) -> Figures:
        """The flow once more, with nothing to do."""
        return self._timed([sys.executable, "-c", _FLOW, TASK], FLOW)

    def _timed(self, command: Sequence[str], kind: str) -> Figures:
        before = self._flow_runs()
        load, used, began = os.getloadavg()[0], _processor_seconds(), time.perf_counter()
        done = subprocess.run(command, cwd=self.root, env=self._environment, capture_output=True, text=True, check=False)
        wall, used = time.perf_counter() - began, _processor_seconds() - used
        if done.returncode != 0:
            raise SystemExit(f"{kind} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        new = [run for run in self._flow_runs() if run not in before]
        if len(new) != (kind != COMMAND):
            raise SystemExit(f"{kind} made {len(new)} flow runs: {done.stderr.strip()[-500:]}")
        stages, steps, flow = self._tasks(new[0], kind) if new else (0.0, {}, 0.0)
        print(f"{kind}: {wall:.1f} s, stages {stages:.1f} s, processor {used:.1f} s", flush=True)
        return {"wall": wall, "stages": stages, "overhead": wall - stages, "flow": flow, "steps": steps, "processor": used, "load": load}

    def _flow_runs(self) -> list[str]:
        return [row[0] for row in self._query("SELECT id FROM flow_run")] if self._database.exists() else []

    def _tasks(self, flow_run: str, kind: str) -> tuple[float, dict[str, float], float]:
        """Seconds of all stages, of each other step, and of the whole flow run; raises SystemExit unless every stage was what it should be."""
        ((flow,),) = self._query(f"SELECT {_SECONDS} FROM flow_run WHERE id = ?", flow_run)
        rows = self._query(f"SELECT name, {_SECONDS} FROM task_run WHERE flow_run_id = ? AND state_type = 'COMPLETED'", flow_run)
        seconds = dict(rows)
        names = [f"{stage.name}-{TASK}" for stage in STAGES]
        if missing := [name for name in names if seconds.get(name) is None]:
            raise SystemExit(f"{kind}: Prefect's database knows no end of {missing}.")
        return sum(seconds.pop(name) for name in names), seconds, flow

    def _query(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()


@contextmanager
def checkouts(folder: Path) -> Generator[dict[str, Checkout]]:
    """A checkout for each kind of server, with its first run behind it; the running server ends with the block."""
    bundle = make_tiny_bundle(folder / "model", folder / "bundle")
    roots = {kind: make_prepared(folder / kind.split()[0], bundle) for kind in (EMBEDDED, RUNNING)}
    home = folder / "home"
    os.environ.update({**prefect_defaults(folder), "PREFECT_HOME": str(home)})
    (folder / ".promptmill").mkdir()
    with running([prefect_service(folder)]) as (server,):
        api = {"PREFECT_API_URL": f"{server.service.url}/api"}
        yield {
            EMBEDDED: Checkout(roots[EMBEDDED], bundle, roots[EMBEDDED] / ".promptmill" / "prefect" / "prefect.db", {}),
            RUNNING: Checkout(roots[RUNNING], bundle, home / "prefect.db", api),
        }


def measure(repetitions: int, folder: Path) -> dict[Arm, list[Figures]]:
    """Kind of run and kind of server -> the figures of each repetition; the servers take turns."""
    with checkouts(folder) as made:

        def turn(kind: str) -> Callable[[], dict[str, Figures]]:
            checkout = made[kind]
            return lambda: {FULL: checkout.run_all(), COMMAND: checkout.command(), FLOW: checkout.flow()}

        turns = take_turns({kind: turn(kind) for kind in made}, repetitions)
    return {(what, kind): [found[what] for found in turns[kind]] for what in (FULL, COMMAND, FLOW) for kind in turns}


def kept(path: Path) -> dict[Arm, list[Figures]]:
    """The repetitions that the results file has."""
    return {(run["what"], run["server"]): run["repetitions"] for run in read_json(path)["runs"]} if path.exists() else {}


def summary(runs: Mapping[Arm, Sequence[Figures]]) -> list[dict[str, Any]]:
    """Spreads of each kind of run, beside its repetitions."""
    names = ("wall", "stages", "overhead", "flow", "processor")
    return [
        {"what": what, "server": kind, **{name: spread([one[name] for one in found]) for name in names}, "repetitions": list(found)}
        for (what, kind), found in runs.items()
    ]


def judge(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each goal against the median of what was found."""
    medians = {(run["what"], run["server"]): run["overhead"]["median"] for run in runs}
    return [goal(f"{what}, {kind}: at most {limit:g}", medians[what, kind], limit, at_least=False) for (what, kind), limit in GOALS.items()]


def tables(runs: Sequence[Mapping[str, Any]], goals: Sequence[Mapping[str, Any]]) -> list[str]:
    """The results as markdown."""
    whole = [
        [f"{run['what']}, {run['server']}", *(with_spread(run[name]) for name in ("wall", "stages", "overhead", "processor"))]
        for run in runs
    ]
    steps = [
        [f"{run['what']}, {run['server']}", step, with_spread(spread([one["steps"][step] for one in run["repetitions"]]))]
        for run in runs
        for step in run["repetitions"][0]["steps"]
    ]
    around = [[f"{run['what']}, {run['server']}", with_spread(_outside(run))] for run in runs if run["what"] != COMMAND]
    loads = [one["load"] for run in runs for one in run["repetitions"]]
    return [
        table(
            [
                f"seconds, median of {len(runs[0]['repetitions'])} (smallest to largest)",
                "wall time",
                f"{len(STAGES)} stages under DVC",
                "overhead",
                "processor seconds of all of it",
            ],
            whole,
        ),
        table(
            ["goal: overhead in seconds", "found", "reached"],
            [[one["goal"], f"{one['value']:.1f}", "yes" if one["reached"] else "no"] for one in goals],
        ),
        table(["of the overhead", "step", "seconds"], steps),
        table(["of the overhead", "before and behind the flow run: start of the command, of the server, their end"], around),
        f"Load of the machine (1 minute) before each run: {min(loads):.1f} to {max(loads):.1f}.",
    ]


def _processor_seconds() -> float:
    """Of all processes that this one started and that have ended, with those that they started in turn."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _outside(run: Mapping[str, Any]) -> dict[str, Any]:
    return spread([one["wall"] - one["flow"] for one in run["repetitions"]])


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="rounds in which either server takes its turn (default: 3)")
    parser.add_argument("--keep", action="store_true", help="add to the repetitions of the results file")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure and write the results."""
    os.environ["PYTHONPATH"] = str(find_root(Path(__file__).resolve().parent))
    before = kept(options.output / "overhead.json") if options.keep else {}
    with TemporaryDirectory(prefix="overhead-") as name:
        found = measure(options.repetitions, Path(name))
    runs = summary({arm: [*before.get(arm, []), *repetitions] for arm, repetitions in found.items()})
    goals = judge(runs)
    write_results(
        "overhead",
        title=TITLE,
        device=torch.device("cpu"),
        settings={"repetitions": len(runs[0]["repetitions"]), "stages": len(STAGES), "nice": os.nice(0)},
        found={"runs": runs, "goals": goals},
        tables=tables(runs, goals),
        panels=[],
        columns=1,
        folder=options.output,
    )


if __name__ == "__main__":
    run(make_parser().parse_args())
