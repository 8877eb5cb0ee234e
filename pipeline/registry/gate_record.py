"""What a version's gate looked at: its gate record as the run holds it, verified against the sha256 that the version was registered with."""

import json
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import RegistryError
from pipeline.layout import FILES
from pipeline.records import sha256_file
from pipeline.registry.connection import connect, explained, quiet
from pipeline.registry.registry import show


def fetch_gate(*, root: Path, task: str, selector: str | int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A version (as `registry.show` describes it) and its gate record.

    Raises RegistryError for an unknown version, a store that does not hold the record any more, or one that was altered in it.
    """
    version = show(root=root, task=task, selector=selector)
    whose = f"{task} version {version['version']}"
    name = Path(FILES["gate"].format(task=task)).name
    if version["run_id"] is None:
        raise RegistryError(f"{whose} names no run, so its gate record cannot be found. Register it again: `promptmill run {task}`.")
    connection = connect(root=root)
    with (
        explained(
            f"Fetching the gate record of {whose} from {connection.uri}", "Check that the store still holds its files and try again."
        ),
        tempfile.TemporaryDirectory() as folder,
        quiet(),
    ):
        path = Path(connection.client.download_artifacts(version["run_id"], name, folder))
        found = sha256_file(path)
        if found != version["gate_sha256"]:
            raise RegistryError(
                f"The gate record of {whose} has sha256 {found}, registered was {version['gate_sha256']}: it was altered in the store. "
                "Restore it from a backup; the version's own reasons are in `promptmill show`."
            )
        return version, json.loads(path.read_text(encoding="utf-8"))
