"""A checkout with a git history, DVC and a real, tiny task: every stage runs for real, all in one process, in seconds."""

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.settings import missing_defaults
from pipeline.__main__ import run_stage
from pipeline.layout import STAGES, Layout
from pipeline.params import load_task
from pipeline.registry import registry, tracking
from tests.engine.tiny_models import save_model
from tests.stages.conftest import TASK, small_task, write_rows

MODEL = "models/tiny"
# Verbalizers of one token each, which 60 steps at this rate suffice to tell apart: so that versions pass the gate.
VERBALIZERS = {"bad": " bad", "good": " good"}
LEARNING_RATE = 0.3
COMPARE = {"mode": "non_inferior", "margin": 0.4}
STAGE_NAMES = tuple(stage.name for stage in STAGES)


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_checkout(repo_root: Path, root: Path, **tune: Any) -> Path:
    """The files of this repository, one tiny task whose base model lies in the checkout but not in git, everything committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=repo_root, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (
            name.startswith(("pipeline/", "flows/", ".dvc/", "dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml"))
            and (repo_root / name).is_file()
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((repo_root / name).read_bytes())
    save_model("llama", root / MODEL)
    document = yaml.safe_load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    sections = small_task(Path(MODEL))
    for name in document["defaults"]:
        sections.setdefault(name, {})
    sections["tune"].update(tune)
    document["tasks"] = {TASK: sections}
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    write_rows(root / "rows.csv")
    (root / ".gitignore").write_text((root / ".gitignore").read_text() + "\n/models/\n/rows.csv\n", encoding="utf-8")
    git(root, "init", "--quiet")
    commit(root, "first")
    return root


def commit(root: Path, message: str) -> str:
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(root, "rev-parse", "HEAD")


def environment(root: Path, **more: str) -> dict[str, str]:
    """This process's environment for a promptmill in `root`, without settings that would lead it elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return {**kept, **missing_defaults(root, {}), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **more}


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the task's sections of params.yaml."""
    document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    edit(document["tasks"][TASK])
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def let_pass(sections: dict[str, Any]) -> None:
    """Make the task one whose versions the gate lets pass; for `change`."""
    sections["prompt"]["verbalizers"] = VERBALIZERS
    sections["compare"] = COMPARE
    sections["tune"]["learning_rate"] = LEARNING_RATE


@contextmanager
def inside(root: Path) -> Generator[None]:
    """Work in `root`, as a stage does."""
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


def run_stages(root: Path, first: str = STAGE_NAMES[0]) -> None:
    """Run the stages from `first` on in this process, and let DVC record what they wrote."""
    with inside(root):
        for name in STAGE_NAMES[STAGE_NAMES.index(first) :]:
            run_stage(root, name, TASK)
        command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", *(f"{name}@{TASK}" for name in STAGE_NAMES)]
        subprocess.run(command, cwd=root, check=True, capture_output=True)


def record_and_register(root: Path) -> int:
    """Record the run and register its version; returns the number."""
    layout = Layout(root, TASK)
    run = tracking.record_run(root=root, task=TASK, params=load_task(root / "params.yaml", TASK), layout=layout, lock=root / "dvc.lock")
    return registry.register_version(root=root, task=TASK, run_id=run.run_id, layout=layout, stage_key=run.stage_key)
