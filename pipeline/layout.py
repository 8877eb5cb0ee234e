"""Where every file of a task lies, and which stage reads and writes it.

This table, `dvc.yaml`, `params.yaml` and the typed params describe one pipeline; contract tests hold them equal.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import WorkspaceError

PARAMS_FILE = "params.yaml"

# A task's name becomes part of paths, of MLflow's and DVC's names, and of commands. No dot: DVC would read tasks.a.b.tune as a path and track nothing.
TASK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
TEMPLATE_SUFFIX = "-template"  # MLflow keeps a task's template beside its versions, and the two share one set of names
TASK_NAME_RULE = "a task name is 1 to 64 of a-z 0-9 _ - and starts with a letter"

# Names of the files and folders of a task; "{task}" is replaced. A trailing slash marks a folder.
FILES: Mapping[str, str] = {
    "raw": "data/raw/{task}.parquet",
    "ingest_report": "reports/{task}/ingest.json",
    "accepted": "data/validated/{task}/accepted.parquet",
    "quarantined": "data/validated/{task}/quarantined.parquet",
    "data_report": "reports/{task}/data.json",
    "data_docs": "reports/{task}/data_docs/",
    "train": "data/splits/{task}/train.parquet",
    "validation": "data/splits/{task}/validation.parquet",
    "test": "data/splits/{task}/test.parquet",
    "set_aside": "data/splits/{task}/set_aside.parquet",
    "split_report": "reports/{task}/split.json",
    "leakage": "reports/{task}/leakage.json",
    "data_profile": "reports/{task}/data_profile.json",
    "profile_arrays": "data/profiles/{task}.safetensors",
    "reference": "data/reference/{task}/",
    "champion": "data/champion/{task}/",
    "attempts": "reports/{task}/attempts.json",
    "drift": "reports/{task}/drift.json",
    "bundle": "prompts/{task}/",
    "train_log": "reports/{task}/train_log.jsonl",
    "lora": "data/lora/{task}/",
    "virtual_tokens": "reports/{task}/virtual_tokens.json",
    "predictions": "data/predictions/{task}.parquet",
    "score_report": "reports/{task}/score.json",
    "champion_predictions": "data/predictions/{task}_champion.parquet",
    "champion_report": "reports/{task}/champion.json",
    "comparison": "reports/{task}/comparison.json",
    "metrics": "reports/{task}/metrics.json",
    "plots": "reports/{task}/plots/",
    "fairness": "reports/{task}/fairness.json",
    "behaviour_predictions": "data/behaviour/{task}/answers.parquet",
    "bias_scores": "data/behaviour/{task}/bias.parquet",
    "probe_report": "reports/{task}/probe.json",
    "behaviour": "reports/{task}/behaviour.json",
    "gate": "reports/{task}/gate.json",
    "card": "reports/{task}/card.html",
    "model_card": "reports/{task}/MODEL_CARD.md",
    "pictures": "reports/{task}/pictures/",
}


@dataclass(frozen=True)
class Stage:
    """One DVC stage: the params sections it depends on, the files it reads and the files it writes (names in FILES)."""

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# Sections of params.yaml that no stage depends on: what the flows do with a version, when they run, and where.
FLOW_SECTIONS = ("promotion", "deployment", "execution")

STAGES: tuple[Stage, ...] = (
    Stage("ingest", ("ingest",), (), ("raw", "ingest_report")),
    Stage(
        "validate",
        ("validate", "prompt", "base_model", "tune"),
        ("raw",),
        ("accepted", "quarantined", "data_report", "data_docs"),
    ),
    Stage("split", ("split", "prompt"), ("accepted",), ("train", "validation", "test", "set_aside", "split_report", "leakage")),
    Stage("profile", ("profile", "base_model", "assess_fairness"), ("train",), ("data_profile", "profile_arrays")),
    Stage("reference", ("reference",), ("split_report",), ("reference", "champion", "attempts")),
    Stage("drift", ("drift",), ("data_profile", "profile_arrays", "reference"), ("drift",)),
    Stage("tune", ("tune", "prompt", "base_model"), ("train", "validation"), ("bundle", "train_log", "virtual_tokens")),
    Stage("tune_lora", ("lora_baseline", "tune", "prompt", "base_model"), ("train", "validation"), ("lora",)),
    Stage(
        "score",
        ("score", "prompt", "base_model", "lora_baseline"),
        ("bundle", "train_log", "lora", "train", "validation", "test"),
        ("predictions", "score_report"),
    ),
    Stage("evaluate", ("evaluate", "prompt", "score", "lora_baseline"), ("predictions",), ("metrics", "plots")),
    Stage(
        "score_champion",
        ("score", "prompt", "base_model"),
        ("champion", "test"),
        ("champion_predictions", "champion_report"),
    ),
    Stage(
        "compare",
        ("compare", "evaluate", "prompt"),
        ("bundle", "predictions", "champion_predictions", "champion_report", "attempts"),
        ("comparison",),
    ),
    Stage(
        "assess_fairness",
        ("assess_fairness", "prompt", "score", "lora_baseline", "gate"),
        ("predictions", "test", "champion_predictions", "champion_report"),
        ("fairness",),
    ),
    Stage(
        "probe",
        ("behaviour", "prompt", "base_model", "score"),
        ("bundle", "test"),
        ("behaviour_predictions", "bias_scores", "probe_report"),
    ),
    Stage(
        "assess_behaviour",
        ("behaviour", "prompt"),
        ("behaviour_predictions", "bias_scores", "probe_report"),
        ("behaviour",),
    ),
    Stage(
        "gate",
        ("gate", "prompt", "assess_fairness", "compare"),
        ("metrics", "comparison", "fairness", "score_report", "drift", "leakage", "behaviour"),
        ("gate",),
    ),
    Stage(
        "report",
        ("report", "prompt", "compare"),
        (
            "ingest_report",
            "data_report",
            "split_report",
            "drift",
            "bundle",
            "train_log",
            "virtual_tokens",
            "predictions",
            "score_report",
            "metrics",
            "champion_predictions",
            "comparison",
            "fairness",
            "behaviour_predictions",
            "behaviour",
            "gate",
        ),
        ("card", "model_card", "pictures"),
    ),
)


def stage_named(name: str) -> Stage:
    """The stage of that name; raises WorkspaceError naming the known ones."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    known = ", ".join(stage.name for stage in STAGES)
    raise WorkspaceError(f"There is no stage {name!r}; the stages are: {known}.")


def stages_after(name: str) -> tuple[str, ...]:
    """The stages, in order, that read what stage `name` writes, or what another of them writes."""
    made, found = set(stage_named(name).outputs), list[str]()
    for stage in STAGES:
        if made & set(stage.inputs):
            made |= set(stage.outputs)
            found.append(stage.name)
    return tuple(found)


class Paths:
    """The declared files of one side of a stage, as attributes: `inputs.train`, `outputs.bundle`.

    Asking for a name the stage did not declare raises AttributeError, so a stage cannot read or write
    anything that dvc.yaml does not know. `scratch` is a folder for what a stage keeps between two attempts, such as a
    checkpoint: no other stage reads it, and a stage that ended well leaves nothing in it.
    """

    def __init__(self, files: Mapping[str, Path], scratch: Path) -> None:
        self._files = dict(files)
        self.scratch = scratch

    def __getattr__(self, name: str) -> Path:
        try:
            return self.__dict__["_files"][name]
        except KeyError:
            raise AttributeError(f"{name!r} is not declared by this stage; declared: {sorted(self._files)}") from None

    def items(self) -> list[tuple[str, Path]]:
        """(name, path) of every declared file, in declaration order."""
        return list(self._files.items())


@dataclass(frozen=True)
class Layout:
    """The files of one task below one workspace root; raises WorkspaceError for what cannot be a task's name."""

    root: Path
    task: str

    def __post_init__(self) -> None:
        """Refuse a name that could lead out of the workspace, whoever asks."""
        if not TASK_NAME.fullmatch(self.task):
            raise WorkspaceError(f"{self.task!r} is no task: {TASK_NAME_RULE}.")

    def path(self, name: str) -> Path:
        """Absolute path of a file in FILES."""
        return self.root / FILES[name].format(task=self.task).rstrip("/")

    def inputs(self, stage: Stage) -> Paths:
        """The files `stage` may read."""
        return Paths({name: self.path(name) for name in stage.inputs}, self._scratch(stage))

    def outputs(self, stage: Stage) -> Paths:
        """The files `stage` must write."""
        return Paths({name: self.path(name) for name in stage.outputs}, self._scratch(stage))

    def _scratch(self, stage: Stage) -> Path:
        return self.root / ".promptmill" / "scratch" / self.task / stage.name


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds params.yaml; raises WorkspaceError when there is none."""
    for folder in (start, *start.parents):
        if (folder / PARAMS_FILE).is_file():
            return folder
    raise WorkspaceError(f"No {PARAMS_FILE} in {start} or any folder above it. Run promptmill inside a clone of your pipeline repository.")
