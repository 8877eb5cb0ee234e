"""Workspaces that are clones of a checkout at one commit: for a version that is made again, and for a stage that a worker was given."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import WorkspaceError


def clone_folder(base: Path, paths: Sequence[str]) -> Path:
    """Where below `base` a clone belongs so that relative `paths` that lead out of it still end below `base`."""
    depth = max((Path(os.path.normpath(path)).parts.count("..") for path in paths), default=0)
    return base.joinpath(*("w" for _ in range(depth)), "checkout")


def clone_at(root: Path, folder: Path, commit: str, *, error: type[WorkspaceError] = WorkspaceError) -> None:
    """Make `folder` a clone of the checkout `root` at `commit`, or move the clone that it is to that commit.

    It shares git's objects with `root`. Raises `error` when git does not know the commit.
    """
    if not (folder / ".git").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(root, "clone", "--quiet", "--shared", "--no-checkout", ".", str(folder), doing="cloning the checkout", error=error)
    doing = f"checking out the recorded commit {commit} (does this clone have it? try `git fetch`)"
    git(folder, "checkout", "--quiet", "--force", "--detach", commit, doing=doing, error=error)


def outside_paths(source: Mapping[str, Any], tune: Mapping[str, Any]) -> list[str]:
    """Relative paths outside of git that stages read: the base model's (`source`), and those of tuned prompts that `tune` starts from."""
    inits = [tune.get("init") or {}, *((tune.get("trials") or {}).get("inits") or [])]
    paths = [source.get("path")] if source.get("kind") in ("directory", "gguf") else []
    paths += [init.get("path") for init in inits if init.get("kind") == "tuned_prompt"]
    return [path for path in paths if path and not Path(path).is_absolute()]


def link_outside(root: Path, folder: Path, paths: Sequence[str]) -> None:
    """Let relative paths lead to the same files in the clone `folder` as in the checkout `root`, through links; what git put there stays."""
    for path in paths:
        link, target = Path(os.path.normpath(folder / path)), (root / path).resolve()
        if link.is_symlink() and link.resolve() != target:
            link.unlink()  # of an earlier run: the checkout has other files there now
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)


def git(folder: Path, *arguments: str, doing: str, error: type[WorkspaceError] = WorkspaceError) -> None:
    """Run git in `folder`; raises `error` with what was being done and git's own words when it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise error(f"git failed at {doing}: {' '.join(done.stderr.split())[-300:]}")
