"""What a killed promptmill started does not outlive it by more than some seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.flow_workspace import REPOSITORY, living
from tests.flows.test_stage_process import CHILD, DEADLINE, wait_for

PARENT = """\
import pathlib, subprocess, sys
from flows.process_group import process_group
code = sys.argv[1]
with process_group([sys.executable, "-c", code], folder=pathlib.Path("."), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
    pathlib.Path("group").write_text(str(process.pid))
    process.wait()
pathlib.Path("done").write_text("done")
"""
SLEEPS = f"import subprocess, sys, time\n{CHILD}\nopen('ready', 'w').write('x')\ntime.sleep(600)"


def start(folder: Path, code: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", PARENT, code], cwd=folder, env=environment, start_new_session=True)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_parent_takes_the_whole_group_with_it(tmp_path: Path, signal_number: int) -> None:
    parent = start(tmp_path, SLEEPS)
    group = int(wait_for(tmp_path / "group"))
    wait_for(tmp_path / "ready")
    assert len(living(group)) == 2
    os.killpg(parent.pid, signal_number)
    assert parent.wait() == -signal_number
    deadline = time.monotonic() + DEADLINE
    while living(group):
        assert time.monotonic() < deadline, "the group outlived its parent"
        time.sleep(0.1)
    assert not (tmp_path / "done").exists()


def test_a_group_that_ended_leaves_no_watcher_behind(tmp_path: Path) -> None:
    parent = start(tmp_path, "")
    assert parent.wait() == 0
    assert (tmp_path / "done").exists()
    assert [entry for entry in watchers() if str(tmp_path) in entry] == []


def watchers() -> list[str]:
    """The folders of running watchers."""
    found: list[str] = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"watcher.py" in command.read_bytes():
                found.append(str((command.parent / "cwd").readlink()))
        except OSError:
            continue
    return found
