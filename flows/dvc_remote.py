"""Bringing files to the DVC remote and back, by DVC's own commands."""

from collections.abc import Sequence
from pathlib import Path

from flows.dvc_command import run_dvc
from pipeline.errors import WorkspaceError
from pipeline.records import sha256_file

_NO_REMOTE = ("no remote specified", "No remote", "config file error: no remote")


def push(root: Path, paths: Sequence[str]) -> None:
    """Let the DVC remote of the checkout `root` have these outputs, given from the root; raises WorkspaceError."""
    _transfer(root, "push", paths)


def pull(root: Path, paths: Sequence[str]) -> None:
    """Bring these outputs, as dvc.lock has them, from the DVC remote into the checkout `root`; raises WorkspaceError."""
    _transfer(root, "pull", paths, "--force")


def output_sha256(root: Path, paths: Sequence[str]) -> dict[str, str]:
    """sha256 of each file at or below `paths`, by its path from the root. DVC's md5 says nothing about a cache or a remote that was altered."""
    files = [file for path in paths for file in ([root / path] if (root / path).is_file() else sorted((root / path).rglob("*")))]
    return {file.relative_to(root).as_posix(): sha256_file(file) for file in files if file.is_file()}


def _transfer(root: Path, command: str, paths: Sequence[str], *flags: str) -> None:
    done = run_dvc(root, command, *flags, *paths)
    if done.returncode == 0:
        return
    said = " ".join(done.stderr.split())
    if any(words in said for words in _NO_REMOTE):
        raise WorkspaceError(
            f"{root} has no DVC remote, and files travel to and from workers through one. Add it with `dvc remote add --default NAME URL`, commit .dvc/config, "
            "and give each worker the same one."
        )
    raise WorkspaceError(
        f"`dvc {command}` of {', '.join(paths)} in {root} failed: {said[-400:]} Check the remote with `dvc remote list`, and that its credentials are set here."
    )
