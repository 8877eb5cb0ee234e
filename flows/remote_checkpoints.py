"""Checkpoints of a stage on the DVC remote, beside DVC's own objects, so that another worker can go on from where a dead one was.

A checkpoint's file name holds the hash of all that decides what the run computes, so a worker that was given something else, or has other hardware,
does not see it. Each has two slots that are written in turn, and a pointer that is rewritten last: whatever kills a worker, the pointer names a slot that
is whole. What is fetched must have the sha256 that the pointer says.
"""

import json
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from pipeline.errors import WorkspaceError
from pipeline.records import sha256_file

FOLDER = "promptmill-checkpoints"
PATTERN = "*.safetensors"
POINTER = ".json"
POLL_SECONDS = 1.0


class RemoteCheckpoints:
    """The checkpoints of one stage of one task on the remote of the workspace `root`; raises WorkspaceError when it cannot be reached."""

    def __init__(self, root: Path, task: str, stage: str, say: Callable[[str], object]) -> None:
        try:
            with Repo(str(root)) as repo:
                remote: Any = repo.cloud.get_remote()
        except Exception as error:
            raise WorkspaceError(
                f"The DVC remote of {root} cannot be opened: {error}. Add one, or set execution.remote_checkpoints: false."
            ) from error
        self._files: Any = remote.fs
        self._folder = self._files.join(remote.path, FOLDER, task, stage)
        self._say = say
        self._seen: dict[str, tuple[int, int]] = {}
        self._slots: dict[str, int] = {}

    def fetch(self, scratch: Path) -> list[str]:
        """Put each checkpoint that `scratch` lacks there; returns their names. One that is not what its pointer says is left out, and said."""
        fetched: list[str] = []
        for pointer in self._pointers():
            name = self._files.name(pointer).removesuffix(POINTER)
            record = json.loads(self._files.cat_file(pointer))
            self._slots[name] = int(record["slot"])
            if (scratch / name).exists():
                continue
            scratch.mkdir(parents=True, exist_ok=True)
            temporary = scratch / f"{name}.fetched"
            self._files.get_file(self._slot(name, self._slots[name]), str(temporary))
            if sha256_file(temporary) == record["sha256"]:
                temporary.replace(scratch / name)
                fetched.append(name)
            else:
                temporary.unlink()
                self._say(f"The checkpoint {name} on the DVC remote is not the one that was copied there; training does not go on from it.")
        return fetched

    @contextmanager
    def copying(self, scratch: Path) -> Generator[None]:
        """Copy every checkpoint that appears or changes in `scratch` to the remote while the block runs, and a last time at its end.

        A remote that does not answer is said and tried again: training needs no remote.
        """
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                self._copy_changed(scratch)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._copy_changed(scratch)

    def forget(self) -> None:
        """Remove the checkpoints that were fetched or copied: the stage is done."""
        for name in self._slots:
            for path in (self._pointer(name), self._slot(name, 0), self._slot(name, 1)):
                if self._files.exists(path):
                    self._files.rm_file(path)
        self._slots.clear()

    def _copy_changed(self, scratch: Path) -> None:
        try:
            for path in sorted(scratch.glob(PATTERN)):
                self._copy(path)
        except Exception as error:  # noqa: BLE001  each kind of remote has errors of its own, and none is worth the training
            self._say(f"A checkpoint could not be copied to the DVC remote and is tried again: {type(error).__name__}: {error}")

    def _copy(self, path: Path) -> None:
        found = path.stat()
        if self._seen.get(path.name) == (found.st_mtime_ns, found.st_ino):
            return
        copy = path.with_name(f"{path.name}.copying")
        copy.unlink(missing_ok=True)
        os.link(path, copy)  # training puts another file in its place meanwhile
        try:
            slot = 1 - self._slots.get(path.name, 1)
            self._files.makedirs(self._folder, exist_ok=True)
            self._files.put_file(str(copy), self._slot(path.name, slot))
            self._files.pipe_file(self._pointer(path.name), json.dumps({"slot": slot, "sha256": sha256_file(copy)}).encode())
            self._slots[path.name] = slot
        finally:
            copy.unlink(missing_ok=True)
        self._seen[path.name] = (found.st_mtime_ns, found.st_ino)

    def _pointers(self) -> list[str]:
        if not self._files.exists(self._folder):
            return []
        return sorted(path for path in self._files.find(self._folder) if path.endswith(POINTER))

    def _pointer(self, name: str) -> str:
        return self._files.join(self._folder, f"{name}{POINTER}")

    def _slot(self, name: str, number: int) -> str:
        return self._files.join(self._folder, f"{name}.{number}")
