"""What promptmill asks of the checkout it works in, and what DVC says about it."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML

from flows.dvc_command import run_dvc
from flows.dvc_state import mend
from flows.terminal import say
from pipeline.combinations import load_runnable_task
from pipeline.errors import WorkspaceError
from pipeline.layout import PARAMS_FILE, STAGES
from pipeline.params import TaskParams
from pipeline.records import replacing_file

DVC_FILE = "dvc.yaml"
LOCK_HELD = ("Unable to acquire lock", "is busy, it is being blocked by")  # DVC's words, held to the pinned version by a test


def check_checkout(root: Path, task: str) -> TaskParams:
    """The task's params, once params.yaml, git and DVC below `root` are in order.

    Raises ParamsError with all errors of params.yaml together, WorkspaceError for everything else.
    """
    params = load_runnable_task(root / PARAMS_FILE, task)
    _check_git(root)
    if not (root / ".dvc" / "config").is_file():
        raise WorkspaceError(
            f"{root} has no .dvc/config, so DVC is not initialised there. Run `dvc init` (or `git checkout -- .dvc`) and commit it."
        )
    if not (root / DVC_FILE).is_file():
        raise WorkspaceError(f"{root / DVC_FILE} does not exist, so DVC knows no stages. Restore it: `python -m pipeline.dvc_file`.")
    return params


def stage_address(stage: str, task: str) -> str:
    """DVC's name of one stage of one task."""
    return f"{stage}@{task}"


def changed_stages(root: Path, task: str, stages: Sequence[str] = tuple(stage.name for stage in STAGES)) -> list[str]:
    """The stages of `stages` that DVC would run again, in pipeline order; raises WorkspaceError when DVC cannot say."""
    for sentence in mend(root):
        say(sentence)
    addresses = [stage_address(stage, task) for stage in stages]
    done = run_dvc(root, "status", "--json", *addresses)
    if any(words in done.stderr for words in LOCK_HELD):
        raise WorkspaceError(
            f"Another promptmill or dvc is at work in {root}, and DVC lets only one in. Wait for it to end, or use a clone of your own."
        )
    if done.returncode != 0:
        raise WorkspaceError(f"`dvc status` failed in {root}: {_last_line(done.stderr)} Correct dvc.yaml, or see `dvc status --verbose`.")
    try:
        report = json.loads(done.stdout)
    except ValueError:
        raise WorkspaceError(f"`dvc status --json` in {root} printed no JSON but: {_last_line(done.stdout)}") from None
    changed = cast(dict[str, Any], report)
    return [stage for stage, address in zip(stages, addresses, strict=True) if address in changed]


def write_lock(lock: Path, entries: Mapping[str, Any]) -> None:
    """Write a dvc.lock that holds exactly these entries."""
    with replacing_file(lock) as temporary, temporary.open("w", encoding="utf-8") as stream:
        YAML(typ="safe").dump({"schema": "2.0", "stages": dict(entries)}, stream)


def _check_git(root: Path) -> None:
    command = ["git", "-C", str(root), "rev-parse", "--is-inside-work-tree"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise WorkspaceError("The command `git` was not found. Install git: promptmill records the commit of every run.") from None
    if done.returncode != 0:
        raise WorkspaceError(f"{root} is no git checkout ({_last_line(done.stderr)}). Clone the repository, or run `git init` and commit.")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") + "." if lines else "nothing was printed."
