"""A workspace for each task of a fleet: DVC lets one process at a time into a workspace, and tasks that run at once need one each.

It is a clone of the checkout at its commit, with its uncommitted changes, DVC's cache and promptmill's own state (registry, journal, checkpoints, logs). What a task made comes
back into the checkout, so that afterwards `promptmill run` finds nothing to do there; of a trial with another params.yaml nothing does.
"""

import configparser
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from flows.clones import clone_at, clone_folder, git, link_outside, outside_paths
from flows.dvc_command import run_dvc
from flows.dvc_state import LOCK_FILE
from flows.settings import state_folder
from flows.workspace import stage_address, write_lock
from pipeline.errors import RegistryError, WorkspaceError
from pipeline.layout import PARAMS_FILE, STAGES
from pipeline.params import FileSource, TaskParams, load_task
from pipeline.registry.connection import STATE_FOLDER, has_store
from pipeline.registry.registry import CHAMPION, show
from pipeline.registry.tracking import read_lock

FOLDER = "fleet"


@contextmanager
def task_workspace(root: Path, task: str, cache: Path, *, trial: str | None = None) -> Generator[Path]:
    """A workspace of the task's own for the length of the block; `cache` is the folder of the checkout's DVC cache.

    It is kept for the next run. However the block ends, the stages that were finished in it are the checkout's too, unless it was a `trial`: the text of a params.yaml that the
    workspace has instead of the checkout's. Raises WorkspaceError, and ParamsError for a trial that params.yaml does not take.
    """
    base = state_folder(root) / FOLDER / task
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / "workspace.lock"):
        folder = _prepare(root, task, base, cache, trial)
        try:
            yield folder
        finally:
            if trial is None:
                bring_back(root, task, folder)


@contextmanager
def checkout_lock(root: Path) -> Generator[None]:
    """One at a time of those who ask DVC about the checkout itself."""
    folder = state_folder(root) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "checkout.lock"):
        yield


def bring_back(root: Path, task: str, folder: Path) -> None:
    """Put the task's lock entries of a workspace into the checkout's dvc.lock, and its outputs beside them; other tasks' entries stay."""
    made = _entries(folder / LOCK_FILE, task)
    if not made:
        return
    with checkout_lock(root):
        lock = root / LOCK_FILE
        known = read_lock(lock) if lock.is_file() else {}
        if _entries(lock, task) == made:
            return
        write_lock(lock, {**{name: entry for name, entry in known.items() if not _is_of(name, task)}, **made})
        _dvc(root, "checkout", "--quiet", "--force", *made)


def _prepare(root: Path, task: str, base: Path, cache: Path, trial: str | None) -> Path:
    if trial is not None:
        (base / PARAMS_FILE).write_text(trial, encoding="utf-8")
    paths = _paths(load_task((root if trial is None else base) / PARAMS_FILE, task)) + _champion_paths(root, task)
    folder = clone_folder(base, paths)
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode != 0:
        raise WorkspaceError(f"{root} has no commit yet, so no workspace can be made from it. Commit params.yaml and what belongs to it.")
    clone_at(root, folder, commit.stdout.strip())
    git(folder, "clean", "--quiet", "--force", "-d", doing="removing what an earlier run left")
    _apply_uncommitted(root, base, folder)
    link_outside(root, folder, [path for path in paths if (root / path).exists()])
    _share(root, folder, cache)
    entries = _entries(root / LOCK_FILE, task)
    write_lock(folder / LOCK_FILE, entries)
    if entries:  # what the last run made: its reports say which source file and base model it read
        _dvc(folder, "checkout", "--quiet", "--force", "--allow-missing", *entries)
    if trial is not None:
        (folder / PARAMS_FILE).write_text(trial, encoding="utf-8")
    return folder


def _paths(params: TaskParams) -> list[str]:
    """Relative paths of local files that params name and git may not hold: those of sources and pairs, and those of `outside_paths`."""
    external = params.split.external_test
    sources = [params.ingest.source, *([external.source] if external else [])]
    local = [source.path for source in sources if isinstance(source, FileSource) and "://" not in source.path]
    local += [file.path for files in (params.behaviour.pairs, params.behaviour.bias_pairs) for file in files.values() if not file.package]
    relative = [path for path in local if not Path(path).is_absolute()]
    return [*relative, *outside_paths(params.base_model.source.model_dump(), params.tune.model_dump())]


def _champion_paths(root: Path, task: str) -> list[str]:
    """The relative path of the base model that the champion was tuned on, which it is scored with and params.yaml may not name any more."""
    try:
        params = show(root=root, task=task, selector=CHAMPION)["params"] if has_store(root=root) else {}
    except RegistryError:
        return []  # no champion, or no answer: then the stage `reference` says so
    return outside_paths({name: params.get(f"base_model.source.{name}") for name in ("kind", "path")}, {})


def _apply_uncommitted(root: Path, base: Path, folder: Path) -> None:
    changes = ["git", "diff", "HEAD", "--binary", "--", ".", f":(exclude){LOCK_FILE}"]
    diff = subprocess.run(changes, cwd=root, capture_output=True, check=True).stdout
    if diff:
        patch = base / "uncommitted.diff"
        patch.write_bytes(diff)
        git(folder, "apply", "--binary", str(patch), doing="applying the checkout's uncommitted changes")


def _share(root: Path, folder: Path, cache: Path) -> None:
    """Give the workspace the checkout's state folder, and its DVC configuration with the checkout's cache."""
    state = folder / STATE_FOLDER
    if not state.is_symlink():
        state.symlink_to(state_folder(root).resolve())
        with (folder / ".git" / "info" / "exclude").open("a", encoding="utf-8") as stream:
            stream.write(f"/{STATE_FOLDER}\n")
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / ".dvc" / "config.local", encoding="utf-8")
    if not config.has_section("cache"):
        config.add_section("cache")
    config.set("cache", "dir", str(cache))
    with (folder / ".dvc" / "config.local").open("w", encoding="utf-8") as stream:
        config.write(stream)


def _entries(lock: Path, task: str) -> dict[str, object]:
    """The task's entries of a dvc.lock, by their address."""
    known = read_lock(lock) if lock.is_file() else {}
    return {name: entry for name, entry in known.items() if _is_of(name, task)}


def _is_of(address: str, task: str) -> bool:
    return address in {stage_address(stage.name, task) for stage in STAGES}


def _dvc(root: Path, *arguments: str) -> None:
    done = run_dvc(root, *arguments)
    if done.returncode != 0:
        raise WorkspaceError(f"`dvc {' '.join(arguments[:2])}` failed in {root}: {' '.join(done.stderr.split())[-300:]}")
