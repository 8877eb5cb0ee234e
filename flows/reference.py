"""Whether the reference of the drift checks is still the champion. DVC cannot see that another version became champion."""

from pathlib import Path

from flows.terminal import say
from flows.workspace import LOCK_FILE, changed_stages
from pipeline.data.profiles import REFERENCE_FILE
from pipeline.errors import RegistryUnreachable, StageInputError
from pipeline.layout import PARAMS_FILE, Layout
from pipeline.params import load_task
from pipeline.records import read_json
from pipeline.registry.reference import champion_version
from pipeline.registry.registry import CHAMPION
from pipeline.registry.tracking import lock_entries, stage_key

STAGE = "reference"


def reference_is_stale(root: Path, task: str, *, forced: bool = False) -> bool:
    """Whether the stage `reference` must run again although DVC would not: it holds another version than the champion.

    Not while the champion was made from the outputs as they are now: it was compared with its predecessor, and comparing it with
    itself would make a new version of the same prompt, which would become champion, and so on. With `forced` another stage will run although DVC sees no change, so the outputs will be others.
    """
    if load_task(root / PARAMS_FILE, task).reference.against != CHAMPION:
        return False
    try:
        number, key = champion_version(root=root, task=task) or (None, None)
    except RegistryUnreachable as error:
        say(f"{error} The reference of the last run is kept.")
        return False
    if number == _recorded_version(root, task):
        return False
    return (
        forced
        or key is None
        or bool(changed_stages(root, task))
        or key != stage_key(entries=lock_entries(lock=root / LOCK_FILE, task=task))
    )


def _recorded_version(root: Path, task: str) -> int | None:
    try:
        return read_json(Layout(root, task).path(STAGE) / REFERENCE_FILE).get("version")
    except StageInputError:
        return None  # absent or broken: DVC notices, and runs the stage
