"""What a flow and a worker tell each other about a stage. All of it is text in Prefect's database, so it holds hashes and params, and no row of data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.dvc_state import LOCK_FILE
from flows.stage_process import Outcome
from flows.workspace import stage_address
from pipeline.dvc_file import tracked_paths
from pipeline.errors import StageFailed, WorkspaceError
from pipeline.layout import PARAMS_FILE, STAGES, Layout, stage_named
from pipeline.lineage import code_identity
from pipeline.params_file import merge, read_yaml
from pipeline.registry.tracking import read_lock

FLOW_NAME = "run-stage"
_FENCE = "```"


@dataclass(frozen=True)
class StageOrder:
    """One stage of one task for a worker: the commit it runs at, the params sections it depends on, its inputs, and the dvc.lock entries that made them.

    The paths come from the flow's commit: the worker may have another version of promptmill installed, with another table of files.
    """

    task: str
    stage: str
    commit: str
    params: Mapping[str, Any]
    inputs: Sequence[str]
    entries: Mapping[str, Any]
    checkpoints: bool
    force: bool

    def parameters(self) -> dict[str, Any]:
        """The parameters of the flow run."""
        return asdict(self)

    def sections_of(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The sections of the order as a params file has them."""
        return sections(document, self.task, tuple(self.params))


@dataclass(frozen=True)
class StageAnswer:
    """What a worker made: the stage's dvc.lock entry, the sha256 of every file it wrote, how, in how many seconds, and on which machine."""

    entry: Mapping[str, Any]
    sha256: Mapping[str, str]
    outcome: Outcome
    seconds: float
    machine: str

    @property
    def outputs(self) -> list[str]:
        """The paths of what the stage wrote, as its lock entry lists them."""
        return entry_outputs(self.entry)

    def markdown(self) -> str:
        """The answer as an artifact that people can read, too."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        return f"{self.outcome} on {self.machine} in {self.seconds:.1f} s; {len(self.sha256)} files.\n\n{_FENCE}json\n{text}\n{_FENCE}\n"

    @classmethod
    def of_markdown(cls, text: str) -> "StageAnswer":
        """Undo `markdown`; raises StageFailed when the text is not one."""
        try:
            return cls(**json.loads(text.split(f"{_FENCE}json\n", 1)[1].rsplit(f"\n{_FENCE}", 1)[0]))
        except (IndexError, ValueError, TypeError) as error:
            raise StageFailed(
                f"The worker's answer is not one ({error!r}). It may have another version of promptmill: install the same, and run again."
            ) from error


def sections(document: Mapping[str, Any], task: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Params sections of a task, merged, as the file says them."""
    of_task = document["tasks"].get(task, {})
    return {name: merge(document["defaults"].get(name) or {}, of_task.get(name) or {}) for name in names}


def make_order(root: Path, task: str, stage: str, *, checkpoints: bool, force: bool) -> StageOrder:
    """The order for a stage of the checkout `root`; raises WorkspaceError when its code or params are not committed."""
    code = code_identity(root)
    if code["commit"] is None:
        raise WorkspaceError(
            f"{root} has no commit, and a worker runs stage {stage} at one. Commit, and push where the worker fetches from."
        )
    if code["dirty"]:
        raise WorkspaceError(
            f"{root} has uncommitted changes, and a worker runs stage {stage} at the commit {code['commit'][:12]}, which lacks them (`git diff HEAD` shows them). "
            f"Commit and push them, or set execution.{stage}: local."
        )
    names = stage_named(stage).sections
    inputs = input_paths(task, stage)
    entries = {name: entry for name, entry in task_entries(root, task).items() if set(inputs) & set(entry_outputs(entry))}
    document = read_yaml(root / PARAMS_FILE)
    return StageOrder(task, stage, code["commit"], sections(document, task, names), inputs, entries, checkpoints, force)


def input_paths(task: str, stage: str) -> list[str]:
    """What the stage reads of what earlier stages wrote, from the root."""
    return list(tracked_paths(stage_named(stage).inputs, task))


def entry_outputs(entry: Mapping[str, Any]) -> list[str]:
    """The paths of the outputs that a dvc.lock entry lists."""
    return [str(out["path"]) for out in entry.get("outs", ())]


def task_entries(root: Path, task: str) -> dict[str, Any]:
    """The entries of dvc.lock of the task's stages that have run."""
    known = read_lock(root / LOCK_FILE)
    return {name: known[name] for stage in STAGES if (name := stage_address(stage.name, task)) in known}


def scratch(root: Path, task: str, stage: str) -> Path:
    """Where the stage keeps its checkpoints."""
    return Layout(root, task).outputs(stage_named(stage)).scratch
