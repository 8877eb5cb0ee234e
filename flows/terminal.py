"""What promptmill itself writes to a terminal: short lines on stderr for progress, results on stdout."""

import io
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import BinaryIO

from flows.log_format import as_json, json_line, log_context, stage_screen

_WHOSE: ContextVar[str | None] = ContextVar("whose lines these are", default=None)


def say(line: str = "") -> None:
    """One line of progress, on stderr; as JSON where that was asked for, else with the name of its task in front where several tasks write at once."""
    whose = _WHOSE.get()
    if not as_json():
        sys.stderr.write(f"{line}\n" if whose is None else f"{whose}: {line.strip()}\n")
    elif line.strip():
        sys.stderr.write(f"{json_line(line.strip())}\n")
    sys.stderr.flush()


@contextmanager
def lines_of(task: str) -> Generator[None]:
    """Mark what is said in the block as the task's, and keep its stages' own output (bars that would overwrite each other) off the screen."""
    token = _WHOSE.set(task)
    try:
        with log_context(task=task):
            yield
    finally:
        _WHOSE.reset(token)


@contextmanager
def screen_of(stage: str) -> Generator[BinaryIO]:
    """Where a stage's stderr is shown as it comes: the terminal, as JSON where asked for, or nowhere while several tasks write text at once (its log has it)."""
    if _WHOSE.get() is not None and not as_json():
        yield io.BytesIO()
        return
    with stage_screen(stage) as screen:
        yield screen


def answer(text: str) -> None:
    """A command's result, on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two spaces apart, with the header above."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)]
    return "\n".join(lines)


def number(value: object) -> str:
    """A figure for people: four decimals for a fraction, a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return str(value)


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s` or `6 min 12 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
