"""Progress of a long stage on stderr: a live bar for people at a terminal, a line every few seconds elsewhere.

PROMPTMILL_PROGRESS=bar or =lines decides when the stage's stderr is a pipe to a program that shows it to a person.
"""

import os
import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


def announce(message: str) -> None:
    """Write a line about a step that has no bar, such as loading a model."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


class Progress:
    """Counts finished units out of a total and shows rate and remaining time; use as a context manager.

    The clock starts here, so make one when the counted work begins: what was loaded before would spoil the estimate.
    """

    def __init__(self, description: str, total: int, unit: str) -> None:
        self._live = os.environ.get("PROMPTMILL_PROGRESS", "bar" if sys.stderr.isatty() else "lines") == "bar"
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=unit,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.2 if self._live else SECONDS_BETWEEN_LINES,
            disable=not self._live,
        )
        self._description, self._total, self._unit = description, total, unit
        self._done = 0
        self._note = ""
        self._started = self._last = time.monotonic()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; `note` (such as the loss) is shown behind the bar until the next one."""
        self._done += units
        self._note = note or self._note
        if self._live:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._last = time.monotonic()
            line = tqdm.format_meter(self._done, self._total, self._last - self._started, unit=self._unit, postfix=self._note, ncols=0)
            sys.stderr.write(f"{self._description}: {line}\n")
            sys.stderr.flush()

    def say(self, message: str) -> None:
        """Write a line without tearing the bar."""
        if self._live:
            self._bar.write(message, file=sys.stderr)
        else:
            sys.stderr.write(f"{message}\n")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
