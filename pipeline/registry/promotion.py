"""Promotion: moving the alias `champion`, the one point at which a tuned prompt takes effect.

MLflow has no compare-and-swap: the last writer wins, and a decision made against an older champion would undo a newer one. So a promotion
holds a lock, looks whether the champion still is the one its decision was made against, announces its intent, looks again, and only
then sets the alias. A process without the same lock sees the intent and stands back, or had announced its own before and is seen. Whatever
kills a promotion, the alias says whether it took effect, and the next one, or `promptmill doctor`, closes the journal accordingly.
"""

import random
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ChampionChanged, NeedsApproval, NotPromoted, RegistryError
from pipeline.registry import journal
from pipeline.registry.connection import Connection, connect, explained
from pipeline.registry.journal import ABORTED, DONE, INTENT, Entry, State
from pipeline.registry.locks import SharedLock, person, promotion_lock
from pipeline.registry.registry import (
    APPROVAL_REQUEST,
    CHAMPION,
    COMPARED_WITH,
    GATE_DECISION,
    GATE_REASONS,
    GATE_SHA256,
    MANIFEST_SHA256,
    PROMOTED_AT,
    download_bundle,
    find_version,
    versions_of,
)
from pipeline.registry.uncommitted import check_committed

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

Expected = int | None | Literal["current", "compared"]

ATTEMPTS = 6
# An intent of a machine that shares no lock with this one counts as a dead process's after this time; a promotion takes about a second.
GRACE = timedelta(minutes=10)
_AGAIN = "Run the same command again; `promptmill doctor` says whether it took effect."


class _Busy(RegistryError):
    """Another machine is promoting the same task at this moment."""


@dataclass(frozen=True)
class _Wanted:
    """A promotion that was asked for: what, who, why, and the champion it was decided against."""

    action: str
    expected: int | None
    by: str
    reason: str | None
    approval: dict[str, Any] | None


def promote(
    *,
    root: Path,
    task: str,
    version: int,
    expected: Expected = "current",
    by: str | None = None,
    reason: str | None = None,
    approval: dict[str, Any] | None = None,
    lock: SharedLock | None = None,
) -> dict[str, Any]:
    """Make `version` the champion of `task`; a version that already is stays it.

    `expected` is the champion the decision was made against: a number, None for no champion, `compared` for the one that the version's
    gate compared it with, `current` for the one at the time of this call. Returns {task, version, previous_champion (None for the
    first), already_champion}. Raises ChampionChanged when another version became champion meanwhile, NotPromoted when the gate refused the
    version, NeedsApproval when a person has to approve it first, BundleError when its stored bundle is not the registered one,
    RegistryError when MLflow refuses.
    """
    connection = connect(root=root)
    with explained(f"Promoting {task} version {version} in {connection.uri}", _AGAIN):
        found = find_version(connection, task, version)
        check_committed(root=root, task=task, version=version, tags=found.tags)
        _check_gate(found, approval)
        champion = expected_champion(connection, found, expected)
        return _make_champion(connection, found, _Wanted("promote", champion, by or person(), reason, approval), lock)


def rollback(
    *, root: Path, task: str, to: int | None = None, by: str | None = None, reason: str | None = None, lock: SharedLock | None = None
) -> dict[str, Any]:
    """Make an earlier champion of `task` the champion again: the one before the present one, or `to`.

    Returns and raises what `promote` does, and RegistryError when there is no earlier champion, or `to` never was one.
    """
    connection = connect(root=root)
    with explained(f"Rolling {task} back in {connection.uri}", _AGAIN):
        with promotion_lock(connection, task, lock) as held:
            champion = settle(connection, task, held).aliases.get(CHAMPION)
        if champion is None:
            raise RegistryError(
                f"{task} has no champion, so there is nothing to roll back. Promote a version: `promptmill promote {task}`."
            )
        target = _earlier_champion(connection, task, champion) if to is None else _former_champion(connection, task, to)
        wanted = _Wanted("rollback", champion, by or person(), reason, None)
        return _make_champion(connection, find_version(connection, task, target), wanted, lock)


def settle(connection: Connection, task: str, held: frozenset[str]) -> State:
    """Close what killed processes left open, and return the state then; the caller holds the locks `held`.

    Raises RegistryError when a promotion of another machine is under way.
    """
    state = journal.read_state(connection, task)
    for intent in state.under_way.values():
        if elsewhere(intent, held):
            raise _Busy(_under_way(intent))
        _close(connection, DONE if state.aliases.get(CHAMPION) == intent["version"] else ABORTED, intent)
    for intent in journal.unfinished(journal.read_journal(root=connection.root, task=task)):
        if intent["id"] not in state.under_way and not elsewhere(intent, held):
            _close_forgotten(connection, intent)
    return journal.read_state(connection, task) if state.under_way else state


def elsewhere(intent: Entry, held: frozenset[str]) -> bool:
    """Whether an open intent may be a living process's: it was made under none of the locks `held`, and not long ago.

    Two machines, or two containers, may work in one folder and yet share no lock; one that has written its intent down may be about to announce it.
    """
    return not held & set(intent.get("locks", held)) and datetime.now(UTC) - datetime.fromisoformat(intent["at"]) < GRACE


def promotions(connection: Connection, task: str) -> list[Entry]:
    """Every promotion of `task` that ended, on whichever machine, oldest first."""
    mirrored = [entry for version in versions_of(connection, task) for entry in journal.published(version)]
    return journal.ended(journal.read_journal(root=connection.root, task=task), mirrored)


def _check_gate(version: "ModelVersion", approval: dict[str, Any] | None) -> None:
    name, decision = f"{version.name} version {version.version}", version.tags.get(GATE_DECISION)
    reasons = " ".join(version.tags.get(GATE_REASONS, "").split("\n")) or "no reasons were recorded."
    waits = APPROVAL_REQUEST in version.tags and PROMOTED_AT not in version.tags
    if decision not in ("promote", "ask"):
        raise NotPromoted(f"{name} was refused by the gate: {reasons} See the prompt card, and tune again.")
    if approval is None and waits:
        raise NeedsApproval(
            f"{name} waits for a person's approval{': ' + reasons if decision == 'ask' else '.'} "
            f"See the prompt card, then `promptmill approve {version.name} {version.version} --reason ...`."
        )
    if approval is None and decision == "ask" and PROMOTED_AT not in version.tags:
        raise NotPromoted(
            f"{name} waits for a person: the gate could not decide: {reasons} More test rows would; "
            "with promotion.approval: on_doubt or manual a person may."
        )


def expected_champion(connection: Connection, version: "ModelVersion", expected: Expected) -> int | None:
    """The champion, as a number, that `expected` means for this version."""
    if expected == "compared":
        compared = version.tags.get(COMPARED_WITH)
        if compared is not None:
            return None if compared == "none" else int(compared)
        expected = "current"  # registered without saying; the champion of this moment is the best that is known
    if expected == "current":
        return journal.read_state(connection, version.name).aliases.get(CHAMPION)
    return expected


def _make_champion(connection: Connection, version: "ModelVersion", wanted: _Wanted, lock: SharedLock | None) -> dict[str, Any]:
    task, number = version.name, int(version.version)
    with tempfile.TemporaryDirectory() as folder:
        download_bundle(root=connection.root, task=task, version=number, destination=Path(folder) / "bundle")
    for attempt in range(ATTEMPTS):
        try:
            with promotion_lock(connection, task, lock) as held:
                return _commit(connection, version, wanted, held)
        except _Busy:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)  # two that saw each other must not meet again
    raise AssertionError("the last attempt returns or raises")


def _commit(connection: Connection, version: "ModelVersion", wanted: _Wanted, held: frozenset[str]) -> dict[str, Any]:
    task, number = version.name, int(version.version)
    state = settle(connection, task, held)
    champion = state.aliases.get(CHAMPION)
    record = {"task": task, "version": number, "previous_champion": champion, "already_champion": champion == number}
    if champion == number:
        return record
    _check_champion(task, number, champion, wanted.expected)
    intent = journal.append(connection.root, INTENT, _intent(version, wanted, state, held))
    journal.announce(connection, intent)
    _check_alone(connection, intent, wanted)
    connection.client.set_registered_model_alias(task, CHAMPION, str(number))  # the commit point
    found = journal.read_state(connection, task).aliases.get(CHAMPION)
    if found != number:
        _close(connection, ABORTED, intent)
        raise RegistryError(
            f"{task}: champion was set to version {number} and reads back as {found}: something else than promptmill moved it. Promote again."
        )
    _close(connection, DONE, intent)
    return record


def _intent(version: "ModelVersion", wanted: _Wanted, state: State, held: frozenset[str]) -> Entry:
    evidence = {name.rpartition(".")[2]: version.tags.get(name) for name in (GATE_DECISION, GATE_SHA256, MANIFEST_SHA256)}
    return {
        "id": journal.new_id(),
        "sequence": state.sequence + 1,
        "action": wanted.action,
        "task": version.name,
        "version": int(version.version),
        "previous_champion": state.aliases.get(CHAMPION),
        **evidence,
        "run_id": version.run_id,
        "by": wanted.by,
        "reason": wanted.reason,
        "approval": wanted.approval,
        "locks": sorted(held),
    }


def _check_champion(task: str, version: int, champion: int | None, expected: int | None) -> None:
    if champion != expected:
        now, before = ("no champion" if number is None else f"version {number}" for number in (champion, expected))
        raise ChampionChanged(
            f"{task} version {version} was compared with {before}, and champion is {now} by now. Compare again: `promptmill run {task}`."
        )


def _check_alone(connection: Connection, intent: Entry, wanted: _Wanted) -> None:
    """Look again now that others can see the intent: whoever announced one, or ended, since the first look is found here.

    Two processes that share no lock may both find each other and both stand back; at most one can find itself alone.
    """
    task = intent["task"]
    state = journal.read_state(connection, task)
    try:
        for other, found in state.under_way.items():
            if other != intent["id"]:
                raise _Busy(_under_way(found))
        _check_champion(task, intent["version"], state.aliases.get(CHAMPION), wanted.expected)
        if state.sequence != intent["sequence"] - 1:
            raise _Busy(f"Another machine has just promoted a version of {task}. Try again.")
    except (_Busy, ChampionChanged):
        _close(connection, ABORTED, intent)
        raise


def _under_way(intent: Entry) -> str:
    return (
        f"Another machine began to promote {intent['task']} version {intent['version']} at {intent['at']} and has not ended. "
        "Try again when it has; a dead one is taken for ended after 10 minutes."
    )


def _close(connection: Connection, event: str, intent: Entry) -> None:
    """Tag the version and end the intent, here and in the registry. A rollback is no promotion: it leaves the tag of the first one.

    `done` stays done whatever is asked, and overrules the `aborted` of somebody who took a slow process for dead: the alias has moved.
    """
    if event == DONE and intent["action"] == "promote":
        connection.client.set_model_version_tag(intent["task"], str(intent["version"]), PROMOTED_AT, journal.now())
    local = journal.read_journal(root=connection.root, task=intent["task"])
    written = {entry["event"]: entry for entry in local if entry["id"] == intent["id"]}
    journal.publish(connection, written.get(DONE) or written.get(event) or journal.append(connection.root, event, intent))


def _close_forgotten(connection: Connection, intent: Entry) -> None:
    """Close an intent that only this workspace's file knows: another machine closed it, or it was never announced and moved nothing."""
    version = find_version(connection, intent["task"], intent["version"])
    known = next((entry for entry in journal.published(version) if entry["id"] == intent["id"]), None)
    if known is not None:
        journal.append(connection.root, known["event"], intent)
    elif "locks" not in intent:  # a promptmill that announced nothing: the alias decides, as it did there
        state = journal.read_state(connection, intent["task"])
        _close(connection, DONE if state.aliases.get(CHAMPION) == intent["version"] else ABORTED, intent)
    else:
        _close(connection, ABORTED, intent)


def _earlier_champion(connection: Connection, task: str, champion: int) -> int:
    known = [entry for entry in promotions(connection, task) if entry["event"] == DONE]
    for entry in reversed(known):
        if entry["action"] == "promote" and entry["version"] == champion:
            earlier = entry["previous_champion"]
            break
    else:
        earlier = None
    if earlier is None:
        raise RegistryError(
            f"{task} has had no champion before version {champion}, so there is nothing to roll back to. Promote another version."
        )
    return earlier


def _former_champion(connection: Connection, task: str, version: int) -> int:
    if PROMOTED_AT not in find_version(connection, task, version).tags:
        raise RegistryError(f"{task} version {version} never was champion, so this is no rollback. Use `promptmill promote {task}`.")
    return version
