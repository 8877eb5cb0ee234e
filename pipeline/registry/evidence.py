"""What the registry keeps about how a version was made, fetched and checked against the version's tags, and records of its reproductions.

MLflow checks no file it stores. The bundle is held by the sha256 of its manifest, dvc.lock by the stage key, the training log and everything
else that stages wrote by dvc.lock, and the diff of uncommitted changes by its own sha256.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError, StageInputError
from pipeline.layout import FILES
from pipeline.manifest import verify_bundle
from pipeline.records import read_jsonl, sha256_file, write_json
from pipeline.registry.connection import connect, explained, quiet
from pipeline.registry.registry import download_bundle, find_version
from pipeline.registry.tracking import CODE_DIFF, DIFF_SHA256, DIRTY, GIT_COMMIT, STAGE_KEY, lock_of_run, stage_key

REPRODUCED, REPRODUCED_AT, REPRODUCTION_SHA256 = "promptmill.reproduced", "promptmill.reproduced_at", "promptmill.reproduction_sha256"
REPRODUCTIONS_FOLDER = "reproductions"


@dataclass(frozen=True)
class Evidence:
    """How a version was made: its manifest, the task's entries of dvc.lock, the training log, the commit and the diff from it."""

    manifest: Mapping[str, Any]
    entries: Mapping[str, Any]
    train_log: list[dict[str, Any]]
    commit: str | None
    diff: bytes


def fetch_evidence(*, root: Path, task: str, version: int) -> Evidence:
    """The evidence of a version, verified; raises BundleError naming what was altered in the store, RegistryError for an unknown version."""
    connection = connect(root=root)
    with (
        explained(
            f"Fetching what {task} version {version} was made from in {connection.uri}", "Check that the store still holds its files."
        ),
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        found = find_version(connection, task, version)
        bundle = download_bundle(root=root, task=task, version=version, destination=folder / "bundle")
        log = Path(FILES["train_log"].format(task=task)).name
        wanted = ["dvc.lock", log, *([CODE_DIFF] if found.tags.get(DIRTY) == "true" else [])]
        with quiet():
            files = {name: Path(connection.client.download_artifacts(str(found.run_id), name, str(folder))) for name in wanted}
        entries = _entries(files["dvc.lock"], task, found.tags.get(STAGE_KEY))
        _check_log(files[log], entries, task)
        diff = _diff(files.get(CODE_DIFF), found.tags.get(DIFF_SHA256))
        return Evidence(verify_bundle(bundle), entries, read_jsonl(files[log]), found.tags.get(GIT_COMMIT), diff)


def store_reproduction(*, root: Path, task: str, version: int, record: Mapping[str, Any]) -> str:
    """Keep the record of a reproduction beside the version: a file of its run, and tags with verdict, time and the file's sha256.

    Returns the file's path among the run's artifacts. Raises RegistryError when MLflow refuses.
    """
    connection = connect(root=root)
    now = datetime.now(UTC)
    with explained(f"Recording the reproduction of {task} version {version} in {connection.uri}", "Run the same command again."):
        found = find_version(connection, task, version)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"version-{version}-{now:%Y%m%dT%H%M%S%f}.json"
            write_json(path, record)
            connection.client.log_artifact(str(found.run_id), str(path), artifact_path=REPRODUCTIONS_FOLDER)
            tags = {REPRODUCED: record["verdict"], REPRODUCED_AT: now.isoformat(timespec="seconds"), REPRODUCTION_SHA256: sha256_file(path)}
        for name, value in tags.items():
            connection.client.set_model_version_tag(task, str(version), name, value)
    return f"{REPRODUCTIONS_FOLDER}/{path.name}"


def _entries(lock: Path, task: str, expected: str | None) -> dict[str, Any]:
    try:
        entries = lock_of_run(lock=lock, task=task)
    except StageInputError as error:
        raise BundleError(f"dvc.lock of the run was altered in the store: {error}") from error
    found = stage_key(entries=entries)
    if found != expected:
        raise BundleError(f"dvc.lock of the run was altered in the store: its stage key is {found}, the version's tag says {expected}.")
    return entries


def _check_log(path: Path, entries: Mapping[str, Any], task: str) -> None:
    expected = {out["path"]: out["md5"] for out in entries[f"tune@{task}"]["outs"]}[FILES["train_log"].format(task=task)]
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != expected:
        raise BundleError(f"{path.name} of the run was altered in the store: its md5 is {found}, dvc.lock says {expected}.")


def _diff(path: Path | None, expected: str | None) -> bytes:
    content = b"" if path is None else path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if path is not None and found != expected:
        raise BundleError(f"{CODE_DIFF} of the run was altered in the store: its sha256 is {found}, the version's tag says {expected}.")
    return content
