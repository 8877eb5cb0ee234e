"""A flow's checkout and workers' clones of it around one Prefect server and one DVC remote, all as processes of their own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.layout import Layout
from pipeline.records import read_json
from tests.faults.tiny_checkout import MODEL, change, commit, git, let_pass, make_checkout, run_stages
from tests.stages.conftest import TASK

POOLS = {"tune": "gpu", "score": "scoring"}
WAIT_SECONDS = 900.0

# The flow of the CPU side, for the two stages that travel.
DRIVER = """\
import sys
from pathlib import Path
from prefect import flow
from flows.retrain import run_stages
from pipeline.params import load_task

@flow(name="two-stages", persist_result=False)
def two_stages(task: str, root: str) -> None:
    run_stages(Path(root), task, stages=("tune", "score"), pools=load_task(Path(root) / "params.yaml", task).execution.pools(), retry_delay_seconds=1)

two_stages(sys.argv[1], ".")
"""


@dataclass
class Site:
    """The processes of one test; `environment` names the servers."""

    base: Path
    environment: Mapping[str, str]
    remote: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    @property
    def checkout(self) -> Path:
        return self.base / "flow"

    def make_checkout(self, repo_root: Path, *, execution: Mapping[str, Any], **tune: Any) -> None:
        """The flow's checkout with all stages run in it, committed, with a DVC remote."""
        make_checkout(repo_root, self.checkout, **tune)
        change(self.checkout, let_pass)
        change(self.checkout, lambda sections: sections.update(execution={**POOLS, "start_seconds": WAIT_SECONDS, **execution}))
        self.dvc("remote", "add", "--default", "shared", self.remote)
        commit(self.checkout, "the remote, and where stages run")
        run_stages(self.checkout)

    def forget_the_two(self) -> None:
        """Let the checkout know nothing of what tune and score made, nor where it could be restored from."""
        lock = self.checkout / "dvc.lock"
        document = yaml.safe_load(lock.read_text(encoding="utf-8"))
        for name in POOLS:
            document["stages"].pop(f"{name}@{TASK}", None)
        lock.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        layout = Layout(self.checkout, TASK)
        shutil.rmtree(layout.path("bundle"), ignore_errors=True)
        layout.path("predictions").unlink(missing_ok=True)
        shutil.rmtree(self.checkout / ".dvc" / "cache" / "runs", ignore_errors=True)

    def clone(self, name: str) -> Path:
        """A worker's own clone, a new one; the base model is not in git, so it is put there."""
        folder = self.base / name
        shutil.rmtree(folder, ignore_errors=True)
        git(self.base, "clone", "--quiet", str(self.checkout), str(folder))
        shutil.copytree(self.checkout / MODEL, folder / MODEL)
        return folder

    def dvc(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=self.checkout, check=True, capture_output=True)

    def start(self, name: str, *command: str, folder: Path) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own; what it prints is in <base>/<name>.log."""
        log = (self.base / f"{name}.log").open("ab")
        with log:
            process = subprocess.Popen(command, cwd=folder, env=dict(self.environment), stdout=log, stderr=log, start_new_session=True)
        self.started.append(process)
        return process

    def worker(self, pool: str, clone: Path) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "flows.cli", "worker", pool, "--name", clone.name)
        return self.start(f"worker-{clone.name}", *command, folder=clone)

    def flow(self, name: str = "flow-run") -> subprocess.Popen[bytes]:
        (self.base / "driver.py").write_text(DRIVER, encoding="utf-8")
        return self.start(name, sys.executable, str(self.base / "driver.py"), TASK, folder=self.checkout)

    def log(self, name: str) -> str:
        path = self.base / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in sorted(self.base.glob("*.log")))

    def close(self) -> None:
        for process in self.started:
            kill_tree(process.pid)
            process.wait()
        self.started.clear()


def tensor_sha256(root: Path) -> str:
    return read_json(Layout(root, TASK).path("bundle") / "manifest.json")["soft_prompt"]["sha256"]


def stage_processes(folder: Path) -> list[psutil.Process]:
    """The processes `python -m pipeline ...` that work below `folder`."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if "pipeline" in process.cmdline() and Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL a process with all its descendants, whatever sessions they lead, as a machine that goes dark does."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)


def wait_for(what: Callable[[], bool], said: str, site: Site, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"{said} did not happen within {seconds:g} s\n{site.logs()}"
        time.sleep(0.2)


def client_environment(**more: str) -> dict[str, str]:
    """This process's environment without what leads to other servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "PROMPTMILL_", "AWS_"))}
    repository = str(Path(__file__).resolve().parents[2])
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "2"}  # how often a worker asks for work; Prefect's default is 10
    return {**kept, **quick, "PYTHONPATH": repository, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **more}
