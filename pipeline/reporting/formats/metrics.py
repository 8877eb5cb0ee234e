"""The records of the stages that score, evaluate and assess groups of labelled rows, and what must agree between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.errors import StageInputError
from pipeline.reporting.formats.record import Estimate, Record


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


class TrainingCost(Record):
    """What a training took: `seconds` of its optimiser steps, and the numbers that the adapter holds."""

    seconds: float
    steps: int
    trials: int
    values: int


class Score(Record):
    """What the score stage wrote; `hard_prompt` is null when the base model answers none."""

    hard_prompt: str | None
    hard_prompts: list[HardPrompt]
    few_shot: FewShotPrompt | None = None
    rows: int
    seconds_per_row: dict[str, float | None]
    training_cost: dict[str, TrainingCost] = Field(default_factory=dict[str, TrainingCost])
    majority_class: str


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
    lora: VariantMetrics | None = None
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
    tuned_minus_lora: Comparison | None = None
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
