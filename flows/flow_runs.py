"""The flow runs of this checkout that were killed: nobody tells Prefect, so they would stay Running for ever.

Before Prefect hears of a run, a note is made in `.promptmill/running/` and its lock is held until the run ends, however it ends; the run carries
the note's name as a tag, or the note the run's id where a worker was given the run. A note whose lock is free is that of a killed run: the next start closes it as Crashed.
"""

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flows.settings import state_folder
from pipeline.records import read_json, write_json

FOLDER = "running"
TAG_PREFIX = "promptmill-run-"
MESSAGE = "The process of this run was killed before it could say so; the next start of promptmill noticed."


@contextmanager
def noted(root: Path) -> Generator[None]:
    """Give the flow runs begun in the block a tag, and keep a note of it for as long as this process lives."""
    from prefect import tags

    with _note(root, None) as name, tags(name):
        yield


@contextmanager
def noted_run(root: Path, run: str) -> Generator[None]:
    """Keep a note of a flow run that a worker has begun, for as long as the block lasts and this process lives."""
    with _note(root, run):
        yield


@contextmanager
def _note(root: Path, run: str | None) -> Generator[str]:
    """A note, of the flow run `run` or of those that carry its name as a tag; yields that name."""
    folder = _folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"{TAG_PREFIX}{uuid.uuid4().hex[:12]}.json"
    lock = FileLock(_lock_of(note))
    with lock:
        write_json(note, {"server": _server(), "run": run})
        try:
            yield note.stem
        finally:
            note.unlink(missing_ok=True)
    _lock_of(note).unlink(missing_ok=True)


def abandoned(root: Path) -> list[str]:
    """The tags of runs that were killed, on the server in use (this checkout's own, or the one that the environment names)."""
    found: list[str] = []
    for note in sorted(_folder(root).glob(f"{TAG_PREFIX}*.json")):
        if read_json(note)["server"] != _server():
            continue
        try:
            with FileLock(_lock_of(note), timeout=0):
                found.append(note.stem)
        except Timeout:
            continue
    return found


def close_abandoned(root: Path) -> int:
    """Set the runs of `abandoned`, and their tasks, to Crashed and forget them; returns how many flow runs that were."""
    closed = 0
    for tag in abandoned(root):
        note = _folder(root) / f"{tag}.json"
        closed += _close(tag, read_json(note).get("run"))
        note.unlink(missing_ok=True)
        _lock_of(note).unlink(missing_ok=True)
    return closed


def _close(tag: str, run_id: str | None) -> int:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
    from prefect.states import Crashed

    closed = 0
    one = FlowRunFilter(id=FlowRunFilterId(any_=[uuid.UUID(run_id)])) if run_id else None
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=one or FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))):
            for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))):
                if task_run.state is None or not task_run.state.is_final():
                    client.set_task_run_state(task_run.id, Crashed(message=MESSAGE), force=True)
            if run.state is None or not run.state.is_final():
                client.set_flow_run_state(run.id, Crashed(message=MESSAGE), force=True)
                closed += 1
    return closed


def _server() -> str | None:
    """The server that the environment names, None for the checkout's own: its address changes with every start."""
    return os.environ.get("PREFECT_API_URL") or None


def _folder(root: Path) -> Path:
    return state_folder(root) / FOLDER


def _lock_of(note: Path) -> Path:
    return note.with_suffix(".lock")
