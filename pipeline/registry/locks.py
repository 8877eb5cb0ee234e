"""Who may move the alias of a task: one process at a time of this machine, and of all machines where a shared lock is given.

MLflow has no lock. A shared one comes from outside, as `pipeline` knows no Prefect: a function that takes the task's name and gives a
context manager, which yields a name of the place that keeps the lock.
"""

import getpass
import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pipeline.registry.connection import Connection, file_lock

SharedLock = Callable[[str], AbstractContextManager[str]]


@contextmanager
def promotion_lock(connection: Connection, task: str, shared: SharedLock | None = None) -> Generator[frozenset[str]]:
    """Hold the locks under which the alias of `task` is moved; yields their names.

    An intent that was made under one of these names and is still open is a dead process's. Raises RegistryError when a lock is not
    to be had in time.
    """
    with shared(task) if shared else nullcontext("") as place, file_lock(_lock_folder() / f"{_name(connection.uri, task)}.lock"):
        yield frozenset({_machine(connection.uri), place} - {""})


def person() -> str:
    """Who runs this process, for the record: the user's name on this machine, which nothing proves."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may give its user no name
        return f"uid {os.getuid()}"


def _lock_folder() -> Path:
    """One folder for all workspaces of a user on this machine, since they may share a registry."""
    folder = Path(tempfile.gettempdir()) / f"promptmill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _name(uri: str, task: str) -> str:
    return f"promotion-{hashlib.sha256(uri.encode()).hexdigest()[:16]}-{task}"


def _machine(uri: str) -> str:
    """Names the folder of locks without telling the server what this machine or its user is called."""
    return "machine:" + hashlib.sha256(f"{platform.node()}\n{_lock_folder()}\n{uri}".encode()).hexdigest()[:16]
