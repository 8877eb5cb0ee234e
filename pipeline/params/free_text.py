"""What of params.yaml has no meaning for free-text targets, and what such a task must set instead."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.params.section import PositiveInt, Section

if TYPE_CHECKING:
    from pipeline.params.task import TaskParams

RowMetric = Literal["exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l"]
TrivialBaseline = Literal["commonest_target", "first_words"]
# Metrics of written answers of which more is better, in [0, 1]: a minimum can be set on them.
TEXT_METRICS = ("exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf")
TRAINING_METRICS = ("exact_match", "token_accuracy")


class GenerationParams(Section):
    """How a free-text answer is written, and what it is judged by.

    `maximum_new_tokens` limits an answer, and what training sees of a target; the end token is one of them. `separator` stands between
    template and answer and belongs to neither. An answer ends before any of the `stop` strings: a base model that was not tuned
    otherwise goes on with the next question. `num_beams` 1 is greedy decoding. `metric` is the figure of single rows that chooses the hard prompt
    and orders examples. `baseline` is the answer that needs no model: the training split's commonest target, or the first words
    of the first field of the template, as many as half of the training targets have (for summaries, where no two targets are alike).
    """

    maximum_new_tokens: PositiveInt = 64
    separator: str = " "
    stop: list[str] = Field(default_factory=lambda: ["\n"])
    num_beams: PositiveInt = 1
    length_penalty: float = 1.0
    metric: RowMetric = "token_f1"
    baseline: TrivialBaseline = "commonest_target"


def free_text_problems(params: "TaskParams") -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of what does not fit the kind of answer: labels, or free text."""
    if params.ingest.columns.target is None:
        if params.prompt.generation is not None:
            yield "prompt.generation", "belongs to free text (ingest.columns.target); this task answers labels, so leave it out"
        if params.tune.metric in TRAINING_METRICS:
            yield "tune.metric", f"{params.tune.metric} is a metric of free text; choose accuracy or macro_f1"
        return
    if params.tune.metric not in TRAINING_METRICS:
        yield (
            "tune.metric",
            f"{params.tune.metric} needs labels, and ingest.columns.target is free text; choose one of {list(TRAINING_METRICS)}",
        )
    inits = {f"tune.trials.inits.{index}": init for index, init in enumerate(params.tune.trials.inits)} or {"tune.init": params.tune.init}
    for key, init in inits.items():
        if init.kind == "class_labels":
            yield key, "class_labels needs labels, and ingest.columns.target is free text; choose text, sample_vocabulary or random_uniform"
    if "" in params.prompt.generation_settings.stop:
        yield "prompt.generation.stop", "an empty string would end every answer before it begins; list strings of one character or more"
    if params.gate.slices.thresholds:
        yield "gate.slices.thresholds", "slices are judged by right answers to labels, and ingest.columns.target is free text; write []"
    behaviour = params.behaviour
    for key in ("swaps", "pairs", "perturbations", "tests", "batch_invariance_rows", "bias_pairs"):
        if getattr(behaviour, key):
            yield (
                f"behaviour.{key}",
                "the probes look at labels and their probabilities, and ingest.columns.target is free text; leave it empty",
            )
    fairness = params.assess_fairness
    for key in ("groups", "columns", "intersections"):
        if getattr(fairness, key):
            yield (
                f"assess_fairness.{key}",
                "groups are compared by labels, and ingest.columns.target is free text; leave it empty for this task",
            )
