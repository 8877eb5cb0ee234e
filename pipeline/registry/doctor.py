"""`promptmill doctor`: close what killed promotions left open, and say where alias, journal and stored files do not agree."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import BundleError, RegistryError
from pipeline.registry import journal, promotion
from pipeline.registry.connection import Connection, connect, explained
from pipeline.registry.journal import ABORTED, DONE, Entry
from pipeline.registry.locks import SharedLock, promotion_lock
from pipeline.registry.registry import CHAMPION, download_bundle, versions_of

OUTCOMES = {DONE: "had taken effect: closed as done", ABORTED: "had not taken effect: closed as aborted"}


@dataclass(frozen=True)
class Finding:
    """What the doctor saw of one task: `fine`, `repaired` by it, or a `problem` that needs a person."""

    state: Literal["fine", "repaired", "problem"]
    text: str


def examine(*, root: Path, task: str, lock: SharedLock | None = None) -> list[Finding]:
    """Settle and check one task; raises RegistryError when nothing is registered under its name or the store does not answer."""
    connection = connect(root=root)
    with explained(f"Examining {task} in {connection.uri}", "Try again."), promotion_lock(connection, task, lock) as held:
        return [
            *_settled(connection, task, held),
            *_mirrored(connection, task),
            _agreement(connection, task),
            _champion_files(connection, task),
        ]


def _settled(connection: Connection, task: str, held: frozenset[str]) -> Iterator[Finding]:
    local = journal.unfinished(journal.read_journal(root=connection.root, task=task))
    before = {entry["id"]: entry for entry in [*local, *journal.read_state(connection, task).under_way.values()]}
    try:
        promotion.settle(connection, task, held)
    except RegistryError as error:
        yield Finding("problem", str(error))
        return
    ended = {entry["id"]: entry for entry in promotion.promotions(connection, task)}
    for identity, intent in before.items():
        what, how = f"the {intent['action']} of version {intent['version']}, begun at {intent['at']},", ended.get(identity, {}).get("event")
        if how is None:
            yield Finding("fine", f"{what} is another machine's that works in this folder too, and under way or not long dead")
        else:
            yield Finding("repaired", f"{what} {OUTCOMES[how]}")


def _mirrored(connection: Connection, task: str) -> Iterator[Finding]:
    """Put promotions that only this workspace's file knows into the registry, for others to see."""
    versions = {int(version.version): version for version in versions_of(connection, task)}
    for entry in journal.ended(journal.read_journal(root=connection.root, task=task), []):
        version = versions.get(entry["version"])
        if version is None or entry["id"] in {known["id"] for known in journal.published(version)}:
            continue
        journal.publish(connection, entry)
        yield Finding("repaired", f"the journal's entry on version {entry['version']} of {entry['at']} was missing among its tags")


def _agreement(connection: Connection, task: str) -> Finding:
    champion = journal.read_state(connection, task).aliases.get(CHAMPION)
    done: list[Entry] = [entry for entry in promotion.promotions(connection, task) if entry["event"] == DONE]
    last = done[-1]["version"] if done else None
    if champion == last:
        return Finding("fine", "no champion yet" if champion is None else f"champion is version {champion}, as the journal says")
    return Finding(
        "problem",
        f"champion is {champion}, and the last promotion in the journal is of {last}: something else than promptmill moved the alias. "
        f"`promptmill history {task}` shows what was decided; `promptmill promote` or `rollback --to` puts a decided version back.",
    )


def _champion_files(connection: Connection, task: str) -> Finding:
    champion = journal.read_state(connection, task).aliases.get(CHAMPION)
    if champion is None:
        return Finding("fine", "there are no champion's files to verify")
    try:
        with tempfile.TemporaryDirectory() as folder:
            download_bundle(root=connection.root, task=task, version=champion, destination=Path(folder) / "bundle")
    except (BundleError, RegistryError) as error:
        return Finding(
            "problem", f"the champion cannot be loaded: {error} `promptmill rollback {task}` makes its predecessor champion again."
        )
    return Finding("fine", f"the files of version {champion} are those that were registered")
