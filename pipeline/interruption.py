"""Being asked to end, and telling why one has: SIGTERM becomes a question that long work can ask between two steps, instead of a sudden death.

A process that another started through a launcher cannot raise its error there: it writes it down in a folder that the environment names.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import PromptmillError, TrainingInterrupted
from pipeline.records import read_json, write_json

ERRORS_VARIABLE = "PROMPTMILL_ERRORS"


def report_error(error: PromptmillError) -> bool:
    """Write an error down for the process that started this one through a launcher; false when there is none."""
    folder = os.environ.get(ERRORS_VARIABLE)
    if not folder:
        return False
    write_json(Path(folder) / f"{os.getpid()}.json", {"message": str(error), "exit_code": error.exit_code})
    return True


def reported_error(folder: Path, otherwise: PromptmillError) -> PromptmillError:
    """The error that the first process wrote down in `folder`, with its exit code; `otherwise` where none did."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        return otherwise
    record = read_json(files[0])
    kind = TrainingInterrupted if record["exit_code"] == TrainingInterrupted.exit_code else type(otherwise)
    return kind(record["message"])


@contextmanager
def stop_requested() -> Generator[Callable[[], bool]]:
    """Within it SIGTERM does not end the process; the function it gives says whether one has come. The old handler comes back after.

    Signals reach the main thread only: elsewhere the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
