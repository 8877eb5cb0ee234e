"""What a tuned prompt was made with: the code and the libraries."""

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# dvc.lock is what a run writes, not what it runs.
DIFF = ("diff", "HEAD", "--binary", "--", ".", ":(exclude)dvc.lock")


def code_identity(root: Path) -> dict[str, Any]:
    """`commit`, `dirty` (whether tracked files differ from it) and `diff_sha256` of the checkout; all null outside of git."""
    commit = _git(root, ("rev-parse", "HEAD"))
    if commit is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}
    diff = code_diff(root)
    return {"commit": commit.decode().strip(), "dirty": bool(diff), "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None}


def code_diff(root: Path) -> bytes:
    """What tracked files differ by from the commit, as `git apply` takes it; empty when nothing does, and outside of git."""
    return _git(root, DIFF) or b""


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Python's version and those of the named distributions; a missing one raises importlib.metadata.PackageNotFoundError."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _git(root: Path, arguments: Sequence[str]) -> bytes | None:
    """Output of a git command, or None where git is not installed or the folder has no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
