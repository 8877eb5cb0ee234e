"""Stage reference: what the registry knows that this run is compared with: a version's data profile, the champion, earlier attempts.

Like ingest this stage reads from outside, and DVC cannot see that the champion has changed: the flow runs it again when it has.
"""

from typing import Any

from pipeline.layout import Paths, find_root
from pipeline.params import TaskParams
from pipeline.records import read_json, replacing_folder, write_json
from pipeline.registry.reference import fetch_champion, fetch_reference, registered_attempts


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `reference` (a profile, or why there is none), `champion` (its bundle, or why there is none) and `attempts`.

    Raises RegistryError, BundleError when the champion's stored files are not the registered ones, StageInputError.
    """
    root, task = find_root(outputs.reference.parent), outputs.reference.name
    test_sha256 = str(read_json(inputs.split_report)["splits"]["test"]["sha256"])
    with replacing_folder(outputs.champion) as folder:
        champion = fetch_champion(root=root, task=task, destination=folder)
    write_json(outputs.attempts, registered_attempts(root=root, task=task, champion=champion["version"], test_sha256=test_sha256))
    with replacing_folder(outputs.reference) as folder:
        return fetch_reference(root=root, task=task, against=params.reference.against, destination=folder)
