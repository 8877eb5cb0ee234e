"""A small process that outlives its parent for a moment: it ends a process group when the parent was killed before it could.

Started as a script, `python -I -S watcher.py`, with a pipe as stdin that only the parent can write to. The parent writes the number of the
group and a line break as soon as there is one, and one byte more when it has ended the group itself. A pipe that closes without that
byte means that the parent is gone: SIGKILL and a full memory leave it no chance to clean up. Standard library only: it starts in some 20 ms.
"""

import os
import signal
import sys
import time

GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05


def watch(pipe: int) -> None:
    """Read the group's number, wait for the byte or the end of `pipe`, and in the second case end the group: SIGTERM, then SIGKILL."""
    told = b""
    while not told.endswith(b"\n"):
        byte = os.read(pipe, 1)
        if not byte:
            return
        told += byte
    if told.strip() and not os.read(pipe, 1):
        _end(int(told))


def _end(group: int) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    alive = _send(group, signal.SIGTERM)
    while alive and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        alive = _send(group, 0)
    if alive:
        _send(group, signal.SIGKILL)


def _send(group: int, signal_number: int) -> bool:
    try:
        os.killpg(group, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle, and the pipe tells when the parent is gone
    watch(sys.stdin.fileno())
