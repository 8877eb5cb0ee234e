"""The prompt card: the reports of one run -> one HTML page.

The page asks for nothing from outside: styles and figures are inside it, its content security policy forbids scripts and
requests, and every text from a report or a data row is escaped. The same inputs give the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.reporting.behaviour import behaviour_view
from pipeline.reporting.champion import champion_view, confusion_matrix
from pipeline.reporting.changes import changes
from pipeline.reporting.examples import choose_examples
from pipeline.reporting.figures import Bar, Curve, group_bar, smoothing_window, training_curve
from pipeline.reporting.forest import forest_of_differences, forest_of_shares
from pipeline.reporting.formats.behaviour import Behaviour
from pipeline.reporting.formats.comparison import ChampionComparison
from pipeline.reporting.formats.data import Data, Drift, Ingest, Split
from pipeline.reporting.formats.gate import Check, Gate
from pipeline.reporting.formats.metrics import Attribute, Comparison, Fairness, Metrics, Score, VariantMetrics
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.formats.training import Evaluation, EvaluationT, Manifest, TrainLog
from pipeline.reporting.formats.virtual_tokens import VirtualTokens
from pipeline.reporting.lineage import data_docs_link, flatten, lineage
from pipeline.reporting.page import environment
from pipeline.reporting.pictures import Picture, confusion_picture, forest_picture, reliability_picture, training_picture
from pipeline.reporting.reliability import reliability_diagram
from pipeline.reporting.virtual_tokens import token_rows
from pipeline.reporting.worth import Worth, worth_of
from pipeline.variants import NAMES

if TYPE_CHECKING:
    import pandas as pd

VARIANT_NAMES: Mapping[str, str] = NAMES
METRIC_NAMES: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro F1"}


@dataclass(frozen=True, kw_only=True)
class CommonInputs:
    """What the cards of all tasks show, read and typed.

    `manifest_sha256` identifies the bundle; `behaviour_answers` are the answers to the probes, of the file `behaviour_file`.
    """

    title: str
    description: str
    template: str
    examples: int
    seed: int
    ingest: Ingest
    data: Data
    split: Split
    drift: Drift
    manifest: Manifest
    manifest_sha256: str
    predictions: "pd.DataFrame"
    gate: Gate
    comparison: ChampionComparison
    behaviour: Behaviour
    behaviour_answers: "pd.DataFrame"
    behaviour_file: Path
    virtual_tokens: VirtualTokens


@dataclass(frozen=True, kw_only=True)
class CardInputs(CommonInputs):
    """Everything that the card of a task with labels shows.

    `metric` is what candidates are compared by, accuracy or macro_f1; `champion_answers` has no rows where nothing was compared.
    """

    train_log: TrainLog[Evaluation]
    score: Score
    metrics: Metrics
    fairness: Fairness
    metric: str
    champion_answers: "pd.DataFrame"


@dataclass(frozen=True)
class AttributeView:
    """One attribute with its bars; `limits` are the different limits of its bars."""

    name: str
    record: Attribute
    bars: list[Bar]
    limits: list[float]
    differences: list[tuple[str, Estimate]]


@dataclass(frozen=True)
class Reason:
    """A reason against promotion; `check` and `verdict` are empty where it belongs to no single check."""

    check: str
    verdict: str
    text: str


@dataclass(frozen=True)
class MatrixCell:
    """One cell of the confusion matrix; `share` of the row's label is None for a label without rows."""

    count: int
    share: float | None
    right: bool


def render_card(inputs: CardInputs) -> str:
    """The whole page as HTML text, with line feeds only."""
    return environment().get_template("card.html.jinja").render(card_context(inputs))


def card_context(inputs: CardInputs) -> dict[str, Any]:
    """What the template shows, by name. Nothing in it is markup: the template escapes every value."""
    metrics = inputs.metrics
    right, wrong = choose_examples(inputs.predictions, metrics.labels, inputs.examples, inputs.seed)
    variants = {VARIANT_NAMES[name]: variant for name, variant in metrics.variants if variant is not None}
    tuned = metrics.variants.tuned
    return {
        **common_context(inputs, metrics.task),
        "metrics": metrics,
        "fairness": inputs.fairness,
        "level": f"{metrics.confidence_level:.0%}",
        "variants": variants,
        "comparisons": _comparisons(metrics),
        "worth": worth_of_labels(inputs),
        "variant_charts": [
            (name, [_variant_bar(label, record, key) for label, record in variants.items()]) for key, name in METRIC_NAMES.items()
        ],
        "matrix": confusion_rows(tuned.confusion_matrix),
        "champion_matrix": _champion_matrix(inputs),
        "forests": [
            ("Share of right answers", forest_of_shares(metrics, inputs.fairness, inputs.gate.checks)),
            ("Differences between groups", forest_of_differences(inputs.fairness, inputs.gate.checks)),
        ],
        "reliability": reliability_diagram(tuned.reliability, tuned.ece, tuned.ece_null),
        "curve": _curve(inputs),
        "window": smoothing_window(inputs.train_log.steps),
        "metric_name": METRIC_NAMES[inputs.manifest.training.metric],
        "other_metric_name": METRIC_NAMES[_metrics_of_training(inputs)[1]],
        "attributes": [_attribute_view(name, record, inputs.gate.checks) for name, record in inputs.fairness.attributes.items()],
        "examples": (("Right", right), ("Wrong", wrong)),
    }


def worth_of_labels(inputs: CardInputs) -> Worth | None:
    """Whether prompt tuning pays, by the metric that candidates are compared by; None where a LoRA was tuned instead."""
    if inputs.manifest.training.method == "lora":
        return None
    gains = {
        name.removeprefix("tuned_minus_"): getattr(found, inputs.metric) for name, found in inputs.metrics.comparisons if found is not None
    }
    without = "No LoRA was trained to compare with (lora_baseline.enabled)"
    return worth_of(METRIC_NAMES[inputs.metric], gains, inputs.score.training_cost, without_lora=without)


def card_pictures(inputs: CardInputs) -> list[Picture]:
    """The card's plots as files: forest, reliability, confusion matrices and training curve, those that have anything to show."""
    tuned, checks = inputs.metrics.variants.tuned, inputs.gate.checks
    differences, reliability = (
        forest_of_differences(inputs.fairness, checks),
        reliability_diagram(tuned.reliability, tuned.ece, tuned.ece_null),
    )
    matrices = [("This tuned prompt", tuned.confusion_matrix)]
    if inputs.comparison.champion and inputs.comparison.comparable:
        beside = confusion_matrix(inputs.champion_answers, inputs.metrics.labels)
        matrices.append((f"Champion, version {inputs.comparison.champion.version}", beside))
    made = [
        forest_picture("forest", "Share of right answers", forest_of_shares(inputs.metrics, inputs.fairness, checks)),
        forest_picture("forest_differences", "Differences between groups", differences) if differences else None,
        reliability_picture(tuned.reliability, reliability.alt) if reliability.points else None,
        confusion_picture(inputs.metrics.labels, matrices),
        training_picture_of(inputs, inputs.train_log, _metrics_of_training(inputs)),
    ]
    return [picture for picture in made if picture]


def training_picture_of(inputs: CommonInputs, log: TrainLog[EvaluationT], metrics: tuple[str, str]) -> Picture | None:
    """The training curve as a file; None where nothing was recorded."""
    best = inputs.manifest.training.best_step
    curve = training_curve(log.steps, log.evaluations, metrics, best)
    return training_picture(log.steps, log.evaluations, metrics, best, curve.alt) if curve and curve.panels else None


def common_context(inputs: CommonInputs, task: str) -> dict[str, Any]:
    """What the parts that all cards have in common show."""
    return {
        "card": inputs,
        "task": task,
        "gate": inputs.gate,
        "drift": inputs.drift,
        "manifest": inputs.manifest,
        "reasons": reasons(inputs.gate),
        "changes": changes(inputs.gate.checks),
        "passed": sum(check.verdict == "PASS" for check in inputs.gate.checks),
        "failed_expectations": [item for item in inputs.data.expectations if not item.success],
        "data_docs": data_docs_link(inputs.data.data_docs, task),
        "source": flatten(inputs.ingest.source, "source"),
        "lineage": lineage(inputs.ingest, inputs.split, inputs.manifest, inputs.manifest_sha256),
        "token_rows": token_rows(inputs.virtual_tokens),
        "champion": champion_view(inputs.comparison, inputs.examples),
        "behaviour": behaviour_view(
            inputs.behaviour,
            inputs.behaviour_answers,
            inputs.gate.checks,
            examples=inputs.examples,
            seed=inputs.seed,
            where=inputs.behaviour_file,
        ),
    }


def reasons(gate: Gate) -> list[Reason]:
    """The gate's reasons; the one of a check ("name: VERDICT: sentence") in its three parts."""
    parts = {f"{check.name}: {check.verdict}: {check.sentence}": Reason(check.name, check.verdict, check.sentence) for check in gate.checks}
    return [parts.get(reason, Reason("", "", reason)) for reason in gate.reasons]


def confusion_rows(matrix: Sequence[Sequence[int]]) -> list[list[MatrixCell]]:
    """The confusion matrix with each count's share of its row (the rows are the true labels)."""
    rows: list[list[MatrixCell]] = []
    for index, counts in enumerate(matrix):
        total = sum(counts)
        rows.append([MatrixCell(count, count / total if total else None, index == column) for column, count in enumerate(counts)])
    return rows


def check_of_group(checks: Iterable[Check], attribute: str, group: str) -> Check | None:
    """The gate's floor on this group's accuracy, by the name that pipeline.gates gives it; None when the gate sets none."""
    return next((check for check in checks if check.name == f"accuracy of {attribute}={group}"), None)


def _comparisons(metrics: Metrics) -> list[tuple[str, Comparison]]:
    """Each baseline's name in a sentence with what the tuned prompt gains over it; the harder baseline first."""
    named = (
        ("hard prompt", metrics.comparisons.tuned_minus_hard_prompt),
        ("zero-shot prompt", metrics.comparisons.tuned_minus_zero_shot),
        ("few-shot prompt", metrics.comparisons.tuned_minus_few_shot),
        ("LoRA", metrics.comparisons.tuned_minus_lora),
        ("majority class", metrics.comparisons.tuned_minus_majority_class),
    )
    return [(name, comparison) for name, comparison in named if comparison is not None]


def _champion_matrix(inputs: CardInputs) -> list[list[MatrixCell]] | None:
    """The champion's confusion matrix on the same rows; None where there is no champion, or it was not compared with."""
    if not inputs.comparison.comparable:
        return None
    return confusion_rows(confusion_matrix(inputs.champion_answers, inputs.metrics.labels))


def _variant_bar(label: str, record: VariantMetrics, key: str) -> Bar:
    estimate = cast(Estimate, getattr(record, key))
    return Bar(label, "", estimate, "plain" if label == VARIANT_NAMES["tuned"] else "reference", "")


def _curve(inputs: CardInputs) -> Curve | None:
    training = inputs.manifest.training
    return training_curve(inputs.train_log.steps, inputs.train_log.evaluations, _metrics_of_training(inputs), training.best_step)


def _metrics_of_training(inputs: CardInputs) -> tuple[str, str]:
    """The metric that selected the step, and the other one that was measured."""
    selected = inputs.manifest.training.metric
    return selected, "macro_f1" if selected == "accuracy" else "accuracy"


def _attribute_view(name: str, record: Attribute, checks: Sequence[Check]) -> AttributeView:
    bars = [group_bar(group, figures, check_of_group(checks, name, group)) for group, figures in record.groups.items()]
    limits = sorted({bar.limit for bar in bars if bar.limit is not None})
    differences = [("Accuracy", record.differences.accuracy)]
    differences += [
        (f"Demographic parity difference, {label}", item) for label, item in record.differences.demographic_parity_difference.items()
    ]
    differences += [
        (f"Equal opportunity difference, {label}", item) for label, item in record.differences.equal_opportunity_difference.items()
    ]
    return AttributeView(name, record, bars, limits, differences)
