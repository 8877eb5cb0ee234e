"""The journal of promotions: every intent to move the alias `champion`, and how it ended.

It is kept twice. The file below the workspace is append-only and synced to disk, one JSON object per line: `intent`, then `done` or
`aborted` under the same `id`. What ended is also a tag of the version it was about, so that another machine sees it. While a promotion is
under way the registered model carries its intent as a tag: that flag is what two machines without a common lock see of each other.
"""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegistryError
from pipeline.registry.connection import STATE_FOLDER, Connection, file_lock

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

JOURNAL_FILE = "promotions.jsonl"
INTENT, DONE, ABORTED = "intent", "done", "aborted"
FLAG = "promptmill.promoting."
SEQUENCE = "promptmill.promotion_sequence"
ENTRY = "promptmill.promotion."

Entry = dict[str, Any]


@dataclass(frozen=True)
class State:
    """What the registry says of one task at one time: aliases, the number of the last promotion that ended, and those under way."""

    aliases: Mapping[str, int]
    sequence: int
    under_way: Mapping[str, Entry]


def new_id() -> str:
    """An id for a promotion, unlike any other's."""
    return uuid.uuid4().hex[:16]


def now() -> str:
    """The present as ISO 8601 in UTC, with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def append(root: Path, event: str, intent: Mapping[str, Any]) -> Entry:
    """Append one line and sync it to disk; an unfinished last line of a killed writer is cut off first. Returns the entry."""
    path = journal_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"event": event, **{name: value for name, value in intent.items() if name not in ("event", "at")}, "at": now()}
    line = json.dumps(entry, ensure_ascii=False) + "\n"
    with file_lock(path.with_suffix(".lock")):
        made = not path.exists()
        with path.open("ab+") as stream:
            stream.seek(0)
            complete = stream.read().rpartition(b"\n")
            stream.truncate(len(complete[0]) + len(complete[1]))
            stream.write(line.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        if made:
            _sync_folder(path.parent)
    return entry


def read_journal(*, root: Path, task: str) -> list[Entry]:
    """The task's entries in this workspace's file, oldest first: {event, id, sequence, action, task, version, previous_champion, ..., at}.

    A last line that ends without a line break was never completed and is left out; any other broken line raises RegistryError. The
    entries of a promptmill that gave no ids get one from the line of their intent.
    """
    path = journal_path(root)
    if not path.is_file():
        return []
    entries: list[Entry] = []
    given = "line-0"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise RegistryError(
                f"{path}, line {number} is not JSON ({error.msg}). Restore the file from a backup, or remove that line."
            ) from None
        given = f"line-{number}" if entry["event"] == INTENT else given
        entries.append({"id": given, "sequence": 0, **entry})
    return [entry for entry in entries if entry["task"] == task]


def unfinished(entries: list[Entry]) -> list[Entry]:
    """The intents among `entries` that neither `done` nor `aborted` follows."""
    closed = {entry["id"] for entry in entries if entry["event"] != INTENT}
    return [entry for entry in entries if entry["event"] == INTENT and entry["id"] not in closed]


def read_state(connection: Connection, task: str) -> State:
    """The task's state in the registry, in one request: read apart, alias and flags could be of two moments."""
    from pipeline.registry.registry import registered_model

    model = registered_model(connection, task)
    flags = {name.removeprefix(FLAG): json.loads(value) for name, value in model.tags.items() if name.startswith(FLAG)}
    return State(
        aliases={alias: int(version) for alias, version in model.aliases.items()},
        sequence=int(model.tags.get(SEQUENCE, 0)),
        under_way=flags,
    )


def announce(connection: Connection, intent: Entry) -> None:
    """Let every machine see that a promotion is under way."""
    connection.client.set_registered_model_tag(intent["task"], FLAG + intent["id"], json.dumps(intent, ensure_ascii=False))


def publish(connection: Connection, entry: Entry) -> None:
    """Put an ended promotion into the registry: a tag of its version, its number, and no flag any more, in this order.

    A process killed on the way leaves the flag, so that whoever comes next does it all again.
    """
    client, task = connection.client, entry["task"]
    client.set_model_version_tag(task, str(entry["version"]), entry_tag(entry), json.dumps(entry, ensure_ascii=False))
    state = read_state(connection, task)
    if entry["event"] == DONE and entry["sequence"] > state.sequence:
        client.set_registered_model_tag(task, SEQUENCE, str(entry["sequence"]))
    if entry["id"] in state.under_way:
        client.delete_registered_model_tag(task, FLAG + entry["id"])


def published(version: "ModelVersion") -> list[Entry]:
    """The ended promotions of one version, as its tags tell them."""
    return [json.loads(value) for name, value in version.tags.items() if name.startswith(ENTRY)]


def entry_tag(entry: Entry) -> str:
    """The tag of a version that holds this entry."""
    return f"{ENTRY}{entry['sequence']:08d}.{entry['id']}"


def ended(local: list[Entry], mirrored: list[Entry]) -> list[Entry]:
    """Every promotion that ended, here or on another machine, once and in order."""
    found = {entry["id"]: entry for entry in [*local, *mirrored] if entry["event"] != INTENT}
    return sorted(found.values(), key=lambda entry: (entry["sequence"], entry["at"]))


def journal_path(root: Path) -> Path:
    """The journal's file of one workspace."""
    return root / STATE_FOLDER / JOURNAL_FILE


def _sync_folder(folder: Path) -> None:
    """A new file survives a power failure only when its folder is on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
