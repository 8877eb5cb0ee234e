"""Retention: which versions may go. Champions, past and present, and whatever anything still refers to stay."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.layout import PARAMS_FILE
from pipeline.params import load
from pipeline.registry import promotion
from pipeline.registry.connection import Connection, connect, explained
from pipeline.registry.journal import DONE
from pipeline.registry.locks import SharedLock, promotion_lock
from pipeline.registry.registry import APPROVAL, APPROVAL_REQUEST, COMPARED_WITH, MANIFEST_SHA256, PROMOTED_AT, aliases_of, versions_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Kept:
    """A version, and why it stays; no reason means that it may go."""

    version: int
    reasons: tuple[str, ...]


def prune(*, root: Path, task: str, keep: int, delete: bool, lock: SharedLock | None = None) -> list[Kept]:
    """Every version of `task`, newest first, with the reasons to keep it; with `delete` those without a reason are removed.

    Kept are the newest `keep`, versions with an alias, those that ever were champion (a rollback needs them), that a promotion in the
    journal names, that wait for approval, that a kept version or a run was compared with, that params.yaml names as reference, and those that promptmill
    did not register. The run of a removed version stays, with its figures and files. Raises RegistryError when MLflow refuses.
    """
    connection = connect(root=root)
    with (
        explained(f"Looking through the versions of {task} in {connection.uri}", "Run the same command again."),
        promotion_lock(connection, task, lock) as held,
    ):
        promotion.settle(connection, task, held)
        found = _judged(connection, task, keep)
        if delete:
            versions = {int(version.version): version for version in versions_of(connection, task)}
            for one in found:
                if not one.reasons:
                    _remove(connection, versions[one.version])
    return found


def _judged(connection: Connection, task: str, keep: int) -> list[Kept]:
    versions = versions_of(connection, task)
    newest = {int(version.version) for version in versions[len(versions) - keep :]} if keep else set[int]()
    aliases = aliases_of(connection, task)
    named = {
        entry[key] for entry in promotion.promotions(connection, task) if entry["event"] == DONE for key in ("version", "previous_champion")
    }
    referred = _referred_by_runs(connection, task) | _referred_by_params(connection.root, task)
    kept: list[Kept] = []
    for version in reversed(versions):
        number = int(version.version)
        reasons = [f"alias {alias}" for alias, target in sorted(aliases.items()) if target == number]
        reasons += ["among the newest"] if number in newest else []
        reasons += ["was champion"] if number in named or PROMOTED_AT in version.tags else []
        reasons += ["something was compared with it"] if number in referred else []
        reasons += list(_own_reasons(version))
        kept.append(Kept(number, tuple(reasons)))
    return kept


def _own_reasons(version: "ModelVersion") -> Iterator[str]:
    if MANIFEST_SHA256 not in version.tags:
        yield "promptmill did not register it"
    if APPROVAL_REQUEST in version.tags and APPROVAL not in version.tags:
        yield "waits for approval"


def _referred_by_runs(connection: Connection, task: str) -> set[int]:
    """The versions that versions or runs of the task were compared with."""
    found = {version.tags.get(COMPARED_WITH, "") for version in versions_of(connection, task)}
    experiment = connection.client.get_experiment_by_name(task)
    token: str | None = None
    while experiment is not None:
        page = connection.client.search_runs([experiment.experiment_id], page_token=token)
        found |= {run.data.tags.get(COMPARED_WITH, "") for run in page}
        token = page.token
        if not token:
            break
    return {int(number) for number in found if number.isdecimal()}


def _referred_by_params(root: Path, task: str) -> set[int]:
    """The version that params.yaml of this checkout names as reference of the drift checks."""
    params = load(root / PARAMS_FILE).get(task) if (root / PARAMS_FILE).is_file() else None
    against = params.reference.against if params else None
    return {against} if isinstance(against, int) else set()


def _remove(connection: Connection, version: "ModelVersion") -> None:
    """The version first: a model without a version is only space, a version without its model cannot be loaded."""
    connection.client.delete_model_version(version.name, str(version.version))
    if version.model_id:
        connection.client.delete_logged_model(version.model_id)
