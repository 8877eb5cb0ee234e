"""`promptmill run` killed at random times over stages and flow steps: the next one completes, to the same bits, and repeats nothing."""

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.killed_runs import LONGEST_RUN_SECONDS, at_work, start, wait_until_gone, work
from tests.faults.tiny_checkout import make_checkout

KILLS = 200
# `make test-faults` bounds the time; PROMPTMILL_FAULT_FOLDER names a folder whose campaign goes on where it was left.
SECONDS = float(os.environ.get("PROMPTMILL_FAULT_SECONDS", "inf"))
FOLDER = os.environ.get("PROMPTMILL_FAULT_FOLDER")


@pytest.mark.faults
def test_killed_runs_go_on_and_end_with_the_bits_of_an_undisturbed_one(tmp_path: Path, count: Callable[[str], None]) -> None:
    found = work(Path(FOLDER) if FOLDER else tmp_path / "campaign", kills=KILLS, seconds=SECONDS)
    count(f"{found['kills']} of {KILLS} kills: {found}")
    assert found["completed_after_kills"]
    assert found["kills"] >= KILLS or math.isfinite(SECONDS)


@pytest.mark.faults
def test_a_killed_run_leaves_neither_its_own_server_nor_its_stage(repo_root: Path, tmp_path: Path) -> None:
    root = make_checkout(repo_root, tmp_path / "checkout")
    log = tmp_path / "log"
    run = start(root, log)
    deadline = time.monotonic() + LONGEST_RUN_SECONDS
    while "] ingest" not in (said := log.read_text(errors="replace")):
        assert run.poll() is None, said[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    names = " ".join(part for process in at_work(root) for part in process.cmdline())
    assert "prefect server start" in names
    assert "dvc repro" in names
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    wait_until_gone(root)
