"""The events that promptmill tells Prefect, so that automations can act on them: what happened to a task, with the text that people read.

An event goes to the server that the flow run talks to, or that the user's settings name; a command without either tells nobody.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flows.promotion_lock import server_named
from flows.terminal import say
from pipeline.registry.connection import tracking_uri

DATA_CHANGED = "promptmill.data.changed"
DATA_DRIFTED = "promptmill.data.drifted"
CHAMPION_BELOW_LIMITS = "promptmill.champion.below_limits"
BASE_MODEL_CHANGED = "promptmill.base_model.changed"
REFUSED = "promptmill.gate.refused"
APPROVAL_REQUESTED = "promptmill.approval.requested"
PROMOTED = "promptmill.champion.promoted"
ROLLED_BACK = "promptmill.champion.rolled_back"

# The events that may start a retraining, by their name in `deployment.triggers`.
TRIGGERS = {
    "data_changed": DATA_CHANGED,
    "data_drifted": DATA_DRIFTED,
    "champion_below_limits": CHAMPION_BELOW_LIMITS,
    "base_model_changed": BASE_MODEL_CHANGED,
}
# The events that people can be told of, by their name in `deployment.notifications`; `failed` is Prefect's own to tell.
OCCASIONS = {"refused": REFUSED, "approval_requested": APPROVAL_REQUESTED, "promoted": PROMOTED, "rolled_back": ROLLED_BACK}

SEND_SECONDS = 10.0


def resource_of(task: str) -> str:
    """The id of a task as a resource of Prefect's events."""
    return f"promptmill.task.{task}"


def tag_of(task: str) -> str:
    """The tag that the deployments and flow runs of a task carry."""
    return f"promptmill-task:{task}"


def announce(event: str, task: str, *, subject: str, lines: Iterable[str] = (), details: Mapping[str, Any] | None = None) -> bool:
    """Tell Prefect that `event` happened to `task`; returns whether there was a server to tell.

    `subject` and `lines` are what people read, `details` what programs do; none may hold a secret, as everybody who sees the server reads them.
    Nothing is raised when the server does not answer: what is told has happened already.
    """
    if not (_in_a_run() or server_named()):
        return False
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker

    payload = {**(details or {}), "subject": subject, "text": "\n".join(lines)}
    try:
        if not _in_a_run():
            # Prefect's thread for events keeps the run in which it was started: what comes after that run would be told as a part of it.
            EventsWorker.drain_all(timeout=SEND_SECONDS)
        emit_event(event=event, resource={"prefect.resource.id": resource_of(task), "prefect.resource.name": task}, payload=payload)
        if not _in_a_run():
            EventsWorker.drain_all(timeout=SEND_SECONDS)  # this process may end next
    except Exception as error:  # noqa: BLE001  whatever the server's trouble is, the thing itself is done
        say(f"Prefect could not be told of {event}: {type(error).__name__}")
        return False
    return True


def announce_champion(root: Path, record: Mapping[str, Any], *, why: str, run_id: str | None = None, event: str = PROMOTED) -> None:
    """Tell of a promotion, or of a rollback (`event`), by its record; of a version that already was champion there is nothing to tell."""
    if record["already_champion"]:
        return
    task, version, before = record["task"], record["version"], record["previous_champion"]
    verb = "is champion again" if event == ROLLED_BACK else "is champion"
    lines = [f"{why} Before: {'none' if before is None else f'version {before}'}.", *where_to_read(root, task, version, run_id)]
    announce(event, task, subject=f"{task} version {version} {verb}", lines=lines, details={"version": version, "previous": before})


def where_to_read(root: Path, task: str, version: int | None, run_id: str | None = None) -> list[str]:
    """Lines that lead to a version and the prompt card: addresses on an MLflow server, else the commands that show them here."""
    uri = tracking_uri(root=root).rstrip("/")
    if version is None:
        return []
    if not uri.startswith(("http://", "https://")):
        return [f"Version: promptmill show {task}@{version}", f"Why: promptmill why {task}@{version}"]
    uri = _without_credentials(uri)
    card = [f"Card: {uri}/get-artifact?path=card.html&run_uuid={run_id}"] if run_id else []
    return [f"Version: {uri}/#/models/{task}/versions/{version}", *card]


def _without_credentials(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _in_a_run() -> bool:
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None
