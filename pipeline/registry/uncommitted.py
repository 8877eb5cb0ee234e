"""A version made with uncommitted changes becomes champion only where `promotion.allow_uncommitted` says so.

Its diff is kept, so it can be made again here; whoever has only the repository cannot.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import NotPromoted
from pipeline.layout import PARAMS_FILE
from pipeline.params import load
from pipeline.registry.connection import connect, explained
from pipeline.registry.registry import find_version
from pipeline.registry.tracking import CODE_DIFF, DIRTY, GIT_COMMIT


def check_committed(*, root: Path, task: str, version: int, tags: Mapping[str, str]) -> None:
    """Raise NotPromoted for a version whose tags say that files differed from the commit, unless params.yaml below `root` allows it.

    Without a params.yaml, or with one that does not know the task, nothing allows it.
    """
    reason = _reason(root, task, version, tags)
    if reason:
        raise NotPromoted(reason)


def reason_against(*, root: Path, task: str, version: int) -> str | None:
    """Why uncommitted changes keep a registered version from becoming champion, or None when they do not; raises RegistryError."""
    connection = connect(root=root)
    with explained(f"Reading {task} version {version} in {connection.uri}", "Try again."):
        return _reason(root, task, version, find_version(connection, task, version).tags)


def _reason(root: Path, task: str, version: int, tags: Mapping[str, str]) -> str | None:
    if tags.get(DIRTY) != "true" or _allowed(root, task):
        return None
    return (
        f"{task} version {version} was made with changes that are not committed (on top of {tags.get(GIT_COMMIT)}; its run has them as {CODE_DIFF}). "
        f"Commit them and run `promptmill run {task}` again, which repeats nothing, or set promotion.allow_uncommitted: true."
    )


def _allowed(root: Path, task: str) -> bool:
    path = root / PARAMS_FILE
    params = load(path).get(task) if path.is_file() else None
    return params is not None and params.promotion.allow_uncommitted
