"""The data profile of a registered version: which version is meant, and its files, verified.

Every recorded run holds the profile of the data that its prompt was trained on, and the sha256 of the profile's record as a tag; the
record holds the sha256 of the arrays. So a profile that was altered in the store is refused, by name.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.profiles import ARRAYS_FILE, RECORD_FILE, read_profile, write_reference
from pipeline.errors import RegistryError, StageInputError
from pipeline.layout import FILES
from pipeline.manifest import manifest_sha256
from pipeline.records import sha256_file, write_json
from pipeline.registry.connection import Connection, connect, explained, has_store, quiet
from pipeline.registry.registry import CHAMPION, aliases_of, download_bundle, find_version, list_versions
from pipeline.registry.tracking import DATA_PROFILE_SHA256, PROFILE_FOLDER, STAGE_KEY

CHAMPION_FILE, BUNDLE_FOLDER = "champion.json", "bundle"

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def fetch_reference(*, root: Path, task: str, against: str | int, destination: Path) -> dict[str, Any]:
    """Write the profile of the champion, or of the version `against`, to the folder `destination`; returns its reference record.

    Without a champion, and for a version that was recorded without a profile, the record says so and there is no profile.
    Raises RegistryError for an unknown version, a store that does not answer, or a profile that was altered in it.
    """
    if against == CHAMPION and not has_store(root=root):
        return write_reference(destination, asked=against, version=None, reason="no champion yet")
    connection = connect(root=root)
    with explained(
        f"Fetching the data profile of {task} from {connection.uri}", "Check that the store still holds its files and try again."
    ):
        number = _champion(connection, task) if against == CHAMPION else int(against)
        if number is None:
            return write_reference(destination, asked=against, version=None, reason="no champion yet")
        version = find_version(connection, task, number)
        if not _download(connection, version, destination):
            reason = f"version {number} was recorded without a data profile"
            return write_reference(destination, asked=against, version=None, reason=reason)
    return write_reference(destination, asked=against, version=number, reason=None)


def fetch_champion(*, root: Path, task: str, destination: Path) -> dict[str, Any]:
    """Write the champion's verified bundle, and a record of it, to the folder `destination`; returns {version, manifest_sha256, reason}.

    Without a champion the record says so (`version` null and the `reason`) and there is no bundle. Raises RegistryError, and BundleError
    when the stored files are not those that were registered.
    """
    found = champion_version(root=root, task=task)
    record: dict[str, Any] = {"version": None, "manifest_sha256": None, "reason": "no champion yet"}
    if found is not None:
        bundle = download_bundle(root=root, task=task, version=found[0], destination=destination / BUNDLE_FOLDER)
        record = {"version": found[0], "manifest_sha256": manifest_sha256(bundle), "reason": None}
    write_json(destination / CHAMPION_FILE, record)
    return record


def registered_attempts(*, root: Path, task: str, champion: int | None, test_sha256: str) -> dict[str, Any]:
    """The distinct bundles registered after the version `champion` that were measured on the test split of this sha256.

    Returns {task, champion, test_sha256, registered: list of {version, manifest_sha256}, by version}; a bundle that was registered twice
    is listed with its first version, the champion's own not at all. Without a champion nothing was tried against one.
    """
    record: dict[str, Any] = {"task": task, "champion": champion, "test_sha256": test_sha256, "registered": []}
    if champion is None:
        return record
    versions = sorted(list_versions(root=root, task=task), key=lambda version: int(version["version"]))
    seen = {version["manifest_sha256"] for version in versions if version["version"] == champion}
    for version in versions:
        sha256 = version["manifest_sha256"]
        if version["version"] > champion and version["data"].get("test_sha256") == test_sha256 and sha256 not in seen:
            seen.add(sha256)
            record["registered"].append({"version": version["version"], "manifest_sha256": sha256})
    return record


def champion_version(*, root: Path, task: str) -> tuple[int, str | None] | None:
    """The champion's number and the stage key it was made with, or None when there is no champion; raises RegistryError."""
    if not has_store(root=root):
        return None
    connection = connect(root=root)
    with explained(f"Looking for the champion of {task} in {connection.uri}", "Try again."):
        number = _champion(connection, task)
        return None if number is None else (number, find_version(connection, task, number).tags.get(STAGE_KEY))


def _champion(connection: Connection, task: str) -> int | None:
    if not connection.client.search_registered_models(f"name = '{task}'"):
        return None
    return aliases_of(connection, task).get(CHAMPION)


def _download(connection: Connection, version: "ModelVersion", destination: Path) -> bool:
    """Copy a version's profile to `destination`, verified; False when its run holds none."""
    run = connection.client.get_run(str(version.run_id))
    expected = run.data.tags.get(DATA_PROFILE_SHA256)
    if expected is None:
        return False
    arrays = Path(FILES["profile_arrays"].format(task=version.name)).name
    with tempfile.TemporaryDirectory() as folder, quiet():
        for name, target in ((RECORD_FILE, RECORD_FILE), (arrays, ARRAYS_FILE)):
            fetched = connection.client.download_artifacts(run.info.run_id, f"{PROFILE_FOLDER}/{name}", folder)
            shutil.copyfile(fetched, destination / target)
    _verify(destination, expected, f"{version.name} version {version.version}")
    return True


def _verify(folder: Path, expected: str, whose: str) -> None:
    found = sha256_file(folder / RECORD_FILE)
    if found != expected:
        raise RegistryError(
            f"{RECORD_FILE} of {whose} has sha256 {found}, recorded was {expected}: it was altered in the store. "
            "Restore it from a backup, or compare with another version: reference.against."
        )
    try:
        read_profile(record=folder / RECORD_FILE, arrays=folder / ARRAYS_FILE)
    except StageInputError as error:
        raise RegistryError(
            f"The data profile of {whose} cannot be used as it came from the store: {error} "
            "Restore it from a backup, or compare with another version: reference.against."
        ) from error
