"""Promotions at the same time, killed, and without a server: what `promotion_faults.py` saw. docs/reliability.md has the counts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.registry.promotion_faults", str(folder / "faults"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(command, cwd=ROOT, env={**environment, "MLFLOW_DISABLE_TELEMETRY": "true"}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr[-2000:], (folder / "faults" / "children.log").read_text()[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def check_one_history(found: dict[str, Any]) -> None:
    """The database's own record of the alias, the journal and the alias tell one story."""
    assert found["moves"] == found["journal"]
    assert found["previous"] == [None, *found["journal"]][:-1]
    assert found["champion"] == found["journal"][-1]
    assert found["under_way"] == 0


def check_concurrent(found: dict[str, Any], promotions: int) -> None:
    check_one_history(found)
    assert set(found["codes"]) == {0}
    assert found["moves"] == sorted(set(found["moves"])), "the champion moved backwards"
    assert found["outcomes"]["promoted"] == len(found["moves"]), "a promotion was lost"
    assert found["outcomes"]["promoted"] + found["outcomes"].get("superseded", 0) == promotions


def check_faults(found: dict[str, Any], trials: int) -> None:
    assert found["trials"] == trials
    assert (found.get("in_between", 0), found.get("left_open", 0), found.get("problems", 0)) == (0, 0, 0)
    assert found["moves"] == found["journal"]
    assert len(found["moves"]) == 1 + found.get("promoted", 0)
    assert found["champion"] == found["journal"][-1]
    assert found["slowest_seconds"] < 60, "the issue's bound on what takes place after a server's return"


def test_processes_that_promote_at_once_lose_nothing_and_move_forward_only(tmp_path: Path) -> None:
    check_concurrent(run(tmp_path, "concurrent", "--processes", 4, "--rounds", 3), 12)


def test_machines_without_a_common_lock_keep_apart_by_what_they_announce(tmp_path: Path) -> None:
    check_concurrent(run(tmp_path, "concurrent", "--processes", 3, "--rounds", 3, "--machines", 3), 9)


def test_a_killed_promotion_is_promoted_or_not(tmp_path: Path) -> None:
    check_faults(run(tmp_path, "killed", "--count", 5), 5)


def summary(found: dict[str, Any]) -> str:
    """The figures of a scenario, without its histories."""
    return str({name: value for name, value in found.items() if name not in ("codes", "moves", "journal", "previous")})


@pytest.mark.faults
def test_sixteen_processes_promote_fifty_times(tmp_path: Path, count: Callable[[str], None]) -> None:
    found = run(tmp_path, "concurrent", "--processes", 16, "--rounds", 50)
    count(summary(found))
    check_concurrent(found, 800)


@pytest.mark.faults
def test_eight_machines_without_a_common_lock_promote_twenty_times(tmp_path: Path, count: Callable[[str], None]) -> None:
    found = run(tmp_path, "concurrent", "--processes", 8, "--rounds", 20, "--machines", 8)
    count(summary(found))
    check_concurrent(found, 160)


@pytest.mark.faults
def test_a_hundred_killed_promotions_are_promoted_or_not(tmp_path: Path, count: Callable[[str], None]) -> None:
    found = run(tmp_path, "killed", "--count", 100)
    count(summary(found))
    check_faults(found, 100)
    assert found["interrupted"] > 0, "no promotion was killed between its intent and its end"


@pytest.mark.faults
def test_a_hundred_outages_of_the_server_are_got_over(tmp_path: Path, count: Callable[[str], None]) -> None:
    found = run(tmp_path, "outage", "--count", 100)
    count(summary(found))
    check_faults(found, 100)
