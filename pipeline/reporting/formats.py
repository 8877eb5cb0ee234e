"""The reports that the card reads, as typed records (docs/stage-files.md describes them).

Only the keys that the card shows are listed; others are ignored. A key that is missing or of another type is a
StageInputError that names the file and the dotted key, so that a card is never made from half a record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import StageInputError
from pipeline.gates.decision import UNDECIDED, decision_of

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INSUFFICIENT", "MISSING", "DEGENERATE", "ERROR"]


class Record(BaseModel):
    """Base of every record: frozen, no conversion between types, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


RecordT = TypeVar("RecordT", bound=Record)


class Estimate(Record):
    """A point value, its interval and the rows behind it; `value` None means not computable, and `why` says the reason."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    why: str | None = None
    between: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_stays_readable(cls, data: Any) -> Any:
        """A null in place of an estimate becomes one without a value; one without a value has no interval either."""
        if data is None:
            return {"value": None, "low": None, "high": None, "n": 0, "why": "the report holds null instead of an estimate"}
        if isinstance(data, Mapping):
            record = dict(cast(Mapping[str, Any], data))
            return record | {"low": None, "high": None} if record.get("value", 0) is None else record
        return data


# --- gate -------------------------------------------------------------------------------------------------------------


class Check(Record):
    """One line of the gate table."""

    name: str
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    denominator: str | None
    limit: float | None
    method: str | None
    rule: str
    sentence: str
    more_rows: int | None = None


class GateInputs(Record):
    """Hashes of the reports that the gate read."""

    metrics_sha256: str
    fairness_sha256: str
    drift_sha256: str


class Gate(Record):
    """The gate's decision and everything it looked at."""

    task: str
    decision: Literal["promote", "refuse", "ask"]
    reasons: list[str]
    checks: list[Check]
    inputs: GateInputs


# --- metrics ----------------------------------------------------------------------------------------------------------


class ClassMetrics(Record):
    """Metrics of one label."""

    precision: Estimate
    recall: Estimate
    f1: Estimate
    support: int


class ReliabilityBin(Record):
    """The rows whose confidence lies in one bin, and the band of accuracies that a calibrated model would show on them."""

    start: float = Field(alias="from")
    to: float
    confidence: float
    accuracy: Estimate
    null_low: float
    null_high: float


class VariantMetrics(Record):
    """Metrics of one variant on the test rows."""

    accuracy: Estimate
    macro_f1: Estimate
    log_loss: Estimate
    ece: Estimate
    ece_null: Estimate
    reliability: list[ReliabilityBin]
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]
    predicted: dict[str, int]


class Variants(Record):
    """The tuned prompt and its baselines; an encoder answers no hard prompt."""

    tuned: VariantMetrics
    hard_prompt: VariantMetrics | None = None
    zero_shot: VariantMetrics | None = None
    few_shot: VariantMetrics | None = None
    majority_class: VariantMetrics


class Comparison(Record):
    """Paired differences on the same rows."""

    accuracy: Estimate
    macro_f1: Estimate


class Comparisons(Record):
    """The tuned prompt against each baseline."""

    tuned_minus_hard_prompt: Comparison | None = None
    tuned_minus_zero_shot: Comparison | None = None
    tuned_minus_few_shot: Comparison | None = None
    tuned_minus_majority_class: Comparison


class Metrics(Record):
    """What the evaluate stage wrote."""

    task: str
    n: int
    labels: list[str]
    confidence_level: float
    replicates: int
    method: str
    variants: Variants
    comparisons: Comparisons


# --- fairness ---------------------------------------------------------------------------------------------------------


class Group(Record):
    """Disaggregated metrics of the tuned prompt on one group of rows."""

    n: int
    share: float
    accuracy: Estimate
    macro_f1: Estimate
    selection_rate: dict[str, Estimate]
    recall: dict[str, Estimate]
    sufficient: bool


class Differences(Record):
    """The largest difference between two groups, per metric (and per label)."""

    accuracy: Estimate
    demographic_parity_difference: dict[str, Estimate]
    equal_opportunity_difference: dict[str, Estimate]


class Attribute(Record):
    """One way of sorting the rows into groups."""

    derived_from: str
    groups: dict[str, Group]
    unknown: Group
    in_several_groups: int
    differences: Differences


class Fairness(Record):
    """What the assess_fairness stage wrote."""

    task: str
    n: int
    confidence_level: float
    minimum_denominator: int
    method: str
    attributes: dict[str, Attribute]


# --- data, training, lineage ------------------------------------------------------------------------------------------


class Ingest(Record):
    """What the ingest stage wrote."""

    source: Any
    source_sha256: str
    source_bytes: int
    source_rows: int
    rows: int
    raw_sha256: str


class Expectation(Record):
    """One evaluated expectation of the data contract."""

    expectation: str
    column: str | None
    severity: str
    success: bool
    observed: Any
    expected: Any


class Data(Record):
    """What the validate stage wrote."""

    rows: int
    accepted: int
    quarantined: int
    quarantined_by_rule: dict[str, int]
    labels: dict[str, int]
    expectations: list[Expectation]
    planned: int
    evaluated: int
    data_docs: str


class SplitPart(Record):
    """One split."""

    rows: int
    labels: dict[str, int]
    sha256: str


class Split(Record):
    """What the split stage wrote."""

    splits: dict[str, SplitPart]
    set_aside: dict[str, int]
    split_ids_sha256: str
    seed: int


class DriftCheck(Record):
    """One comparison of the training data with the reference's."""

    name: str
    verdict: Literal["PASS", "FAIL", "INSUFFICIENT", "NOT APPLICABLE"]
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n_current: int
    n_reference: int | None
    limit: float
    method: str
    sentence: str


class DriftAgainst(Record):
    """Which version was asked for, which one was compared with, or why none."""

    asked: str | int
    version: int | None
    reason: str | None


class Drift(Record):
    """What the drift stage wrote."""

    against: DriftAgainst
    on_drift: Literal["report", "refuse"]
    significance: float
    verdict: Literal["PASS", "FAIL", "INSUFFICIENT", "NOT APPLICABLE"]
    checks: list[DriftCheck]


class HardPrompt(Record):
    """A hard prompt candidate and how it did on validation rows."""

    template: str
    accuracy: float | None
    rows: int


class FewShotPrompt(Record):
    """The worked examples of the few-shot baseline, and why it was not asked, if it was not."""

    examples: list[str]
    prefix_tokens: int
    skipped: str | None


class Score(Record):
    """What the score stage wrote; `hard_prompt` is null when the base model answers none."""

    hard_prompt: str | None
    hard_prompts: list[HardPrompt]
    few_shot: FewShotPrompt | None = None
    rows: int
    seconds_per_row: dict[str, float | None]
    majority_class: str


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


# --- reading ----------------------------------------------------------------------------------------------------------


def parse(model: type[RecordT], record: Mapping[str, Any], where: Path | str) -> RecordT:
    """`record` as a typed one; raises StageInputError naming `where` (a file) and the dotted key of the first error."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        raise StageInputError(
            f"{where} lacks the key {key!r}, which the prompt card shows. Run the stage that writes it again: `dvc repro`."
        )
    found = repr(detail["input"])
    found = found if len(found) <= 80 else f"{found[:77]}..."
    raise StageInputError(
        f"{where}: {key!r} is {found}, expected otherwise ({detail['msg']}). Run the stage that writes it again: `dvc repro`."
    )


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


def check_gate(gate: Gate, where: Path | str) -> None:
    """Raise StageInputError when the decision contradicts its checks: no card may show PROMOTE above a check that did not pass.

    Nor may a check pass without a value.
    """
    for check in gate.checks:
        if check.verdict == "PASS" and check.value is None:
            raise StageInputError(
                f"{where}: check {check.name!r} has verdict PASS without a value; nothing passes without a figure. Run the gate stage again."
            )
    allowed = decision_of([check.verdict for check in gate.checks])
    if gate.decision != "refuse" and gate.decision != allowed:
        accepted = ("PASS",) if gate.decision == "promote" else ("PASS", *UNDECIDED)
        open_checks = [check.name for check in gate.checks if check.verdict not in accepted]
        found = f"these checks did not pass: {open_checks}" if open_checks else "it lists no checks"
        raise StageInputError(f"{where}: the decision is {gate.decision}, but {found}. Run the gate stage again.")


def check_gate_inputs(gate: Gate, where: Path | str, found: GateInputs) -> None:
    """Raise StageInputError when the gate judged other reports than those whose hashes were `found`."""
    for key in GateInputs.model_fields:
        judged, current = getattr(gate.inputs, key), getattr(found, key)
        if judged != current:
            raise StageInputError(
                f"{where}: 'inputs.{key}' is {judged}, the file now has {current}: the gate judged another report. "
                "Run the gate stage again: `dvc repro`."
            )


def check_hard_prompt(score: Score, metrics: Metrics, metrics_file: Path | str) -> None:
    """Raise StageInputError unless the metrics have figures of a hard prompt exactly when one was scored."""
    found = {
        "variants.hard_prompt": metrics.variants.hard_prompt,
        "comparisons.tuned_minus_hard_prompt": metrics.comparisons.tuned_minus_hard_prompt,
    }
    for key, figures in found.items():
        if score.hard_prompt is not None and figures is None:
            raise StageInputError(
                f"{metrics_file} lacks the key {key!r}, which the prompt card shows. Run the stage that writes it again: `dvc repro`."
            )
        if score.hard_prompt is None and figures is not None:
            raise StageInputError(f"{metrics_file} has {key!r}, but no hard prompt was scored. Run the evaluate stage again: `dvc repro`.")


def check_labels(metrics: Metrics, fairness: Fairness, metrics_file: Path | str, fairness_file: Path | str) -> None:
    """Raise StageInputError when a table by label lacks one of the labels, naming the file and the key."""
    for name, variant in metrics.variants:
        if variant is None:
            continue
        _require(variant.per_class, metrics.labels, metrics_file, f"variants.{name}.per_class")
        _require(variant.predicted, metrics.labels, metrics_file, f"variants.{name}.predicted")
        if [len(row) for row in variant.confusion_matrix] != [len(metrics.labels)] * len(metrics.labels):
            raise StageInputError(
                f"{metrics_file}: 'variants.{name}.confusion_matrix' is not {len(metrics.labels)} x {len(metrics.labels)}, "
                f"one row and column per label. Run the evaluate stage again: `dvc repro`."
            )
    for name, attribute in fairness.attributes.items():
        groups = {f"groups.{key}": group for key, group in attribute.groups.items()} | {"unknown": attribute.unknown}
        for key, group in groups.items():
            _require(group.selection_rate, metrics.labels, fairness_file, f"attributes.{name}.{key}.selection_rate")
            _require(group.recall, metrics.labels, fairness_file, f"attributes.{name}.{key}.recall")
        for key in ("demographic_parity_difference", "equal_opportunity_difference"):
            _require(getattr(attribute.differences, key), metrics.labels, fairness_file, f"attributes.{name}.differences.{key}")


def _require(mapping: Mapping[str, Any], labels: Sequence[str], where: Path | str, key: str) -> None:
    for label in labels:
        if label not in mapping:
            raise StageInputError(
                f"{where} lacks the key '{key}.{label}', which the prompt card shows. Run the stage that writes it again: `dvc repro`."
            )
