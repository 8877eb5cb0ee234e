"""A process with all its descendants: started in a session of its own, so that the whole group can be ended at once.

A watcher (`watcher.py`) ends the group when this process is killed and cannot.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flows import watcher

GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05


@contextmanager
def process_group(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    grace_seconds: float = GRACE_SECONDS,
) -> Generator[subprocess.Popen[bytes]]:
    """Start `command` (in this process's environment, or `environment`) as the leader of a new session; on leaving the block, however it is left, nothing of its group lives.

    The group is asked to end, and killed after `grace_seconds`.

    When this process is killed inside the block, a watcher ends the group within some seconds. A descendant that starts a session of its own escapes.
    """
    with _watcher() as announce:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        announce(process.pid)
        try:
            yield process
        finally:
            end_group(process, grace_seconds)


@contextmanager
def _watcher() -> Generator[Callable[[int], object]]:
    """Start the process that will end a group if this process dies inside the block; yield the function that tells it which."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        try:
            command = [sys.executable, "-I", "-S", watcher.__file__]
            guard = subprocess.Popen(command, stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        finally:
            os.close(reading)
        try:
            yield lambda group: pipe.write(b"%d\n" % group)
        finally:
            with suppress(BrokenPipeError):  # somebody killed the watcher
                pipe.write(b"\nx")  # the group is gone, and its number may soon be somebody else's
            pipe.close()
            guard.wait()


def end_group(process: subprocess.Popen[bytes], grace_seconds: float = GRACE_SECONDS) -> None:
    """Ask the group that `process` leads to end (SIGTERM), and kill what is left of it after `grace_seconds`."""
    try:
        if _send(process.pid, signal.SIGTERM):
            _wait_until_empty(process, grace_seconds)
    finally:  # a second Ctrl-C ends the waiting, not the killing
        if _send(process.pid, signal.SIGKILL):
            _wait_until_empty(process, grace_seconds)
        process.wait()


def _send(group: int, signal_number: int) -> bool:
    try:
        os.killpg(group, signal_number)
    except ProcessLookupError:
        return False
    return True


def _wait_until_empty(process: subprocess.Popen[bytes], seconds: float) -> None:
    """The leader must be reaped (poll) before its group can be empty; orphans are reaped by init."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process.poll()
        if not _send(process.pid, 0):
            return
        time.sleep(POLL_SECONDS)
