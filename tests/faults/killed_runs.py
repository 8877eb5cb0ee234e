"""`promptmill run` killed at random times, as a program that goes on where it was left: `python -m tests.faults.killed_runs FOLDER --kills N`.

Every chain begins with other tuning params, so that DVC has almost all stages to run again. Its runs are killed at a random time
(as likely at any time, four in the span of one that is left alone) until one lives to its end; then everything is compared. Each kill and each chain is a line of FOLDER/events.jsonl.
Servers live in a folder of their own for the length of the program; the checkout uses the default store for its records.
"""

import argparse
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from flows.dvc_state import LOCK_FILE
from flows.flow_runs import FOLDER as NOTES_FOLDER
from flows.flow_runs import TAG_PREFIX
from flows.services import prefect_service, running
from flows.settings import reach_loopback_directly, state_folder
from pipeline.__main__ import run_stage
from pipeline.errors import StageInputError
from pipeline.layout import Layout
from pipeline.manifest import verify_bundle
from pipeline.registry import doctor
from pipeline.registry.registry import list_versions
from pipeline.registry.tracking import lock_entries, read_lock, stage_key
from tests.faults.tiny_checkout import change, commit, environment, inside, let_pass, make_checkout
from tests.stages.conftest import TASK, write_rows

REPOSITORY = Path(__file__).resolve().parents[2]
EVENTS = "events.jsonl"
TUNE = {"maximum_steps": 60, "evaluate_every": 20, "checkpoint_every": 5}
BEFORE_TUNE = ("ingest", "validate", "split")
STEP = re.compile(r"^\[(?:\d+/\d+\] )?(\w+)", re.MULTILINE)
DONE = re.compile(r"^\[\d+/\d+\] (\w+)\n(?:(?!\[).*\n)*?      done ", re.MULTILINE)
GONE_SECONDS = 60.0
LONGEST_RUN_SECONDS = 5400.0
KILLS_A_CHAIN = 12
KILLS_A_SPAN = 4.0  # on average, over the time that a run takes which is left alone
ENDED = {0, 3}  # champion, or not let pass by the gate
FINAL_STATES = {"COMPLETED", "CRASHED"}


class Campaign:
    """Two checkouts of one task, one that is disturbed and one that is not, and what happened so far."""

    def __init__(self, folder: Path, first: int = 0) -> None:
        self.first = first
        self.folder, self.root, self.undisturbed = folder, folder / "checkout", folder / "undisturbed"
        self.servers = folder / "servers"
        self.events = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()] if (folder / EVENTS).is_file() else []

    def kills(self) -> int:
        return sum(event["event"] == "kill" for event in self.events)

    def chains(self) -> int:
        return sum(event["event"] == "chain" for event in self.events)

    def next_chain(self) -> int:
        """The chain that the program was ended in, or else a new one."""
        if not self.events:
            return self.first
        last = self.events[-1]
        return int(last["chain"]) + (last["event"] == "chain")

    def kills_of(self, chain: int) -> int:
        return sum(event["event"] == "kill" and event["chain"] == chain for event in self.events)

    def span(self) -> float:
        """Seconds over which kills are drawn: the longest of the last three runs that ended by themselves, so that it follows the machine's load."""
        return max([event["seconds"] for event in self.events if event["event"] == "chain"][-3:], default=0.0)

    def note(self, **event: Any) -> None:
        self.events.append(event)
        with (self.folder / EVENTS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event) + "\n")

    def prepare(self) -> None:
        """The two checkouts."""
        if (self.folder / "prepared").is_file():
            return
        for root in (self.root, self.undisturbed):
            make_checkout(REPOSITORY, root, **TUNE)
            change(root, let_pass)  # so that promotions are killed as well
        (self.folder / "prepared").touch()

    def begin_chain(self, seed: int) -> str:
        """Give both checkouts a seed of their own, and every third time other rows; returns the sha256 of the tensor that the undisturbed one makes of it."""
        for root in (self.root, self.undisturbed):
            change(root, lambda sections: sections["tune"].update(trials={"seeds": [seed]}))
            write_rows(root / "rows.csv", 900 + seed - seed % 3)
            commit(root, f"seed {seed}")
        with inside(self.undisturbed):
            for name in (*(BEFORE_TUNE if seed % 3 == 0 or seed == self.first else ()), "tune"):
                run_stage(self.undisturbed, name, TASK)
        return tensor(self.undisturbed)


def start(root: Path, log: Path, **more: str) -> "subprocess.Popen[bytes]":
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "flows.cli", "run", TASK]
        return subprocess.Popen(command, cwd=root, env=environment(root, **more), stdout=stream, stderr=stream, start_new_session=True)


def at_work(root: Path) -> list[psutil.Process]:
    """Every process whose folder is the checkout or below."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(root):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, FileNotFoundError):
            continue
    return found


def wait_until_gone(root: Path) -> None:
    """Fail when something of a killed run lives on for longer than a watcher needs."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := at_work(root):
        assert time.monotonic() < deadline, f"outlived the killed run: {left}"
        time.sleep(0.2)


def kill(run: "subprocess.Popen[bytes]", root: Path, everything: bool) -> None:
    """SIGKILL to promptmill, or to all that works in the checkout at once, stage, DVC and watcher included, as when the power fails."""
    if not everything:
        os.killpg(run.pid, signal.SIGKILL)
    while everything and (victims := at_work(root)):  # again for what one of them started meanwhile
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    run.wait()
    wait_until_gone(root)


def finished(root: Path, before: dict[str, Any]) -> set[str]:
    """The stages that dvc.lock records otherwise than `before`: they were finished since."""
    try:
        entries = read_lock(root / LOCK_FILE) if (root / LOCK_FILE).is_file() else {}
    except StageInputError:  # cut in the middle: the next run puts the one before back
        return set()
    return {name.partition("@")[0] for name, entry in entries.items() if before.get(name) != entry}


def tensor(root: Path) -> str:
    return str(verify_bundle(Layout(root, TASK).path("bundle"))["soft_prompt"]["sha256"])


def flow_states(servers: Path) -> Counter[str]:
    """How many flow runs the Prefect server has in each state."""
    database = state_folder(servers) / "prefect" / "prefect.db"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
        return Counter(state for (state,) in connection.execute("SELECT state_type FROM flow_run"))


def check_end(campaign: Campaign, expected: str, log: Path) -> dict[str, Any]:
    """What must hold once a run was left alone; returns how the chain ended."""
    root = campaign.root
    assert tensor(root) == expected, "the tensor is not the undisturbed run's"
    states = flow_states(campaign.servers)
    assert set(states) <= FINAL_STATES, (states, log)
    assert not list((state_folder(root) / NOTES_FOLDER).glob(f"{TAG_PREFIX}*.json")), "a note of a killed run is left"
    key = stage_key(entries=lock_entries(lock=root / LOCK_FILE, task=TASK))
    versions = [version for version in list_versions(root=root, task=TASK) if version["stage_key"] == key]
    assert len(versions) == 1, f"{len(versions)} versions of one pass through the stages"
    problems = [finding.text for finding in doctor.examine(root=root, task=TASK) if finding.state == "problem"]
    assert problems == [], problems
    return {"promoted": "champion" in versions[0]["aliases"], "flow_states": dict(states)}


def one_chain(campaign: Campaign, number: int, wanted: int, url: str) -> None:
    """Kill run after run until one ends by itself, and compare. Without a known span the chain is left alone, which measures it."""
    first = campaign.kills_of(number)
    randomness = random.Random(f"{number} {first}")
    expected = campaign.begin_chain(number)
    root, span = campaign.root, campaign.span()
    before = read_lock(root / LOCK_FILE) if (root / LOCK_FILE).is_file() else {}
    done: set[str] = set()
    for attempt in range(first, KILLS_A_CHAIN + 1):
        log = campaign.folder / f"run-{number}-{attempt}.log"
        began = time.monotonic()
        run = start(root, log, PREFECT_API_URL=url)
        # As likely at any time; as finished stages are reused, the kills of a chain spread over all of them.
        disturbed = span > 0 and attempt < KILLS_A_CHAIN and campaign.kills() < wanted
        moment = randomness.expovariate(KILLS_A_SPAN / span) if disturbed else LONGEST_RUN_SECONDS
        everything = randomness.random() < 0.5
        try:
            code: int | None = run.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            assert moment < LONGEST_RUN_SECONDS, f"a run that was left alone did not end; see {log}"
            kill(run, root, everything)
            code = None
        text = log.read_text(encoding="utf-8", errors="replace")
        repeated = set(DONE.findall(text)) & done
        assert not repeated, f"{log}: finished stages ran again: {repeated}"
        done |= finished(root, before)
        if code is None:
            where = (STEP.findall(text) or ["start"])[-1]
            campaign.note(event="kill", chain=number, seconds=round(moment, 2), where=where, everything=everything, finished=len(done))
            continue
        assert code in ENDED, f"exit code {code}; see {log}: {text[-2000:]}"
        seconds = round(time.monotonic() - began, 1)
        campaign.note(event="chain", chain=number, kills=attempt, code=code, seconds=seconds, **check_end(campaign, expected, log))
        return


def totals(campaign: Campaign) -> dict[str, Any]:
    """What happened so far, for docs/reliability.md."""
    kills = [event for event in campaign.events if event["event"] == "kill"]
    ends = [event for event in campaign.events if event["event"] == "chain"]
    return {
        "kills": len(kills),
        "everything_at_once": sum(event["everything"] for event in kills),
        "where": dict(Counter(event["where"] for event in kills).most_common()),
        "completed": len(ends),
        "completed_after_kills": sum(event["kills"] > 0 for event in ends),
        "promoted": sum(event["promoted"] for event in ends),
        "flow_states": ends[-1]["flow_states"] if ends else {},
    }


def work(folder: Path, *, kills: int, seconds: float, first: int = 0) -> dict[str, Any]:
    """Chains until there were `kills` kills, or `seconds` are over and a chain is at its end; returns `totals`."""
    torch.set_num_threads(1)
    reach_loopback_directly()
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(folder.resolve(), first)
    campaign.prepare()
    began = time.monotonic()
    campaign.servers.mkdir(exist_ok=True)
    service = prefect_service(campaign.servers)
    with running([service]):
        wait_until_gone(campaign.root)
        while campaign.kills() < kills and (campaign.chains() < 2 or time.monotonic() - began < seconds):
            one_chain(campaign, campaign.next_chain(), kills, f"{service.url}/api")
    return totals(campaign)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--first", type=int, default=0, help="the number of the first chain, from which seeds and times are drawn")
    options = parser.parse_args()
    found = work(options.folder, kills=options.kills, seconds=options.seconds, first=options.first)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
