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
from pipeline.records import sha256_file
from pipeline.registry.connection import Connection, connect, explained, has_store, quiet
from pipeline.registry.registry import CHAMPION, aliases_of, find_version
from pipeline.registry.tracking import DATA_PROFILE_SHA256, PROFILE_FOLDER, STAGE_KEY

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
