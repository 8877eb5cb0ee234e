"""Log lines as JSON, one object a line, where machines read them: `PROMPTMILL_LOG_FORMAT=json`.

Every line has time, level, message and the version of promptmill, and where they are known the task, the stage, Prefect's run and the registered version.
The lines of a stage's own process are wrapped as they come; a progress bar has none, so stages show lines instead of a bar.
"""

import json
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import BinaryIO, cast

FORMAT_VARIABLE = "PROMPTMILL_LOG_FORMAT"
JSON = "json"

_context: ContextVar[dict[str, str | int]] = ContextVar("promptmill_log_context", default={})  # noqa: B039  never changed in place


def as_json() -> bool:
    """Whether lines for machines were asked for."""
    return os.environ.get(FORMAT_VARIABLE) == JSON


@contextmanager
def log_context(**fields: str | int | None) -> Generator[None]:
    """Add fields to every line of the block; None leaves a field as it was."""
    token = _context.set({**_context.get(), **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _context.reset(token)


def json_line(message: str, *, level: str = "INFO", logger: str = "promptmill") -> str:
    """One line, without its line break. Prefect's names of the run are asked for each time: they change with the flow and the task."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "message": message,
        "promptmill": _own_version(),
        **_prefect_run(),
        **_context.get(),
    }
    return json.dumps(line, ensure_ascii=False)


class JsonFormatter(logging.Formatter):
    """The same for the lines of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        """The message with the traceback, if there is one, in one line."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return json_line(text, level=record.levelname, logger=record.name)


class JsonStream:
    """A binary stream that writes each line put into it, ended by a line break or a carriage return, as JSON to `target`; it is no terminal."""

    def __init__(self, target: BinaryIO, logger: str) -> None:
        self._target, self._logger, self._rest = target, logger, b""

    def write(self, chunk: bytes) -> int:
        """Take bytes; what is no whole line yet is kept."""
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._put(line)
        return len(chunk)

    def flush(self) -> None:
        """Send on what was written."""
        self._target.flush()

    def close(self) -> None:
        """Write what is left, though no line break ended it."""
        self._put(self._rest)
        self._rest = b""

    def isatty(self) -> bool:
        """False: a bar that moves would be a line each time."""
        return False

    def _put(self, line: bytes) -> None:
        text = line.decode("utf-8", errors="replace").rstrip()
        if text:
            self._target.write(f"{json_line(text, logger=self._logger)}\n".encode())


@contextmanager
def stage_screen(stage: str) -> Generator[BinaryIO]:
    """Where the stderr of a stage's process is shown: this process's stderr, or the same as lines of JSON."""
    if not as_json():
        yield sys.stderr.buffer
        return
    stream = JsonStream(sys.stderr.buffer, f"promptmill.stages.{stage}")
    try:
        yield cast(BinaryIO, stream)
    finally:
        stream.close()
        stream.flush()


def format_libraries() -> None:
    """Give the handlers of the root logger and of Prefect's console our format, when it was asked for."""
    if not as_json():
        return
    for logger in (
        logging.getLogger(),
        logging.getLogger("prefect"),
        logging.getLogger("prefect.flow_runs"),
        logging.getLogger("prefect.task_runs"),
    ):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setFormatter(JsonFormatter())


def _own_version() -> str:
    try:
        return version("promptmill")
    except PackageNotFoundError:
        return "unknown"


def _prefect_run() -> dict[str, str]:
    """Prefect's flow run and task run, when this is called inside one; without importing Prefect."""
    module = sys.modules.get("prefect.context")
    if module is None:
        return {}
    found: dict[str, str] = {}
    flow, task = module.FlowRunContext.get(), module.TaskRunContext.get()
    if flow is not None and flow.flow_run is not None:
        found["run"] = str(flow.flow_run.id)
    if task is not None:
        found.setdefault("run", str(task.task_run.flow_run_id))
        found["task_run"] = str(task.task_run.id)
    return found
