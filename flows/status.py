"""What is known of every task at this moment: champion, last and next run, verdict, drift, who is waited for.

The registry says who is champion and what waits, Prefect what ran and what will, the task's own records what drifted. A place that does not answer leaves its
columns open, with the reason as a note; it never looks like "nothing to report".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows import metrics
from flows.terminal import table
from pipeline.errors import PromptmillError, RegistryError
from pipeline.layout import PARAMS_FILE, Layout
from pipeline.records import read_json

FLOW = "retrain"
LOOK_BACK = 200  # flow runs that are looked through for the last of each task, newest first
UNKNOWN, NONE = "?", "-"
HEADER = ("task", "champion", "age", "last run", "next run", "verdict", "drift", "waiting")


@dataclass(frozen=True)
class Run:
    """A flow run: Prefect's name of its state, and when it ended (or began, while it runs) or is to begin."""

    state: str
    at: datetime | None


@dataclass(frozen=True)
class TaskStatus:
    """One task. `champion`: its version; `since`: when it became so; `decision`: the gate's, on the newest version; `waiting`: versions that wait for a person.

    `notes` say why something is not known (None).
    """

    task: str
    champion: int | None = None
    since: datetime | None = None
    newest: int | None = None
    decision: str | None = None
    waiting: tuple[int, ...] = ()
    last_run: Run | None = None
    next_run: datetime | None = None
    drift: str | None = None
    registry_known: bool = True
    runs_known: bool = True
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Runs:
    """The last and the next run of each task, as Prefect has them; `note` says why they are not known."""

    last: Mapping[str, Run]
    next: Mapping[str, datetime]
    note: str | None = None


def collect(root: Path, tasks: Sequence[str], runs: Runs) -> list[TaskStatus]:
    """The status of each task; figures for Prometheus are written beside, where they are asked for."""
    found = [_status(root, task, runs) for task in tasks]
    for status in found:
        if status.registry_known:
            metrics.write_status(status.task, status.champion, len(status.waiting))
    return found


def write_metrics(root: Path, task: str) -> None:
    """Tell Prometheus who is champion of a task and what waits; a registry that does not answer is passed over."""
    if metrics.metrics_folder() is not None:
        collect(root, [task], Runs({}, {}))


def read_runs() -> Runs:
    """Ask the Prefect server that the settings name; without one there is nobody to ask, and nothing is started for it."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return Runs({}, {}, "Prefect was not asked: PREFECT_API_URL names no server, and one that a single run starts is gone with it")
    import httpx
    from prefect.exceptions import PrefectException

    try:
        return _read_runs()
    except (
        PrefectException,
        httpx.HTTPError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: the client's word for a server that is not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Runs({}, {}, f"Prefect at {PREFECT_API_URL.value()} does not answer ({reason})")


def rows(statuses: Sequence[TaskStatus], now: datetime) -> list[tuple[str, ...]]:
    """The cells of HEADER: `?` for what is not known, `-` for what there is none of."""
    return [
        (
            status.task,
            *_registry_cells(status, now),
            *_run_cells(status, now),
            _decision(status),
            status.drift or NONE,
            _known(status.registry_known, ", ".join(f"version {version}" for version in status.waiting)),
        )
        for status in statuses
    ]


def in_terminal(statuses: Sequence[TaskStatus], now: datetime) -> str:
    """The table, and the notes below it, each once."""
    return "\n".join([table(HEADER, rows(statuses, now)), *(f"note: {note}" for note in notes(statuses))])


def in_markdown(statuses: Sequence[TaskStatus], now: datetime) -> str:
    """The same for Prefect's page."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows(statuses, now)]
    shown = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    below = "\n".join(f"- {note}" for note in notes(statuses))
    return f"{shown}\n\n{below}\n\nAs of {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC."


def in_html(statuses: Sequence[TaskStatus], now: datetime) -> str:
    """The same as one HTML page that needs no other file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("flows", "."), autoescape=True, undefined=StrictUndefined)
    cells = [dict(zip(HEADER, row, strict=True)) for row in rows(statuses, now)]
    tones = [_tones(status) for status in statuses]
    template = environment.get_template("status.html.jinja")
    return template.render(
        header=HEADER, rows=list(zip(cells, tones, strict=True)), notes=notes(statuses), now=f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    )


def notes(statuses: Sequence[TaskStatus]) -> list[str]:
    """The notes of all tasks, each once, in order."""
    return list(dict.fromkeys(note for status in statuses for note in status.notes))


def ago(then: datetime, now: datetime) -> str:
    """`3 min`, `5 h`, `12 d`: a length of time in its largest whole unit."""
    seconds = max(0.0, (now - then).total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "under a minute"


def _status(root: Path, task: str, runs: Runs) -> TaskStatus:
    from pipeline.registry.approval import is_waiting
    from pipeline.registry.registry import list_versions

    drift, drift_note = _drift(root, task)
    found: dict[str, Any] = {
        "last_run": runs.last.get(task),
        "next_run": runs.next.get(task),
        "runs_known": runs.note is None,
        "drift": drift,
    }
    told = [note for note in (runs.note, drift_note) if note]
    try:
        versions = list_versions(root=root, task=task)
    except RegistryError as error:
        nothing_yet = "nothing has been registered" in str(error) or "No version" in str(error)
        return TaskStatus(task, registry_known=nothing_yet, notes=(*told, *(() if nothing_yet else (f"{task}: {error}",))), **found)
    champion = next((version for version in versions if "champion" in version["aliases"]), None)
    return TaskStatus(
        task,
        champion=champion["version"] if champion else None,
        since=_time(champion["promoted_at"]) if champion else None,
        newest=versions[0]["version"] if versions else None,
        decision=versions[0]["gate_decision"] if versions else None,
        waiting=tuple(version["version"] for version in versions if is_waiting(version)),
        notes=tuple(told),
        **found,
    )


def _drift(root: Path, task: str) -> tuple[str | None, str | None]:
    """The verdict of the last drift check, and a note when its record cannot be read."""
    path = Layout(root, task).path("drift")
    if not path.is_file():
        return None, None
    try:
        return str(read_json(path)["verdict"]), None
    except (PromptmillError, KeyError) as error:
        return UNKNOWN, f"{task}: the drift record {path} cannot be read ({error})"


def _read_runs() -> Runs:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    begun = [StateType.RUNNING, StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED, StateType.CANCELLING]
    last: dict[str, Run] = {}
    ahead: dict[str, datetime] = {}
    with get_client(sync_client=True) as client:

        def read(states: list[StateType], sort: FlowRunSort) -> Any:
            wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
            named = FlowFilter(name=FlowFilterName(any_=[FLOW]))
            return client.read_flow_runs(flow_filter=named, flow_run_filter=wanted, sort=sort, limit=LOOK_BACK)

        for run in read(begun, FlowRunSort.START_TIME_DESC):
            last.setdefault(str(run.parameters.get("task")), Run(str(run.state_name), run.end_time or run.start_time))
        for run in read([StateType.SCHEDULED], FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC):
            if run.next_scheduled_start_time is not None:
                ahead.setdefault(str(run.parameters.get("task")), run.next_scheduled_start_time)
    return Runs(last, ahead)


def _registry_cells(status: TaskStatus, now: datetime) -> tuple[str, str]:
    champion = "" if status.champion is None else f"version {status.champion}"
    age = "" if status.since is None else ago(status.since, now)
    return _known(status.registry_known, champion), _known(status.registry_known, age)


def _run_cells(status: TaskStatus, now: datetime) -> tuple[str, str]:
    last = "" if status.last_run is None else status.last_run.state
    if status.last_run is not None and status.last_run.at is not None:
        last += f", {ago(status.last_run.at, now)} ago"
    ahead = "" if status.next_run is None else f"{status.next_run.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return _known(status.runs_known, last), _known(status.runs_known, ahead)


def _decision(status: TaskStatus) -> str:
    shown = "" if status.newest is None else f"{status.decision or UNKNOWN} (version {status.newest})"
    return _known(status.registry_known, shown)


def _known(known: bool, text: str) -> str:
    return (text or NONE) if known else UNKNOWN


def _tones(status: TaskStatus) -> dict[str, str]:
    """What a reader should see first: `good`, `bad` or `look` for a column."""
    tones: dict[str, str] = {}
    if status.last_run is not None:
        tones["last run"] = {"Failed": "bad", "Crashed": "bad", "TimedOut": "bad", "Completed": "good"}.get(status.last_run.state, "")
    tones["verdict"] = {"promote": "good", "refuse": "bad", "ask": "look"}.get(status.decision or "", "")
    tones["drift"] = {"PASS": "good", "FAIL": "bad", "INSUFFICIENT": "look"}.get(status.drift or "", "")
    tones["waiting"] = "look" if status.waiting else ""
    return tones


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def task_names(root: Path, task: str | None) -> list[str]:
    """The task that was named, or all of params.yaml; raises ParamsError for one that is not there."""
    from pipeline.params import load

    known = load(root / PARAMS_FILE)
    if task is not None and task not in known:
        from pipeline.params import load_task

        load_task(root / PARAMS_FILE, task)  # says which tasks there are
    return [task] if task is not None else sorted(known)
