"""A version made again from what was recorded about it, one comparison after the other: the functions behind the flow `reproduce`."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pipeline
from flows.reproduction_workspace import Clone, NotTheSame, bring_data, check_code, make_clone, recorded_output
from flows.settings import state_folder
from pipeline.errors import PromptmillError
from pipeline.layout import FILES, PARAMS_FILE
from pipeline.manifest import verify_bundle
from pipeline.params_file import merge, read_yaml
from pipeline.records import read_jsonl, read_parquet, sha256_file
from pipeline.registry.evidence import Evidence, fetch_evidence
from pipeline.reproduction import (
    LINES,
    Line,
    base_model_line,
    failed_line,
    first_difference,
    largest_loss_difference,
    overall,
    params_line,
    predictions_line,
    same_or_differs,
    tensor_line,
)

FOLDER = "reproductions"


@dataclass
class Attempt:
    """One reproduction under way: which version, where, and what was found so far."""

    root: Path
    task: str
    version: int
    base: Path
    lines: list[Line] = field(default_factory=list[Line])
    known: Evidence | None = None
    clone: Clone | None = None
    here: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def exact(self) -> bool:
        """Whether machine and libraries are the recorded ones, so that every bit has to come out the same."""
        return all(line.verdict == "OK" for line in self.lines)

    @property
    def evidence(self) -> Evidence:
        """What the registry keeps of the version."""
        assert self.known is not None
        return self.known

    @property
    def workspace(self) -> Clone:
        """The clone that the training runs in."""
        assert self.clone is not None
        return self.clone

    def path(self, name: str) -> Path:
        """A file of the layout in the clone."""
        return self.workspace.folder / FILES[name].format(task=self.task).rstrip("/")


def begin(root: Path, task: str, version: int) -> Attempt:
    """An attempt with an empty folder of its own below `.promptmill/reproductions`."""
    parent = state_folder(root) / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    return Attempt(root, task, version, Path(tempfile.mkdtemp(prefix=f"{task}-{version}-", dir=parent)))


def compare(attempt: Attempt, name: str) -> Line:
    """Make the comparison `name` of LINES; what is known to go wrong is a line that FAILED, with the error's own words."""
    try:
        line = COMPARISONS[name](attempt)
    except PromptmillError as error:
        line = Line(name, "FAILED", str(error))
    attempt.lines.append(line)
    return line


def finish(attempt: Attempt, *, keep: bool) -> dict[str, Any]:
    """The record of the attempt; its folder is removed unless it is to be kept."""
    verdict, failed = overall(attempt.lines), failed_line(attempt.lines)
    if not keep:
        shutil.rmtree(attempt.base, ignore_errors=True)
    return {
        "task": attempt.task,
        "version": attempt.version,
        "verdict": verdict,
        "failed_at": None if failed is None else failed.name,
        "lines": [{"name": line.name, "verdict": line.verdict, "sentence": line.sentence} for line in attempt.lines],
        "hardware": dict(attempt.here.get("hardware", {})),
        "libraries": dict(attempt.here.get("libraries", {})),
        "workspace": str(attempt.base) if keep else None,
    }


def reproduce_version(root: Path, task: str, version: int, *, keep: bool = False) -> dict[str, Any]:
    """All comparisons in order, up to the first that FAILED; returns the record."""
    attempt = begin(root, task, version)
    for name in LINES:
        if compare(attempt, name).verdict == "FAILED":
            break
    return finish(attempt, keep=keep)


def _manifest(attempt: Attempt) -> Line:
    attempt.known = fetch_evidence(root=attempt.root, task=attempt.task, version=attempt.version)
    files = len(attempt.evidence.manifest["files"])
    return Line("manifest", "OK", f"{files} files, dvc.lock, training log and diff are as registered")


def _code(attempt: Attempt) -> Line:
    evidence = attempt.evidence
    if evidence.commit is None:
        raise NotTheSame("No commit was recorded: the version was not made in a git checkout with a commit, so its code is not known.")
    attempt.clone = make_clone(
        root=attempt.root,
        base=attempt.base,
        task=attempt.task,
        commit=evidence.commit,
        diff=evidence.diff,
        manifest=evidence.manifest,
        asked={"tune": _section(_recorded_params(attempt), attempt.task, "tune")},
    )
    files = check_code(attempt.workspace, evidence.entries)
    changes = f" with the recorded diff of {len(evidence.diff)} bytes" if evidence.diff else ""
    return Line("code", "OK", f"commit {evidence.commit[:12]}{changes}: {files} files are those that were run")


def _params(attempt: Attempt) -> Line:
    return params_line(_recorded_params(attempt), read_yaml(attempt.workspace.folder / PARAMS_FILE))


def _data(attempt: Attempt) -> Line:
    evidence = attempt.evidence
    files = bring_data(attempt.workspace, evidence.entries, evidence.entries)
    for name in ("train", "validation"):
        found, expected = sha256_file(attempt.path(name)), evidence.manifest["data"][f"{name}_sha256"]
        if found != expected:
            raise NotTheSame(f"{attempt.path(name).name} has the sha256 {found}, the manifest says {expected}.")
    return Line("data", "OK", f"{len(files)} files are as recorded, train and validation by sha256 too")


def _base_model(attempt: Attempt) -> Line:
    evidence = attempt.evidence
    section = _section(_recorded_params(attempt), attempt.task, "base_model")
    question = {
        "base_model": dict(evidence.manifest["base_model"]),
        "asked": {name: section.get(name, "auto") for name in ("dtype", "attention")},
        "libraries": [name for name in evidence.manifest["libraries"] if name != "python"],
    }
    # This promptmill's own code looks: that of an old commit may know nothing of the question.
    here = Path(pipeline.__file__).parents[1]
    answer = attempt.workspace.run(["-m", "pipeline.surroundings"], "surroundings", stdin=json.dumps(question), code=here)
    attempt.here = json.loads(answer)
    return base_model_line(evidence.manifest["base_model"], attempt.here["base_model"])


def _libraries(attempt: Attempt) -> Line:
    return same_or_differs("libraries", attempt.evidence.manifest["libraries"], attempt.here["libraries"])


def _hardware(attempt: Attempt) -> Line:
    return same_or_differs("hardware", attempt.evidence.manifest["hardware"], attempt.here["hardware"])


def _training(attempt: Attempt) -> Line:
    attempt.workspace.run(["-m", "pipeline", "tune", "--task", attempt.task], "tune")
    recorded, repeated = attempt.evidence.train_log, read_jsonl(attempt.path("train_log"))
    made = verify_bundle(attempt.path("bundle"))
    unequal = [key for key in ("params_sha256", "data") if made[key] != attempt.evidence.manifest[key]]
    if unequal:
        raise NotTheSame(f"The repeated training had other {' and '.join(unequal)} than the recorded one, although its files are the same.")
    steps = sum(record.get("event") == "step" for record in repeated)
    difference = largest_loss_difference(recorded, repeated)
    return Line("training", "OK", f"{steps} steps, largest difference of a step's loss {0.0 if difference is None else difference:g} nats")


def _tensor(attempt: Attempt) -> Line:
    recorded, found = (manifest["soft_prompt"]["sha256"] for manifest in (attempt.evidence.manifest, verify_bundle(attempt.path("bundle"))))
    parted = first_difference(attempt.evidence.train_log, read_jsonl(attempt.path("train_log")))
    return tensor_line(recorded, found, exact=attempt.exact, parted=parted)


def _predictions(attempt: Attempt) -> Line:
    attempt.workspace.run(["-m", "pipeline", "score", "--task", attempt.task], "score")
    path = FILES["predictions"].format(task=attempt.task)
    before = attempt.base / "recorded" / Path(path).name
    for name in (path, f"{path}.sha256"):
        recorded_output(attempt.workspace, attempt.evidence.entries, name, before.with_name(Path(name).name))
    return predictions_line(read_parquet(before), read_parquet(attempt.path("predictions")), exact=attempt.exact)


def _recorded_params(attempt: Attempt) -> dict[str, Any]:
    """Dotted section -> value, as dvc.lock recorded the params of the two stages."""
    entries = attempt.evidence.entries
    return {
        name: value
        for stage in ("tune", "score")
        for name, value in entries[f"{stage}@{attempt.task}"].get("params", {}).get(PARAMS_FILE, {}).items()
    }


def _section(recorded: Mapping[str, Any], task: str, name: str) -> dict[str, Any]:
    return merge(recorded.get(f"defaults.{name}") or {}, recorded.get(f"tasks.{task}.{name}") or {})


COMPARISONS: Mapping[str, Callable[[Attempt], Line]] = {
    "manifest": _manifest,
    "code": _code,
    "params": _params,
    "data": _data,
    "base model": _base_model,
    "libraries": _libraries,
    "hardware": _hardware,
    "training": _training,
    "tensor": _tensor,
    "predictions": _predictions,
}
