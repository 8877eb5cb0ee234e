"""Being asked to end: SIGTERM becomes a question that long work can ask between two steps, instead of a sudden death."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


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
