"""Processes that outlive the command that started them: one record (process, port, log) per service, and how to look at and end them.

A process number can be somebody else's by tomorrow, so a record also has the time its process was made. Flow runs that a worker starts lead sessions
of their own; they carry the mark of their service in the environment, by which they are found when the worker itself is gone.
"""

import contextlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from flows.services import HOST, POLL_SECONDS, Port, answers, claim_port
from flows.settings import last_line
from pipeline.errors import WorkspaceError
from pipeline.records import read_json, write_json

MARK = "PROMPTMILL_SERVICE"
GRACE_SECONDS = 20.0
UP_SECONDS = 500.0  # a death is seen at once; this is for a machine that has much else to do
LOG_TAIL_LINES = 12
LOG_BYTES = 50_000_000

State = Literal["running", "not answering", "ended"]


@dataclass(frozen=True)
class StandingService:
    """How a service is started and asked whether it works; `user` is the account it runs under, None for this process's own.

    `healthy` is True as soon as the service answers as itself; `stop_signal` asks it to end.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    url: str
    health_url: str
    user: str | None = None
    stop_signal: int = signal.SIGTERM


@dataclass(frozen=True)
class Record:
    """A service that was started: which process, since when (seconds of the epoch, as the system has it, and as text), and where it answers.

    `place` counts the starts: the system's own times are hundredths of a second, and services that are started together share one.
    """

    place: int
    name: str
    pid: int
    created: float
    started_at: str
    port: int
    url: str
    health_url: str
    log: str
    stop_signal: int


def records(folder: Path) -> dict[str, Record]:
    """The services of `folder` that were started and not stopped, by name, oldest first."""
    found = [Record(**read_json(path)) for path in folder.glob("*.pid.json")]
    return {record.name: record for record in sorted(found, key=lambda record: record.place)}


def alive(record: Record) -> bool:
    """Whether the process of a record still runs."""
    try:
        process = psutil.Process(record.pid)
        return process.create_time() == record.created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def state(record: Record, healthy: Callable[[str], bool] = answers) -> State:
    """What became of a started service."""
    if not alive(record):
        return "ended"
    return "running" if healthy(record.health_url) else "not answering"


def choose_port(folder: Path, name: str, wanted: int) -> Port | int:
    """The port of the running service of that name; else `wanted`, claimed (0: one that the system chooses).

    Raises WorkspaceError when something else listens there or another promptmill is about to.
    """
    record = records(folder).get(name)
    if record is not None and alive(record):
        return record.port
    port = claim_port(wanted)
    if wanted in (0, port.number):
        return port
    port.claim.release()
    raise WorkspaceError(
        f"{name} cannot start: port {wanted} on {HOST} is taken{_listener(wanted)}. End that program, or choose another port: `--port {name}=NUMBER` (0: any free one)."
    )


def start(folder: Path, service: StandingService) -> Record:
    """Start a service in a session of its own and write its record; what it prints is added to `<folder>/logs/<name>.log`."""
    log = folder / "logs" / f"{service.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    environment = {**service.environment, MARK: _mark(folder, service.name)}
    with log.open("ab") as stream:
        stream.write(f"--- {_now()} starting {service.name}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            service.command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            user=service.user, group=None if service.user is None else pwd.getpwnam(service.user).pw_gid, extra_groups=None if service.user is None else [],
        )  # fmt: skip
    try:
        place = 1 + max((record.place for record in records(folder).values()), default=0)
        record = Record(
            place, service.name, process.pid, psutil.Process(process.pid).create_time(), _now(), service.port, service.url, service.health_url, str(log), service.stop_signal
        )  # fmt: skip
        write_json(_file(folder, service.name), asdict(record))
    except BaseException:
        process.kill()
        raise
    process.returncode = 0  # it outlives this object, which would otherwise warn that it still runs
    return record


def wait_until_healthy(started: Sequence[Record], healthy: Callable[[str], bool] = answers, seconds: float = UP_SECONDS) -> None:
    """Return when all answer.

    Raises WorkspaceError with the last lines of its log for the first that ends, or that does not answer within `seconds`.
    """
    deadline = time.monotonic() + seconds
    waiting = list(started)
    while waiting:
        for record in waiting:
            if not alive(record):
                raise WorkspaceError(f"{record.name} ended soon after its start. The end of {record.log}:\n{log_tail(Path(record.log))}")
        waiting = [record for record in waiting if not healthy(record.health_url)]
        if waiting and time.monotonic() > deadline:
            one = waiting[0]
            raise WorkspaceError(
                f"{one.name} does not answer on {one.health_url} after {seconds:g} s. The end of {one.log}:\n{log_tail(Path(one.log))}\n"
                "Correct what it complains about, then `promptmill services down` and `promptmill services up`."
            )
        if waiting:
            time.sleep(POLL_SECONDS)


def stop(folder: Path, names: Iterable[str], grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """End these services, the one started last first, with everything they started; returns the names of those that ran."""
    known, ended = records(folder), list[str]()
    for name in reversed([name for name in known if name in set(names)]):
        record = known[name]
        if alive(record):
            ended.append(name)
            family = _family(record)
            _send([family[0]], record.stop_signal)
            psutil.wait_procs(family[:1], timeout=grace_seconds)
            _end([*family, *_marked(folder, name)], grace_seconds)
        _end(_marked(folder, name), grace_seconds)
        _file(folder, name).unlink(missing_ok=True)
    return ended


def stop_strays(folder: Path, grace_seconds: float = GRACE_SECONDS) -> int:
    """End the processes that carry this folder's mark and belong to no record (their starter was killed in between); returns how many."""
    strays = _marked(folder, None)
    _end(strays, grace_seconds)
    return len(strays)


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log since its service was last started, indented."""
    text = log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- ")[2] if log.exists() else ""
    kept = [line.rstrip() for line in text.splitlines()[1:] if line.strip()][-lines:]
    return "\n".join(f"  {line}" for line in kept) or "  it printed nothing"


def why_ended(record: Record) -> str:
    """The last line that an ended service printed."""
    return last_line(Path(record.log))


def _end(processes: Sequence[psutil.Process], grace_seconds: float) -> None:
    _send(processes, signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=grace_seconds)
    _send(left, signal.SIGKILL)
    psutil.wait_procs(left, timeout=grace_seconds)


def _send(processes: Iterable[psutil.Process], signal_number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal_number)  # psutil looks at the time of making first, so a new owner of the number is safe


def _family(record: Record) -> list[psutil.Process]:
    """The process of a record and its descendants, whatever sessions they lead."""
    leader = psutil.Process(record.pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        return [leader, *leader.children(recursive=True)]
    return [leader]


def _marked(folder: Path, name: str | None) -> list[psutil.Process]:
    """The processes that carry the mark of a service, or without a name of any service of `folder`."""
    wanted = _mark(folder, name or "")
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or somebody else's and not to be looked at
            mark = process.environ().get(MARK, "")
            if mark == wanted or (name is None and mark.startswith(wanted)):
                found.append(process)
    return found


def _mark(folder: Path, name: str) -> str:
    return f"{folder.resolve()}:{name}"


def _listener(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid is not None
            ):
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
