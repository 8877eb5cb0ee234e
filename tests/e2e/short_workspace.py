"""A clone of this repository with one task, shortened: real model, real rows, few of them and few steps."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

TASK = "tweet_sentiment"
SHORT: dict[str, dict[str, Any]] = {
    "ingest": {"sample_rows": 2500},
    "tune": {"batch_size": 16, "maximum_steps": 64, "evaluate_every": 32, "validation_rows": 48, "learning_rate": 0.006},
    "score": {"hard_prompt_selection_rows": 24},
    "evaluate": {"bootstrap_replicates": 500},
    "behaviour": {"rows": 20, "bias_pairs": {}},
}


@dataclass
class Workspace:
    """A checkout that promptmill runs in, as a user would: through the command, in a process of its own."""

    root: Path
    task: str = TASK
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def promptmill(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())", *arguments]
        return self.process(command, cwd)

    def process(self, command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=cwd or self.root, env=self.environment, capture_output=True, text=True, timeout=900)

    def keep_task_alone(self) -> None:
        """Take the other tasks out of params.yaml, so that a plain `dvc repro` is about this one."""
        path = self.root / "params.yaml"
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        document["tasks"] = {self.task: document["tasks"][self.task]}
        path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def commit(self) -> None:
        """Commit what was changed."""
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--all", "--message", "change"]
        subprocess.run(command, cwd=self.root, check=True)

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit params.yaml through `edit`, which gets the task's sections."""
        path = self.root / "params.yaml"
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        edit(document["tasks"][self.task])
        path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")


def shorten(sections: dict[str, Any]) -> None:
    for name, values in SHORT.items():
        sections[name] = {**sections[name], **values}
    # Limits on probes of a handful of rows would be undecided whatever the prompt does; that rows do not depend on each other is decided.
    sections["gate"] = {**sections["gate"], "behaviour": {"batch_difference": 0.001}}
    sections["validate"] = {**sections["validate"], "minimum_rows": 500}


def shortened_clone(repo_root: Path, folder: Path, task: str = TASK) -> Workspace:
    """The files of this checkout, committed or not, in a git repository of their own, with one task and the home folder of nobody."""
    root = folder / "promptmill"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=repo_root, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (repo_root / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo_root / name, root / name)
    (folder / "home").mkdir()
    made = Workspace(root, task)
    made.keep_task_alone()
    made.change(shorten)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "clone"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))  # as in an activated environment
    made.environment |= {"HOME": str(folder / "home"), "PYTHONPATH": str(root), "PATH": path}
    made.environment.setdefault("PROMPTMILL_CACHE", str(folder / "cache"))
    return made
