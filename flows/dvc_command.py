"""DVC's commands, each as a process of its own in a checkout."""

import subprocess
import sys
from pathlib import Path


def run_dvc(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`dvc ARGUMENTS` in `root`, with what it printed and its exit code, which is for the caller to judge. It is asked nothing, so it waits for nobody."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
