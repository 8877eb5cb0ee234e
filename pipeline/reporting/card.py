"""The prompt card: the reports of one run -> one HTML page.

The page asks for nothing from outside: styles and figures are inside it, its content security policy forbids scripts and
requests, and every text from a report or a data row is escaped. The same inputs give the same bytes.
"""

import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.layout import FILES
from pipeline.reporting.changes import changes
from pipeline.reporting.examples import choose_examples
from pipeline.reporting.figures import Bar, Curve, group_bar, percent, smoothing_window, training_curve
from pipeline.reporting.forest import forest_of_differences, forest_of_shares
from pipeline.reporting.formats.data import Data, Drift, DriftCheck, Ingest, Split
from pipeline.reporting.formats.gate import Check, Gate
from pipeline.reporting.formats.metrics import Attribute, Comparison, Fairness, Metrics, Score, VariantMetrics
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.formats.training import Evaluation, Manifest, TrainLog
from pipeline.reporting.reliability import reliability_diagram
from pipeline.reporting.worth import Worth, worth_of
from pipeline.variants import NAMES

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

VARIANT_NAMES: Mapping[str, str] = NAMES
VERDICT_MARKS: Mapping[str, str] = {"PASS": "✓", "FAIL": "✗"}
METRIC_NAMES: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro F1"}


@dataclass(frozen=True, kw_only=True)
class CommonInputs:
    """What the cards of all tasks show, read and typed. `manifest_sha256` identifies the bundle."""

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


@dataclass(frozen=True, kw_only=True)
class CardInputs(CommonInputs):
    """Everything that the card of a task with labels shows; `metric` is what candidates are compared by, accuracy or macro_f1."""

    train_log: TrainLog[Evaluation]
    score: Score
    metrics: Metrics
    fairness: Fairness
    metric: str


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
        "lineage": lineage(inputs),
    }


def figure(value: float | None) -> str:
    """A number for people: whole counts as 1,700, else three decimals, with a true minus sign; "–" for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) > 1:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    text = figure(value)
    return f"+{text}" if value is not None and value > 0 and text != "0.000" else text


def share(value: float | None) -> str:
    """A share in whole percent; "–" for none."""
    return "–" if value is None else f"{value:.0%}"


def interval(estimate: Estimate | Check | DriftCheck, with_sign: bool = False) -> str:
    """The interval as "[0.588, 0.635]", or an empty text when there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    show = signed if with_sign else figure
    return f"[{show(estimate.low)}, {show(estimate.high)}]"


def why(estimate: Estimate) -> str:
    """The sentence that stands in place of a value that does not exist."""
    return f"not computable: {estimate.why or 'the report gives no reason'}"


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


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as (dotted key, text) pairs; nothing is left out, null is "not recorded"."""
    if isinstance(value, Mapping):
        pairs = cast(Mapping[str, Any], value).items()
        return [line for key, item in pairs for line in flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(item) for item in cast(list[Any], value)))]
    return [(prefix, "not recorded" if value is None else str(value))]


def data_docs_link(path: str, task: str) -> str | None:
    """The address of Data Docs relative to the card, or None when the report names no plain relative path."""
    folder = posixpath.dirname(FILES["card"].format(task=task))
    relative = posixpath.normpath(path.removeprefix(f"{folder}/"))
    if not path or relative.startswith(("/", "..")) or re.search(r"[:\\?#\s]", relative):
        return None
    return relative


def lineage(inputs: CommonInputs) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the tuned prompt was made from, as titled lists of (name, text)."""
    manifest = inputs.manifest
    prompt, base, training, code = manifest.soft_prompt, manifest.base_model, manifest.training, manifest.code
    state = {None: "not recorded", True: "yes, with changes that were not committed", False: "no"}[code.dirty]
    return [
        (
            "Tuned prompt",
            flatten(
                {
                    "soft prompt sha256": prompt.sha256,
                    "shape": " × ".join(str(size) for size in prompt.shape),
                    "dtype": prompt.dtype,
                    "manifest sha256": inputs.manifest_sha256,
                    "method": training.method.replace("_", " "),
                    "seed": training.seed,
                    "steps": training.steps,
                    "best step": training.best_step,
                    "params sha256": manifest.params_sha256,
                }
            ),
        ),
        (
            "Base model",
            flatten(
                {
                    "id": base.id,
                    "revision": base.revision,
                    "weights sha256": base.weights_sha256,
                    "tokenizer sha256": base.tokenizer_sha256,
                    "dtype": base.dtype,
                    "attention": base.attention,
                    "source": base.source,
                }
            ),
        ),
        (
            "Data",
            flatten(
                {
                    "source sha256": inputs.ingest.source_sha256,
                    "raw sha256": inputs.ingest.raw_sha256,
                    "train sha256": manifest.data.train_sha256,
                    "validation sha256": manifest.data.validation_sha256,
                    "split ids sha256": inputs.split.split_ids_sha256,
                }
            ),
        ),
        ("Code", flatten({"commit": code.commit, "dirty": state} | ({"diff sha256": code.diff_sha256} if code.dirty else {}))),
        ("Libraries", flatten(manifest.libraries)),
        ("Hardware", flatten(manifest.hardware, "" if isinstance(manifest.hardware, Mapping) else "machine")),
    ]


def environment(*, markup: bool = True) -> "jinja2.Environment":
    """The templates of this folder; with `markup`, every value is escaped for HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=markup,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        newline_sequence="\n",
    )
    filters = {"figure": figure, "signed": signed, "share": share, "interval": interval, "why": why, "percent": percent}
    cast(dict[str, Any], environment.filters).update(filters)
    cast(dict[str, Any], environment.globals)["verdict_marks"] = VERDICT_MARKS
    return environment


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
