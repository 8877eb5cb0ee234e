"""What a DVC that was killed in the middle of a write leaves behind: its own files, which it overwrites in place.

DVC 3 writes `.dvc/tmp/rwlock` several times in each command and `dvc.lock` after each stage, both from their first byte on. Killed in between it leaves an
empty or a cut file; with the first no DVC command works any more, with the second every stage after the cut is forgotten. So `dvc.lock` is kept before
each command that may write it: in the checkout's own `.dvc/tmp`, for several checkouts may share one state folder. The rwlock also names the processes
that were at work by their numbers; once the system gives the number of a killed one to somebody else, DVC would wait for that.
"""

import fcntl
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import WorkspaceError
from pipeline.records import replacing_file

LOCK_FILE = "dvc.lock"
KEPT_LOCK = "dvc.lock.kept"


def mend(root: Path) -> list[str]:
    """Put right what a killed DVC left in the checkout at `root`, and keep dvc.lock for the next time; returns what was done, in sentences.

    Does nothing while another DVC is at work there. Raises WorkspaceError when dvc.lock is cut and no earlier one was kept.
    """
    folder = root / ".dvc" / "tmp"
    if not folder.is_dir():
        return []
    with _alone(folder / "lock") as alone:
        return [*_mend_rwlock(folder / "rwlock"), *_mend_lock_file(root)] if alone else []


def _mend_rwlock(path: Path) -> list[str]:
    """The file lists who reads (several) and writes (one) each output; DVC itself forgets those whose number nobody has."""
    if not path.is_file():
        return []
    with _alone(path.with_name(f"{path.name}.lock")) as alone:
        if not alone:
            return []
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError:
            path.unlink()
            return [f"Removed {path}, which a killed DVC had not written to its end."]
        reads = {name: [one for one in readers if not _another(one)] for name, readers in found.get("read", {}).items()}
        kept = {
            "read": {name: readers for name, readers in reads.items() if readers},
            "write": {name: writer for name, writer in found.get("write", {}).items() if not _another(writer)},
        }
        if kept == {"read": found.get("read", {}), "write": found.get("write", {})}:
            return []
        _write(path, json.dumps(kept).encode())
        return [f"Removed a killed DVC from {path}: its process number is somebody else's by now."]


def _another(entry: dict[str, Any]) -> bool:
    """Whether the number of an entry {pid, cmd} is that of a living process that is no DVC; `cmd` has the path of DVC's module where the process has `-m dvc`."""
    try:
        return not any("dvc" in part for part in psutil.Process(entry["pid"]).cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # the first DVC sees by itself, the second is not ours to judge
        return False


def _mend_lock_file(root: Path) -> list[str]:
    path, kept = root / LOCK_FILE, root / ".dvc" / "tmp" / KEPT_LOCK
    if not path.is_file():
        return []
    found, before = path.read_bytes(), kept.read_bytes() if kept.is_file() else None
    whole = found.endswith(b"\n")  # the last that DVC writes
    if whole and found != before:
        _write(kept, found)
    if whole:
        return []
    if before is None:
        raise WorkspaceError(
            f"{path} ends in the middle of a line: a DVC was killed while it wrote it. Restore it (`git checkout -- {LOCK_FILE}`), "
            "or remove it: what had been finished is then taken from DVC's cache."
        )
    _write(path, before)
    return [f"Restored {path} as it was before the stage during which DVC was killed."]


def _write(path: Path, content: bytes) -> None:
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def _alone(lock: Path) -> Generator[bool]:
    """Hold DVC's own lock of a repository, an flock on a file (zc.lockfile); False when a living DVC has it."""
    with lock.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
