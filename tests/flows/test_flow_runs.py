"""Flow runs that were killed are closed at the next start; those that live, and those of others, are not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.flow_runs import abandoned, close_abandoned, noted
from tests.flows.flow_workspace import REPOSITORY

DEADLINE = 120.0
KILLED = """\
import pathlib, time
from prefect import flow, task
from flows.flow_runs import noted

@task
def wait():
    pathlib.Path("started").write_text("x")
    time.sleep(600)

@flow(name="waits")
def waits():
    wait()

with noted(pathlib.Path(".")):
    waits()
"""


def states(name: str) -> dict[str, list[str]]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if client.read_flow(run.flow_id).name == name]
        tasks = [task for task in client.read_task_runs() if task.flow_run_id in {run.id for run in runs}]
    return {"flows": [str(run.state_name) for run in runs], "tasks": [str(task.state_name) for task in tasks]}


@pytest.mark.usefixtures("prefect_server")
def test_a_killed_run_is_closed_with_its_tasks_and_a_living_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))

    @flow(name="lives")
    def lives() -> None:
        assert abandoned(tmp_path) == []
        assert close_abandoned(tmp_path) == 0
        assert states("lives")["flows"] == ["Running"]

    with noted(tmp_path):
        lives()
    assert states("lives")["flows"] == ["Completed"]
    assert abandoned(tmp_path) == []

    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_LOGGING_TO_API_ENABLED": "false"}
    killed = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.monotonic() + DEADLINE
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.1)
    assert abandoned(tmp_path) == []
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert states("waits")["flows"] == ["Running"]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert abandoned(tmp_path) == []  # a note of another server's run
    monkeypatch.setenv("PREFECT_API_URL", environment["PREFECT_API_URL"])
    assert len(abandoned(tmp_path)) == 1
    assert close_abandoned(tmp_path) == 1
    assert states("waits") == {"flows": ["Crashed"], "tasks": ["Crashed"]}
    assert close_abandoned(tmp_path) == 0
    assert list((tmp_path / ".promptmill" / "running").iterdir()) == []
