"""The workspace in which a worker runs a stage: a clone of the worker's own checkout at the commit of the flow, kept from run to run."""

import os
import platform
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from filelock import FileLock, Timeout

from flows.clones import clone_at, clone_folder, git, link_outside, outside_paths
from flows.dvc_remote import pull
from flows.dvc_state import LOCK_FILE
from flows.settings import state_folder
from flows.stage_order import StageOrder
from flows.workspace import write_lock
from pipeline.errors import WorkspaceError
from pipeline.layout import PARAMS_FILE, find_root
from pipeline.params_file import read_yaml
from pipeline.registry.tracking import read_lock

FOLDER = "workspaces"
CHECKOUT_VARIABLE = "PROMPTMILL_CHECKOUT"
LOCK_SECONDS = 300.0


def own_checkout() -> Path:
    """The checkout that this worker makes its workspaces from; raises WorkspaceError when it was started outside of one."""
    named = os.environ.get(CHECKOUT_VARIABLE)
    try:
        return find_root(Path(named) if named else Path.cwd())
    except WorkspaceError:
        raise WorkspaceError(
            f"The worker on {platform.node()} knows no checkout of the repository (looked in {named or Path.cwd()}). Start it with `promptmill worker POOL` in a "
            f"clone, or set {CHECKOUT_VARIABLE} to one."
        ) from None


@contextmanager
def workspace_for(checkout: Path, order: StageOrder) -> Generator[Path]:
    """A workspace at the order's commit with the stage's inputs in place, this process's own while the block runs.

    It is kept: the next run of the task finds its checkpoint, and with DVC's cache, which is the checkout's, the files it has pulled before.
    Raises WorkspaceError when the commit is nowhere, its params are not those of the order, or the inputs cannot be pulled.
    """
    base = state_folder(checkout) / FOLDER / order.task
    base.mkdir(parents=True, exist_ok=True)
    lock = FileLock(base / "workspace.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise WorkspaceError(
            f"Another stage of {order.task} has been at work in {base} for {LOCK_SECONDS:g} s. Wait for it to end, or cancel it."
        ) from None
    try:
        yield _prepare(checkout, base, order)
    finally:
        lock.release()


def _prepare(checkout: Path, base: Path, order: StageOrder) -> Path:
    paths = outside_paths(order.params["base_model"].get("source") or {}, order.params.get("tune") or {})
    folder = clone_folder(base, paths)
    _fetch(checkout, order.commit)
    clone_at(checkout, folder, order.commit)
    link_outside(checkout, folder, paths)
    _check_params(folder, order)
    _use_configuration(checkout, folder)
    write_lock(folder / LOCK_FILE, order.entries)
    pull(folder, order.inputs)
    return folder


def _fetch(checkout: Path, commit: str) -> None:
    """Fetch what the checkout's remotes have when it does not know the commit."""
    try:
        git(checkout, "cat-file", "-e", f"{commit}^{{commit}}", doing="looking for the commit")
        return
    except WorkspaceError:
        git(checkout, "fetch", "--quiet", "--all", doing=f"fetching, since {checkout} does not have the commit {commit}")
    try:
        git(checkout, "cat-file", "-e", f"{commit}^{{commit}}", doing="looking for the commit")
    except WorkspaceError:
        raise WorkspaceError(
            f"The worker's checkout {checkout} does not have the commit {commit}, and none of its git remotes has it. Push the commit to a remote that the "
            "worker fetches from, then run again."
        ) from None


def _check_params(folder: Path, order: StageOrder) -> None:
    found = order.sections_of(read_yaml(folder / PARAMS_FILE))
    different = sorted(name for name, value in order.params.items() if found.get(name) != value)
    if different:
        raise WorkspaceError(
            f"{PARAMS_FILE} at the commit {order.commit} says something else than the flow was given in the sections {different} of {order.task}. Commit the "
            "change, and run again."
        )


def _use_configuration(checkout: Path, folder: Path) -> None:
    """Let DVC in the clone use the checkout's remote, credentials and cache."""
    own, local = folder / ".dvc" / "config.local", checkout / ".dvc" / "config.local"
    own.unlink(missing_ok=True)
    if local.is_file():
        shutil.copyfile(local, own)
    with Repo(str(checkout)) as repo:
        cache = Path(str(repo.cache.local_cache_dir)).resolve()
    with Repo(str(folder)) as repo, repo.config.edit("local") as edited:
        configuration: Any = edited
        configuration["cache"]["dir"] = str(cache)


def entry_of(folder: Path, address: str) -> Mapping[str, Any]:
    """What dvc.lock of the workspace says of a stage that has run; raises WorkspaceError when it says nothing."""
    entries = read_lock(folder / LOCK_FILE)
    if address not in entries:
        raise WorkspaceError(f"{folder / LOCK_FILE} has no entry {address} although the stage ended well. Run again.")
    return entries[address]
