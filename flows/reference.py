"""Whether what the registry said is still so. DVC sees neither that another version became champion nor that one was registered."""

from pathlib import Path
from typing import Any

from flows.dvc_state import LOCK_FILE
from flows.terminal import say
from flows.workspace import changed_stages
from pipeline.errors import RegistryUnreachable, StageInputError
from pipeline.layout import Layout
from pipeline.records import read_json
from pipeline.registry.reference import CHAMPION_FILE, champion_version, registered_attempts
from pipeline.registry.tracking import lock_entries, stage_key

STAGE = "reference"


def reference_is_stale(root: Path, task: str, *, forced: bool = False) -> bool:
    """Whether the stage `reference` must run again although DVC would not: there is another champion, or there were more attempts.

    Not while the champion was made from the outputs as they are now: it was compared with its predecessor, and comparing it with
    itself would make a new version of the same prompt, which would become champion, and so on. Nor for the attempts alone, of which
    each run makes one. With `forced` another stage will run although DVC sees no change, so the outputs will be others.
    """
    try:
        number, key = champion_version(root=root, task=task) or (None, None)
    except RegistryUnreachable as error:
        say(f"{error} The reference of the last run is kept.")
        return False
    layout = Layout(root, task)
    if number == _record(layout.path("champion") / CHAMPION_FILE).get("version"):
        recorded = _record(layout.path("attempts"))
        return _more_attempts(root, task, recorded) and (forced or bool(changed_stages(root, task)))
    return (
        forced
        or key is None
        or bool(changed_stages(root, task))
        or key != stage_key(entries=lock_entries(lock=root / LOCK_FILE, task=task))
    )


def _more_attempts(root: Path, task: str, recorded: dict[str, Any]) -> bool:
    """Whether versions were registered since; another test split makes DVC run the stage by itself."""
    champion, test_sha256 = recorded.get("champion"), recorded.get("test_sha256")
    return bool(recorded) and registered_attempts(root=root, task=task, champion=champion, test_sha256=str(test_sha256)) != recorded


def _record(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except StageInputError:
        return {}  # absent or broken: DVC notices, and runs the stage
