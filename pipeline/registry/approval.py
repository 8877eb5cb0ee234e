"""Approval by a person: a version waits with a request, and an answer names who, when, which manifest and why.

Request and answer are tags of the version, so nothing has to run while a person thinks, and any machine that reaches the registry can
answer. An answer is for exactly the bundle and the champion that the request names: what changed since has to be looked at again.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ApprovalError, ChampionChanged, NotPromoted
from pipeline.registry import journal, promotion
from pipeline.registry.connection import Connection, connect, explained
from pipeline.registry.locks import SharedLock, person
from pipeline.registry.registry import (
    APPROVAL,
    APPROVAL_REQUEST,
    CHAMPION,
    GATE_DECISION,
    GATE_REASONS,
    GATE_SHA256,
    MANIFEST_SHA256,
    find_version,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REASON_CHARACTERS = 2000
SHORTEST_MANIFEST = 12

_AGAIN = "Run the same command again."


def needs_approval(*, approval: str, decision: str) -> bool:
    """Whether a version with this gate decision waits for a person, by `promotion.approval` (auto, manual or on_doubt)."""
    return decision in {"auto": (), "on_doubt": ("ask",), "manual": ("promote", "ask")}[approval]


def request_approval(*, root: Path, task: str, version: int, expected: promotion.Expected = "compared") -> dict[str, Any]:
    """Write down that `version` waits for a person, once for each champion it is compared with; returns the request {version, manifest_sha256, gate_sha256, champion, reasons, at}.

    `champion` is the one the version was compared with (`expected` as in `promotion.promote`). Raises NotPromoted when the gate refused
    the version, RegistryError when MLflow refuses.
    """
    connection = connect(root=root)
    with explained(f"Requesting approval of {task} version {version} in {connection.uri}", _AGAIN):
        found = find_version(connection, task, version)
        _check_decision(found)
        known = request_of(found)
        champion = promotion.expected_champion(connection, found, expected)
        if known is not None and known["champion"] == champion:
            return known
        request = {
            "task": task,
            "version": version,
            "manifest_sha256": found.tags[MANIFEST_SHA256],
            "gate_sha256": found.tags.get(GATE_SHA256),
            "champion": champion,
            "reasons": [reason for reason in found.tags.get(GATE_REASONS, "").split("\n") if reason],
            "at": journal.now(),
        }
        connection.client.set_model_version_tag(task, str(version), APPROVAL_REQUEST, json.dumps(request, ensure_ascii=False))
    return request


def approve(
    *, root: Path, task: str, version: int, reason: str, by: str | None = None, manifest: str | None = None, lock: SharedLock | None = None
) -> dict[str, Any]:
    """Approve the waiting `version` and promote it; returns what `promotion.promote` returns.

    `manifest`: the sha256 of the manifest that was looked at, or its first 12 digits or more. Raises ApprovalError without a reason, when
    nothing waits, the version was rejected or the manifest is another; ChampionChanged when the champion is not the one of the request.
    """
    return _answer(root=root, task=task, version=version, approved=True, reason=reason, by=by, manifest=manifest, lock=lock)


def reject(*, root: Path, task: str, version: int, reason: str, by: str | None = None) -> dict[str, Any]:
    """Write down that a person refused the waiting `version`; it cannot be approved any more. Returns the answer; raises as `approve`."""
    return _answer(root=root, task=task, version=version, approved=False, reason=reason, by=by, manifest=None, lock=None)


def request_of(version: "ModelVersion") -> dict[str, Any] | None:
    """The request of a version, answered or not."""
    return _tag(version, APPROVAL_REQUEST)


def _answer(
    *, root: Path, task: str, version: int, approved: bool, reason: str, by: str | None, manifest: str | None, lock: SharedLock | None
) -> dict[str, Any]:
    reason = reason.strip()
    if not reason:
        raise ApprovalError(f"{task} version {version} was not answered: the reason is empty. Say why: --reason ...")
    connection = connect(root=root)
    with explained(f"Answering for {task} version {version} in {connection.uri}", _AGAIN):
        found = find_version(connection, task, version)
        request = _open_request(found)
        _check_manifest(found, request, manifest)
        who = by or person()
        answer = {
            "approved": approved,
            "by": who,
            "reason": reason[:REASON_CHARACTERS],
            "manifest_sha256": request["manifest_sha256"],
            "champion": request["champion"],
            "at": journal.now(),
        }
        if not approved:
            return _record(connection, found, answer)
        _check_up_to_date(connection, request)
        # The alias moves first: an answer that was written down and not carried out would be neither.
        done = promotion.promote(
            root=root, task=task, version=version, expected=request["champion"], by=who, reason=reason, approval=answer, lock=lock
        )
        _record(connection, found, answer)
        return done


def _record(connection: Connection, version: "ModelVersion", answer: dict[str, Any]) -> dict[str, Any]:
    connection.client.set_model_version_tag(version.name, str(version.version), APPROVAL, json.dumps(answer, ensure_ascii=False))
    return answer


def _open_request(version: "ModelVersion") -> dict[str, Any]:
    """The request that waits for an answer; an approval that a killed process left half done may be given again."""
    name = f"{version.name} version {version.version}"
    _check_decision(version)
    request, answer = request_of(version), _tag(version, APPROVAL)
    if request is None:
        raise ApprovalError(
            f"{name} does not wait for approval. `promptmill promote {version.name} {version.version}` promotes what the gate let pass."
        )
    if answer is not None:
        verb = "approved" if answer["approved"] else "rejected"
        raise ApprovalError(f"{name} was {verb} by {answer['by']} at {answer['at']}: {answer['reason']} There is nothing to answer.")
    return request


def _check_decision(version: "ModelVersion") -> None:
    decision = version.tags.get(GATE_DECISION)
    if decision not in ("promote", "ask"):
        reasons = " ".join(version.tags.get(GATE_REASONS, "").split("\n")) or "no reasons were recorded."
        raise NotPromoted(f"{version.name} version {version.version} was refused by the gate, which nobody can approve: {reasons}")


def _check_manifest(version: "ModelVersion", request: dict[str, Any], manifest: str | None) -> None:
    """The manifest looked at, the one of the request and the registered one must be the same; the files are verified by the promotion."""
    registered = version.tags[MANIFEST_SHA256]
    name = f"{version.name} version {version.version}"
    if request["manifest_sha256"] != registered:
        raise ApprovalError(
            f"{name} has the manifest {registered}, approval was requested for {request['manifest_sha256']}: the tag was altered. Register it again."
        )
    if manifest is not None and not (len(manifest) >= SHORTEST_MANIFEST and registered.startswith(manifest.lower())):
        raise ApprovalError(
            f"{name} has the manifest {registered}, the approval is for {manifest}. Look at the version again, and name at least "
            f"{SHORTEST_MANIFEST} digits."
        )


def _check_up_to_date(connection: Connection, request: dict[str, Any]) -> None:
    """Raise ChampionChanged early, before the bundle is downloaded; the promotion checks again when it holds the lock."""
    champion = journal.read_state(connection, request["task"]).aliases.get(CHAMPION)
    if champion not in (request["champion"], request["version"]):
        raise ChampionChanged(
            f"{request['task']} version {request['version']} was compared with {_name(request['champion'])}, and champion is {_name(champion)} by now: "
            f"the approval is out of date. Compare again: `promptmill run {request['task']}`."
        )


def _name(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"


def _tag(version: "ModelVersion", name: str) -> dict[str, Any] | None:
    return json.loads(version.tags[name]) if name in version.tags else None


def is_waiting(shown: dict[str, Any]) -> bool:
    """Whether a version as `registry.show` gives it waits for an answer."""
    return shown["approval_request"] is not None and shown["approval"] is None and shown["promoted_at"] is None
