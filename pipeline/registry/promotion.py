"""Promotion: moving the alias `champion`, the one point at which a tuned prompt takes effect.

Before the alias moves, the version's bundle is downloaded and verified and the intent is written to a journal; afterwards the alias is
read back and the intent closed. An intent left open by a killed process is settled by the next promotion of that task. The lock is
this machine's: two machines that share a server are kept apart only by reading back.
"""

import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import NotPromoted, RegistryError
from pipeline.registry.connection import STATE_FOLDER, Connection, connect, explained, file_lock, task_lock
from pipeline.registry.registry import (
    CHAMPION,
    GATE_DECISION,
    GATE_REASONS,
    GATE_SHA256,
    MANIFEST_SHA256,
    PROMOTED_AT,
    aliases_of,
    download_bundle,
    find_version,
    list_versions,
)
from pipeline.registry.uncommitted import check_committed

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

JOURNAL_FILE = "promotions.jsonl"


def promote(*, root: Path, task: str, version: int) -> dict[str, Any]:
    """Make `version` the champion of `task`; a version that already is stays it.

    Returns {task, version, previous_champion (None for the first), already_champion}. Raises NotPromoted when the gate did not let the version pass,
    BundleError when its stored bundle is not the registered one, RegistryError when MLflow refuses.
    """
    connection = connect(root=root)
    with explained(f"Promoting {task} version {version} in {connection.uri}", "Run the same command again."):
        found = find_version(connection, task, version)
        check_committed(root=root, task=task, version=version, tags=found.tags)
        if found.tags.get(GATE_DECISION) != "promote":
            reasons = " ".join(found.tags.get(GATE_REASONS, "").split("\n")) or "no reasons were recorded."
            if found.tags.get(GATE_DECISION) == "ask":
                raise NotPromoted(
                    f"{task} version {version} waits for a person: the gate could not decide: {reasons} More test rows would."
                )
            raise NotPromoted(f"{task} version {version} was refused by the gate: {reasons} See the prompt card, and tune again.")
        return _make_champion(connection, found, "promote")


def rollback(*, root: Path, task: str, to: int | None = None) -> dict[str, Any]:
    """Make an earlier champion of `task` the champion again: the one before the present one, or `to`.

    Returns what `promote` returns. Raises RegistryError when there is no earlier champion, or `to` never was one.
    """
    connection = connect(root=root)
    with explained(f"Rolling {task} back in {connection.uri}", "Run the same command again."):
        with _settled(connection, task) as champion:
            if champion is None:
                raise RegistryError(
                    f"{task} has no champion, so there is nothing to roll back. Promote a version: `promptmill promote {task}`."
                )
            target = _earlier_champion(connection, task, champion) if to is None else _former_champion(connection, task, to)
        return _make_champion(connection, find_version(connection, task, target), "rollback")


def read_journal(*, root: Path, task: str) -> list[dict[str, Any]]:
    """The task's entries, oldest first: {event: intent | done | aborted, action, task, version, previous_champion, ..., at}.

    A last line that ends without a line break was never completed and is left out; any other broken line raises RegistryError.
    """
    path = _journal(root)
    if not path.is_file():
        return []
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RegistryError(
                f"{path}, line {number} is not JSON ({error.msg}). Restore the file from a backup, or remove that line."
            ) from None
    return [entry for entry in entries if entry["task"] == task]


def _make_champion(connection: Connection, version: "ModelVersion", action: str) -> dict[str, Any]:
    task, number = version.name, int(version.version)
    with tempfile.TemporaryDirectory() as folder:
        download_bundle(root=connection.root, task=task, version=number, destination=Path(folder) / "bundle")
    with _settled(connection, task) as champion:
        record = {"task": task, "version": number, "previous_champion": champion, "already_champion": champion == number}
        if champion == number:
            return record
        evidence = {name.rpartition(".")[2]: version.tags.get(name) for name in (GATE_DECISION, GATE_SHA256, MANIFEST_SHA256)}
        intent = {"action": action, "task": task, "version": number, "previous_champion": champion, **evidence, "run_id": version.run_id}
        _append(connection.root, "intent", intent)
        connection.client.set_registered_model_alias(task, CHAMPION, str(number))  # the commit point
        now = aliases_of(connection, task).get(CHAMPION)
        if now != number:
            raise RegistryError(
                f"{task}: champion was set to version {number} and reads back as {now}: another promotion ran. Promote again."
            )
        _close(connection, intent)
    return record


@contextmanager
def _settled(connection: Connection, task: str) -> Generator[int | None]:
    """Hold the task's lock, close an intent that a killed process left open, and yield the champion's number."""
    with task_lock(root=connection.root, task=task):
        champion = aliases_of(connection, task).get(CHAMPION)
        entries = read_journal(root=connection.root, task=task)
        if entries and entries[-1]["event"] == "intent":
            intent = {key: value for key, value in entries[-1].items() if key not in ("event", "at")}
            if champion == intent["version"]:
                _close(connection, intent)
            else:
                _append(connection.root, "aborted", intent)
        yield champion


def _close(connection: Connection, intent: dict[str, Any]) -> None:
    """Tag the version and append `done`. A rollback is no promotion: the tag keeps the order in which versions were promoted."""
    if intent["action"] == "promote":
        connection.client.set_model_version_tag(intent["task"], str(intent["version"]), PROMOTED_AT, _now())
    _append(connection.root, "done", intent)


def _earlier_champion(connection: Connection, task: str, champion: int) -> int:
    for entry in reversed(read_journal(root=connection.root, task=task)):
        if entry["event"] == "done" and entry["action"] == "promote" and entry["version"] == champion:
            earlier = entry["previous_champion"]
            break
    else:
        earlier = _earlier_by_tags(connection, task, champion)
    if earlier is None:
        raise RegistryError(
            f"{task} has had no champion before version {champion}, so there is nothing to roll back to. Promote another version."
        )
    return earlier


def _earlier_by_tags(connection: Connection, task: str, champion: int) -> int | None:
    """For a promotion that another workspace made: the version that was promoted last before the champion was."""
    promoted = {entry["version"]: entry["promoted_at"] for entry in list_versions(root=connection.root, task=task) if entry["promoted_at"]}
    before = [(at, version) for version, at in promoted.items() if at < promoted.get(champion, "")]
    return max(before)[1] if before else None


def _former_champion(connection: Connection, task: str, version: int) -> int:
    if PROMOTED_AT not in find_version(connection, task, version).tags:
        raise RegistryError(f"{task} version {version} never was champion, so this is no rollback. Use `promptmill promote {task}`.")
    return version


def _journal(root: Path) -> Path:
    return root / STATE_FOLDER / JOURNAL_FILE


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _append(root: Path, event: str, intent: dict[str, Any]) -> None:
    """Append one line and sync it to disk; an unfinished last line of a killed writer is cut off first."""
    path = _journal(root)
    line = json.dumps({"event": event, **intent, "at": _now()}, ensure_ascii=False) + "\n"
    with file_lock(path.with_suffix(".lock")), path.open("ab+") as stream:
        stream.seek(0)
        complete = stream.read().rpartition(b"\n")
        stream.truncate(len(complete[0]) + len(complete[1]))
        stream.write(line.encode("utf-8"))
        stream.flush()
        os.fsync(stream.fileno())
