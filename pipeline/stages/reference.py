"""Stage reference: the data profile of the champion, or of a chosen version, from the registry.

Like ingest this stage reads from outside, and DVC cannot see that the champion has changed: the flow runs it again when it has.
"""

from typing import Any

from pipeline.layout import Paths, find_root
from pipeline.params import TaskParams
from pipeline.records import replacing_folder
from pipeline.registry.reference import fetch_reference


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:  # noqa: ARG001 - the registry is its input
    """Write `reference`: a profile, or a record that says why there is none. Raises RegistryError, StageInputError."""
    with replacing_folder(outputs.reference) as folder:
        return fetch_reference(
            root=find_root(outputs.reference.parent), task=outputs.reference.name, against=params.reference.against, destination=folder
        )
