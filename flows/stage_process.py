"""One DVC stage as a process group of its own: `dvc repro --single-item <stage>@<task>`.

Stopping DVC alone would leave the stage's process running, with its GPU. The stage's stderr is copied byte for byte as it comes
(its progress bar moves by carriage returns); DVC's chatter on stdout goes to the log file only.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Literal, cast

from flows.dvc_state import mend
from flows.process_group import process_group
from flows.settings import log_file
from flows.terminal import say
from flows.workspace import LOCK_HELD, stage_address
from pipeline.errors import StageFailed

TAIL_BYTES = 65_536
POLL_SECONDS = 0.5
DRAIN_SECONDS = 5.0

_ERROR_MARKS = (b"error: ", b"ERROR: ")  # the stage's own last line, and DVC's
_OWN_ERROR = re.compile(r"error: (stage .*?)(?=^ERROR: |\Z)", re.DOTALL | re.MULTILINE)
_DVC_ERROR = re.compile(r"^ERROR: (.*)$", re.MULTILINE)
_KILLED = re.compile(r"exited with (-\d+|137|143)$")

Outcome = Literal["unchanged", "restored", "run"]


class StageDied(StageFailed):
    """The stage's process ended without a message of its own: killed, or DVC's lock was held. Trying again can help."""


@dataclass(frozen=True)
class StageRun:
    """How a stage came to be current: nothing had changed, DVC's cache had its outputs, or it ran; and how long that took."""

    outcome: Outcome
    seconds: float


def run_stage(*, root: Path, task: str, stage: str, screen: BinaryIO, force: bool = False) -> StageRun:
    """Bring one stage up to date, copying its stderr to `screen`; whatever ends this call ends the whole process group.

    With `force` it runs although DVC sees no change.

    Everything printed is kept in `.promptmill/logs/<task>/<stage>.log` when the stage ran.
    Raises StageFailed with the stage's own message, StageDied when its process had none.
    """
    log = log_file(root, task, stage)
    started = time.monotonic()
    for sentence in mend(root):
        say(sentence)
    with _kept_log(log) as stream:
        arguments = ("--force", stage_address(stage, task)) if force else (stage_address(stage, task),)
        code, stdout, stderr = _run(root, arguments, stage_environment(screen.isatty()), screen, stream)
        if code != 0:
            raise failure(stage=stage, task=task, code=code, stderr=stderr, log=log)
        outcome = _outcome(stdout)
        if outcome == "unchanged":
            stream.truncate(0)  # nothing ran: the log of the last real run stays
    return StageRun(outcome, time.monotonic() - started)


def stage_environment(live: bool) -> dict[str, str]:
    """This process's environment for a stage: our Python first on PATH (dvc.yaml says `python`), and the kind of progress to show."""
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join((here, os.environ.get("PATH", os.defpath)))}
    environment.setdefault("PROMPTMILL_PROGRESS", "bar" if live else "lines")
    if live:
        columns, lines = shutil.get_terminal_size()
        environment.update(COLUMNS=str(columns), LINES=str(lines))  # tqdm reads neither without the other
    return environment


def failure(*, stage: str, task: str, code: int, stderr: str, log: Path) -> StageFailed:
    """The error for a `dvc repro` that ended with `code`: the stage's own words where it left any."""
    text = stderr.replace("\r\n", "\n").replace("\r", "\n")
    own = _OWN_ERROR.findall(text)
    if own:
        return StageFailed(own[-1].strip())
    complaints = _DVC_ERROR.findall(text)
    complaint = complaints[-1].strip() if complaints else ""
    if any(words in text for words in LOCK_HELD):
        return StageDied(
            f"stage {stage} of {task}: another promptmill or dvc is at work in this checkout, and DVC lets only one in. Wait for it to end, or use a clone of your own."
        )
    killed = _KILLED.search(complaint)
    if code < 0 or killed:
        how = killed[1] if killed else str(code)
        return StageDied(
            f"stage {stage} of {task}: its process was killed (exit code {how}) before it could say why; often memory ran out. "
            f"Free some and run again; what it printed is in {log}."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("ERROR: ")]
    last = lines[-1] if lines else complaint or "nothing was printed"
    return StageFailed(f"stage {stage} of {task}: exit code {code}, last line: {last}. What it printed is in {log}.")


class LiveCopy:
    """Copies bytes to a screen as they come, up to the first line that starts an error message.

    That line and what follows is withheld: the caller reports the message once, or releases it when the process succeeds.
    """

    def __init__(self, screen: BinaryIO) -> None:
        self._screen = screen
        self._at_line_start = True
        self._stopped = False
        self._withheld = b""

    def write(self, chunk: bytes) -> None:
        """Copy or withhold `chunk`."""
        shown = bytearray()
        for piece in re.split(rb"(?<=[\r\n])", chunk):
            shown += self._show(piece)
        if shown:
            self._screen.write(shown)
            self._screen.flush()

    def release(self) -> None:
        """Show what was withheld."""
        self._screen.write(self._withheld)
        self._screen.flush()
        self._withheld = b""

    def _show(self, piece: bytes) -> bytes:
        line = self._withheld + piece
        if self._stopped or (self._at_line_start and line.startswith(_ERROR_MARKS)):
            self._stopped = True
        elif not self._at_line_start or not any(mark.startswith(line) for mark in _ERROR_MARKS):
            self._withheld = b""
            self._at_line_start = line.endswith((b"\r", b"\n")) if line else self._at_line_start
            return line
        self._withheld = line
        return b""


class _Tail:
    """The last bytes of a stream."""

    def __init__(self) -> None:
        self._bytes = b""

    def write(self, chunk: bytes) -> None:
        self._bytes = (self._bytes + chunk)[-TAIL_BYTES:]

    def text(self) -> str:
        return self._bytes.decode("utf-8", errors="replace")


def _run(root: Path, arguments: Sequence[str], environment: Mapping[str, str], screen: BinaryIO, log: BinaryIO) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *arguments]
    live, stdout, stderr = LiveCopy(screen), _Tail(), _Tail()
    with process_group(command, folder=root, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        pumps = [_pump(process.stdout, log.write, stdout.write), _pump(process.stderr, log.write, live.write, stderr.write)]
        while True:
            try:
                # Short waits in Python code, so that a time-out, cancellation or signal is seen at once.
                code = process.wait(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
    for pump in pumps:  # the group is gone, so both pipes are at their end
        pump.join(timeout=DRAIN_SECONDS)
    if code == 0:
        live.release()
    return code, stdout.text(), stderr.text()


def _pump(stream: IO[bytes] | None, *sinks: Callable[[bytes], object]) -> threading.Thread:
    source = cast(IO[bytes], stream)

    def copy() -> None:
        with source:
            while chunk := os.read(source.fileno(), 65_536):
                for sink in sinks:
                    sink(chunk)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _outcome(stdout: str) -> Outcome:
    """What DVC says it did; its own words, held to the pinned version by a test."""
    if "didn't change, skipping" in stdout:
        return "unchanged"
    return "restored" if "is cached - skipping run, checking out outputs" in stdout else "run"


@contextmanager
def _kept_log(log: Path) -> Generator[BinaryIO]:
    """A stream that becomes `log` when the block ends, even by an error, unless it stayed empty."""
    partial = log.with_suffix(".log.partial")
    with partial.open("wb", buffering=0) as stream:
        try:
            yield cast(BinaryIO, stream)
        finally:
            if stream.seek(0, os.SEEK_END):
                partial.replace(log)
            partial.unlink(missing_ok=True)
