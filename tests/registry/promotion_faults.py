"""Promotions under faults, as a program that prints what happened: `python -m tests.registry.promotion_faults FOLDER SCENARIO ...`.

concurrent: many processes promote versions of one task at once, against `mlflow server`
killed: a promotion is killed at a random moment, then the doctor is called
outage: the MLflow server is killed at a random moment of a promotion and started again

A trigger in MLflow's own database writes down every move of the alias: what the journal says is held against that. Processes are forked
from one that has imported everything, so that a hundred trials take minutes; none opens a connection before it forks.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from pipeline.errors import ChampionChanged, PromptmillError, RegistryError
from pipeline.registry import doctor, journal, promotion
from pipeline.registry.connection import connect
from pipeline.registry.registry import CHAMPION, find_version
from tests.registry.registry_workspace import TASK, Workspace, write_outputs

TRIGGERS = """
CREATE TABLE champion_moves (number INTEGER PRIMARY KEY AUTOINCREMENT, version INTEGER);
CREATE TRIGGER champion_made AFTER INSERT ON registered_model_aliases WHEN NEW.alias = 'champion'
BEGIN INSERT INTO champion_moves (version) VALUES (NEW.version); END;
CREATE TRIGGER champion_moved AFTER UPDATE ON registered_model_aliases WHEN NEW.alias = 'champion' AND NEW.version <> OLD.version
BEGIN INSERT INTO champion_moves (version) VALUES (NEW.version); END;
"""
PATIENCE = 60.0


class Server:
    """MLflow's server on one database: the command `mlflow server`, or its application in a forked process, which starts in a moment."""

    def __init__(self, folder: Path, *, forked: bool) -> None:
        self.folder, self.forked, self.pid = folder, forked, 0
        self.database = folder / "mlflow.db"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        if forked:
            os.environ["_MLFLOW_SERVER_FILE_STORE"] = os.environ["_MLFLOW_SERVER_REGISTRY_STORE"] = f"sqlite:///{self.database}"
            os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (folder / "artifacts").as_uri()
            import mlflow.server.fastapi_app  # noqa: F401  so that every fork has it

    def start(self) -> None:
        if self.forked:
            self.pid = fork(self._serve)
        else:
            command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
            store = ["--backend-store-uri", f"sqlite:///{self.database}", "--default-artifact-root", (self.folder / "artifacts").as_uri()]
            environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            with (self.folder / "server.log").open("ab") as log:
                started = subprocess.Popen([*command, *store], env=environment, stdout=log, stderr=log, start_new_session=True)
            self.pid = started.pid
        deadline = time.monotonic() + 240
        while not self.answers():
            if time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        if self.forked:
            os.kill(self.pid, signal.SIGKILL)
        else:
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.uri}/health", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def _serve(self) -> None:
        import uvicorn
        from mlflow.server.fastapi_app import app

        uvicorn.run(app, host="127.0.0.1", port=self.port, log_level="error")


def fork(function: Callable[[], None], log: Path | None = None) -> int:
    """Run `function` in a child and return its process id; what it prints goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with (log or Path(os.environ["FAULTS_LOG"])).open("ab", buffering=0) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            function()
        code = 0
    except BaseException:  # noqa: BLE001  the child ends here, whatever it was
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns, computed in a child, so that this process keeps no connection."""
    with tempfile.NamedTemporaryFile("r") as file:
        code = wait(fork(lambda: void(Path(file.name).write_text(json.dumps(function())))))
        if code:
            raise SystemExit(f"a child failed: {Path(os.environ['FAULTS_LOG']).read_text()[-3000:]}")
        return json.loads(Path(file.name).read_text())


def void(_value: object) -> None:
    return None


def prepare(folder: Path, versions: int, roots: int, server: Server) -> list[Path]:
    """Workspaces that share the server, and `versions` versions of one stored bundle."""
    workspaces = [folder / f"workspace {number}" for number in range(roots)]
    for root in workspaces:
        write_outputs(root, 1)

    def register() -> None:
        Workspace(workspaces[0]).register()
        connection = connect(root=workspaces[0])
        first = find_version(connection, TASK, 1)
        for _ in range(versions - 1):
            connection.client.create_model_version(TASK, first.source, first.run_id, tags=first.tags, await_creation_for=None)

    # Not through the server: it takes no version whose files lie in a local folder, and one that hands out files costs time here.
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{server.database}"
    in_child(register)
    os.environ["MLFLOW_TRACKING_URI"] = server.uri
    server.start()
    with contextlib.closing(sqlite3.connect(server.database)) as database:
        database.executescript(TRIGGERS)
    return workspaces


def moves(server: Server) -> list[int]:
    with contextlib.closing(sqlite3.connect(server.database, timeout=60)) as database:
        return [version for (version,) in database.execute("SELECT version FROM champion_moves ORDER BY number")]


def evidence(root: Path) -> dict[str, Any]:
    """What the registry says when all is over."""
    connection = connect(root=root)
    state = journal.read_state(connection, TASK)
    done = [entry for entry in promotion.promotions(connection, TASK) if entry["event"] == "done"]
    return {
        "champion": state.aliases.get(CHAMPION),
        "under_way": len(state.under_way),
        "journal": [entry["version"] for entry in done],
        "previous": [entry["previous_champion"] for entry in done],
    }


def promote_rounds(root: Path, worker: int, processes: int, rounds: int, results: Path) -> None:
    """Promote `rounds` versions, each decided against the champion of that moment, and given up once a newer one is champion."""
    outcomes: Counter[str] = Counter()
    for round_ in range(rounds):
        version = round_ * processes + worker + 1
        while True:
            champion = journal.read_state(connect(root=root), TASK).aliases.get(CHAMPION)
            if champion is not None and champion >= version:
                outcomes["superseded"] += 1
                break
            try:
                promotion.promote(root=root, task=TASK, version=version, expected=champion)
            except ChampionChanged:
                outcomes["compared again"] += 1
            except RegistryError as error:
                if "nother machine" not in str(error):
                    raise
                outcomes["stood back"] += 1
            else:
                outcomes["promoted"] += 1
                break
    results.joinpath(f"{worker}.json").write_text(json.dumps(outcomes))


def concurrent(folder: Path, server: Server, processes: int, rounds: int, machines: int) -> dict[str, Any]:
    """`machines` > 1: each has locks of its own, so that only the announced intents keep the processes apart."""
    roots = prepare(folder, processes * rounds, min(4, processes), server)
    results = folder / "results"
    results.mkdir()

    def work(worker: int) -> None:
        if machines > 1:
            tempfile.tempdir = str(folder / f"machine {worker % machines}")
            Path(tempfile.tempdir).mkdir(exist_ok=True)
        promote_rounds(roots[worker % len(roots)], worker, processes, rounds, results)

    started = time.monotonic()
    children = [fork(lambda worker=worker: work(worker)) for worker in range(processes)]
    codes = [wait(child) for child in children]
    outcomes = sum((Counter(json.loads(path.read_text())) for path in results.glob("*.json")), Counter[str]())
    found = in_child(lambda: evidence(roots[0]))
    return {"codes": codes, "outcomes": outcomes, "moves": moves(server), "seconds": time.monotonic() - started, **found}


def promote_one(root: Path, version: int) -> None:
    with contextlib.suppress(PromptmillError):  # a server that is away for too long is an error like any other: nothing is half done
        promotion.promote(root=root, task=TASK, version=version)


def settled(root: Path, version: int, before: int | None) -> dict[str, Any]:
    """Call the doctor after a fault, and hold alias, journal and flags against each other."""
    connection = connect(root=root)
    state = journal.read_state(connection, TASK)
    found = [finding.state for finding in doctor.examine(root=root, task=TASK)]
    after = evidence(root)
    local = journal.unfinished(journal.read_journal(root=root, task=TASK))
    champion = after["champion"]
    return {
        "alias": state.aliases.get(CHAMPION),
        "interrupted": len(state.under_way),
        "problems": found.count("problem"),
        "left_open": after["under_way"] + len(local),
        "promoted": champion == version,
        "in_between": champion not in (before, version) or (after["journal"][-1:] or [None]) != [champion],
    }


def trials(folder: Path, server: Server, count: int, seed: int, fault: Callable[[int, random.Random, float], None]) -> dict[str, Any]:
    (root,) = prepare(folder, count + 2, 1, server)
    source = random.Random(seed)
    began = time.monotonic()
    wait(fork(lambda: promote_one(root, 1)))
    length = time.monotonic() - began
    champion: int | None = in_child(lambda: evidence(root))["champion"]
    totals: Counter[str] = Counter()
    slowest = 0.0
    for trial in range(count):
        version = trial + 2
        child = fork(lambda version=version: promote_one(root, version))
        fault(child, source, length)
        returned = time.monotonic()
        wait(child)
        outcome = in_child(lambda version=version, champion=champion: settled(root, version, champion))
        slowest = max(slowest, time.monotonic() - returned)
        totals.update({name: int(outcome[name]) for name in ("interrupted", "problems", "left_open", "promoted", "in_between")})
        champion = version if outcome["promoted"] else champion
    return {"trials": count, **totals, "slowest_seconds": slowest, "moves": moves(server), **in_child(lambda: evidence(root))}


def killed(folder: Path, server: Server, count: int, seed: int) -> dict[str, Any]:
    def fault(child: int, source: random.Random, length: float) -> None:
        time.sleep(source.uniform(0, length * 1.2))
        os.kill(child, signal.SIGKILL)

    return trials(folder, server, count, seed, fault)


def outage(folder: Path, server: Server, count: int, seed: int) -> dict[str, Any]:
    def fault(_child: int, source: random.Random, length: float) -> None:
        time.sleep(source.uniform(0, length * 1.2))
        server.kill()
        time.sleep(source.uniform(0, 1))
        server.start()

    return trials(folder, server, count, seed, fault)


@contextlib.contextmanager
def stopped_at_the_end(server: Server) -> Generator[None]:
    try:
        yield
    finally:
        if server.pid:
            server.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("scenario", choices=("concurrent", "killed", "outage"))
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--machines", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["FAULTS_LOG"] = str(options.folder / "children.log")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended then as well
    server = Server(options.folder, forked=options.scenario != "concurrent")
    with stopped_at_the_end(server):
        if options.scenario == "concurrent":
            found = concurrent(options.folder, server, options.processes, options.rounds, options.machines)
        else:
            found = (killed if options.scenario == "killed" else outage)(options.folder, server, options.count, options.seed)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
