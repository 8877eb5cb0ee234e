"""The prompt card of a task with free-text targets: decoded answers in place of confusion matrix, labels and groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageInputError
from pipeline.evaluation.row_scores import row_scores
from pipeline.reporting.card import CommonInputs, common_context, training_picture_of
from pipeline.reporting.examples import Piece, draw, visible_pieces
from pipeline.reporting.figures import Bar, smoothing_window, training_curve
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.formats.text import TEXT_METRIC_NAMES, TextEvaluation, TextMetrics, TextScore
from pipeline.reporting.formats.training import TrainLog
from pipeline.reporting.page import environment
from pipeline.reporting.pictures import Picture
from pipeline.reporting.worth import Worth, worth_of
from pipeline.variants import NAMES

if TYPE_CHECKING:
    import pandas as pd

TRAINING_METRICS = {"token_accuracy": "token accuracy", "exact_match": "exact match"}


@dataclass(frozen=True, kw_only=True)
class TextCardInputs(CommonInputs):
    """Everything that the card of a task with free-text targets shows."""

    train_log: TrainLog[TextEvaluation]
    score: TextScore
    metrics: TextMetrics


@dataclass(frozen=True)
class WrittenExample:
    """One test row with its reference and what each variant answered; `score` is the tuned prompt's, by the task's metric."""

    pieces: list[Piece]
    target: list[Piece]
    answers: list[tuple[str, list[Piece]]]
    score: float


@dataclass(frozen=True)
class Candidate:
    """A hard prompt and how it did on validation rows."""

    template: str
    score: float
    rows: int


def render_text_card(inputs: TextCardInputs) -> str:
    """The whole page as HTML text, with line feeds only."""
    return environment().get_template("text_card.html.jinja").render(text_card_context(inputs))


def text_card_context(inputs: TextCardInputs) -> dict[str, Any]:
    """What the template shows, by name. Nothing in it is markup: the template escapes every value."""
    metrics, training = inputs.metrics, inputs.manifest.training
    variants = {NAMES.get(name, name): variant for name, variant in metrics.variants.items()}
    selected, other = _metrics_of_training(inputs)
    curve = training_curve(inputs.train_log.steps, inputs.train_log.evaluations, (selected, other), training.best_step)
    return {
        **common_context(inputs, metrics.task),
        "metrics": metrics,
        "level": f"{metrics.confidence_level:.0%}",
        "row_metric_name": TEXT_METRIC_NAMES[metrics.metric],
        "metric_names": TEXT_METRIC_NAMES,
        "variants": variants,
        "gain": metrics.comparisons["tuned_minus_hard_prompt"],
        "comparisons": [(name.removeprefix("tuned_minus_").replace("_", " "), found) for name, found in metrics.comparisons.items()],
        "worth": worth_of_text(inputs),
        "variant_bars": [_bar(name, getattr(variant, metrics.metric)) for name, variant in variants.items()],
        "curve": curve,
        "window": smoothing_window(inputs.train_log.steps),
        "metric_name": TRAINING_METRICS[selected],
        "other_metric_name": TRAINING_METRICS[other],
        "examples": written_examples(inputs.predictions, metrics.metric, inputs.examples, inputs.seed),
        "hard_prompts": [Candidate(item["template"], float(item[metrics.metric]), int(item["rows"])) for item in inputs.score.hard_prompts],
    }


def text_card_pictures(inputs: TextCardInputs) -> list[Picture]:
    """The card's plots as files: the training curve, where there is one."""
    picture = training_picture_of(inputs, inputs.train_log, _metrics_of_training(inputs))
    return [picture] if picture else []


def worth_of_text(inputs: TextCardInputs) -> Worth:
    """Whether prompt tuning pays, by the metric of the task; free text has no LoRA to compare with."""
    metric = inputs.metrics.metric
    gains = {name.removeprefix("tuned_minus_"): found[metric] for name, found in inputs.metrics.comparisons.items()}
    return worth_of(TEXT_METRIC_NAMES[metric], gains, {}, without_lora="A LoRA is not trained for answers in free text")


def written_examples(predictions: "pd.DataFrame", metric: str, count: int, seed: int) -> list[WrittenExample]:
    """Twice `count` rows in an order that depends on seed and row ids only, then sorted by the tuned prompt's score, the best first."""
    drawn = draw(predictions[predictions["variant"] == "tuned"], 2 * count, seed)
    scores = row_scores(drawn["prediction"].tolist(), drawn["target"].tolist())[metric]
    answers = {(str(row["row_id"]), str(row["variant"])): str(row["prediction"]) for row in predictions.to_dict("records")}
    present = [name for name in NAMES if name in set(predictions["variant"])]
    made = [
        WrittenExample(
            visible_pieces(str(row["text"])),
            visible_pieces(str(row["target"])),
            [(NAMES[name], visible_pieces(answers[str(row["row_id"]), name])) for name in present],
            float(score),
        )
        for row, score in zip(drawn.to_dict("records"), scores, strict=True)
    ]
    return sorted(made, key=lambda example: -example.score)


def check_metric_of_prompts(score: TextScore, metric: str, where: Path) -> None:
    """Raise StageInputError when a candidate hard prompt lacks its figure."""
    for number, item in enumerate(score.hard_prompts, 1):
        if not isinstance(item.get(metric), float) or not isinstance(item.get("template"), str) or not isinstance(item.get("rows"), int):
            raise StageInputError(
                f"{where}: candidate {number} of hard_prompts is {item!r:.120}, expected template, {metric} and rows. Run `dvc repro`."
            )


def text_columns() -> Sequence[str]:
    """The columns of the predictions that the card reads."""
    return ("row_id", "variant", "text", "target", "prediction")


def _metrics_of_training(inputs: TextCardInputs) -> tuple[str, str]:
    """The metric that selected the step, and the other one that was measured."""
    selected = inputs.manifest.training.metric
    return selected, "exact_match" if selected == "token_accuracy" else "token_accuracy"


def _bar(name: str, estimate: Estimate) -> Bar:
    return Bar(name, "", estimate, "plain" if name == NAMES["tuned"] else "reference", "")
