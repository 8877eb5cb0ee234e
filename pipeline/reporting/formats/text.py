"""The reports of a task with free-text targets."""

from typing import Any

from pydantic import model_validator

from pipeline.reporting.formats.record import Estimate, Record
from pipeline.reporting.formats.training import Evaluated

TEXT_METRIC_NAMES = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "perplexity": "perplexity of the reference",
    "invalid_output_rate": "invalid answers",
    "length_ratio": "length ratio",
    "repetition": "repetition",
}
# Those with a comparison: the more, the better.
TEXT_METRICS = ("exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf")


class CommonestAnswer(Record):
    """The answer that most rows got."""

    text: str
    rows: int


class TextVariant(Record):
    """Metrics of the answers of one variant."""

    exact_match: Estimate
    token_f1: Estimate
    rouge_1: Estimate
    rouge_2: Estimate
    rouge_l: Estimate
    bleu: Estimate
    chrf: Estimate
    perplexity: Estimate
    invalid_output_rate: Estimate
    length_ratio: Estimate
    repetition: Estimate
    empty: int
    cut: int
    distinct_answers: int
    commonest_answer: CommonestAnswer


class Signatures(Record):
    """What sacrebleu counted and how."""

    bleu: str
    chrf: str


class TextMetrics(Record):
    """What the evaluate stage wrote."""

    task: str
    n: int
    metric: str
    confidence_level: float
    replicates: int
    method: str
    signatures: Signatures
    variants: dict[str, TextVariant]
    comparisons: dict[str, dict[str, Estimate]]

    @model_validator(mode="after")
    def _complete(self) -> "TextMetrics":
        """The card shows the tuned prompt against the best hard prompt by the task's metric."""
        if self.metric not in TEXT_METRICS or not {"tuned", "hard_prompt"} <= self.variants.keys():
            raise ValueError(f"needs the variants tuned and hard_prompt, and a metric of {TEXT_METRICS}")
        if self.metric not in self.comparisons.get("tuned_minus_hard_prompt", {}):
            raise ValueError(f"lacks comparisons.tuned_minus_hard_prompt.{self.metric}")
        return self


class TextScore(Record):
    """What the score stage wrote; `trivial_answer` is null where it differs from row to row."""

    hard_prompt: str
    hard_prompts: list[dict[str, Any]]
    trivial_baseline: str
    trivial_answer: str | None
    rows: int


class TextEvaluation(Evaluated):
    """An evaluation of written answers, by teacher forcing."""

    token_accuracy: float
    exact_match: float
