"""The training log and the lineage part of a bundle's manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pipeline.errors import StageInputError
from pipeline.reporting.formats.record import Record, parse


class Step(Record):
    """One optimiser step of one trial in the training log."""

    trial: int
    step: int
    loss: float


class Evaluated(Record):
    """One evaluation of one trial on validation rows in the training log; its metrics depend on the kind of task."""

    trial: int
    step: int
    loss: float
    rows: int
    best: bool


class Evaluation(Evaluated):
    """An evaluation by labels."""

    accuracy: float
    macro_f1: float


class Problem(Record):
    """Trouble that was noticed during training, and what to change."""

    trial: int
    step: int
    kind: str
    advice: str


EvaluationT = TypeVar("EvaluationT", bound=Evaluated)


@dataclass(frozen=True)
class TrainLog(Generic[EvaluationT]):
    """The exported trial's steps and evaluations, and the problems of all trials."""

    steps: Sequence[Step]
    evaluations: Sequence[EvaluationT]
    problems: Sequence[Problem]


class SoftPrompt(Record):
    """Identity of the trained tensor."""

    sha256: str
    shape: list[int]
    dtype: str


class BaseModelIdentity(Record):
    """Identity of the frozen language model."""

    id: str
    revision: str | None
    source: Any
    weights_sha256: str
    tokenizer_sha256: str | None
    dtype: str
    attention: str


class TrialOutcome(Record):
    """What became of one trial; `best_metric` is null when it was never evaluated, `ended` is empty when it ran to the end."""

    configuration: str
    seed: int
    best_step: int
    best_metric: float | None
    ended: str


class Spread(Record):
    """Mean and standard deviation (n - 1) of the best metric over the seeds of one configuration; null for a single seed."""

    mean: float
    standard_deviation: float | None
    trials: int


class Training(Record):
    """How the soft prompt was trained; `trial` is the one that was exported."""

    method: str
    seed: int
    steps: int
    best_step: int | None
    best_metric: float | None
    metric: Literal["accuracy", "macro_f1", "exact_match", "token_accuracy"]
    trial: int
    trials: list[TrialOutcome]
    configurations: dict[str, Spread]


class TrainingData(Record):
    """Hashes of the rows trained and selected on."""

    train_sha256: str
    validation_sha256: str


class Code(Record):
    """The code that made the bundle."""

    commit: str | None
    dirty: bool | None
    diff_sha256: str | None


class Manifest(Record):
    """The lineage part of a bundle's manifest."""

    soft_prompt: SoftPrompt
    base_model: BaseModelIdentity
    task: str
    training: Training
    data: TrainingData
    params_sha256: str
    code: Code
    libraries: dict[str, Any]
    hardware: Any


def parse_train_log(
    records: Sequence[Mapping[str, Any]], where: Path | str, trial: int, evaluation: type[EvaluationT]
) -> TrainLog[EvaluationT]:
    """The steps and evaluations of `trial`, and all problems, of a training log; raises StageInputError naming the line."""
    steps: list[Step] = []
    evaluations: list[EvaluationT] = []
    problems: list[Problem] = []
    for number, record in enumerate(records, 1):
        line = f"{where}, line {number}"
        event = record.get("event")
        if event == "step":
            steps.append(parse(Step, record, line))
        elif event == "evaluation":
            evaluations.append(parse(evaluation, record, line))
        elif event == "problem":
            problems.append(parse(Problem, record, line))
        elif event != "system":
            raise StageInputError(
                f"{line}: 'event' is {event!r}, expected 'step', 'evaluation', 'problem' or 'system'. Run the tune stage again: `dvc repro`."
            )
    return TrainLog([one for one in steps if one.trial == trial], [one for one in evaluations if one.trial == trial], problems)
