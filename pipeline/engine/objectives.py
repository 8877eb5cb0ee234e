"""What a soft prompt is trained for: a loss per example, and a result on a validation set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, collate
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.scoring import classification_result, score_examples
from pipeline.engine.shared_prefix import label_scores
from pipeline.engine.template import Verbalizers


@dataclass(frozen=True)
class Result:
    """Metrics by name (more is better, the ones a task can stop on), mean loss per example in nats, and how many rows."""

    metrics: dict[str, float]
    loss: float
    rows: int


class Objective(Protocol):
    """A task as the engine sees it."""

    def losses(self, base: BaseModel, prefix: Prefix, rows: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """Loss of each example [B], float32, with gradients; example b stands behind prefix `rows[b]`."""
        ...

    def evaluate(self, base: BaseModel, prefix: Prefix, examples: Sequence[Example], batch_size: int) -> list[Result]:
        """The result of each prefix on all `examples`."""
        ...


@dataclass(frozen=True)
class Classification:
    """Rank classification: cross-entropy over the verbalizers, which is also what decides at inference."""

    verbalizers: Verbalizers
    length_normalisation: bool = False

    def losses(self, base: BaseModel, prefix: Prefix, rows: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """Cross-entropy of the right label among the labels."""
        batch = collate(examples, self.verbalizers, base.device)
        scores = label_scores(base, prefix, rows, batch, self.verbalizers, length_normalisation=self.length_normalisation)
        return torch.nn.functional.cross_entropy(scores, batch.labels, reduction="none")

    def evaluate(self, base: BaseModel, prefix: Prefix, examples: Sequence[Example], batch_size: int) -> list[Result]:
        """Accuracy, macro F1 and the largest share of one predicted label, for each prefix; all prefixes in mixed batches."""
        count = len(prefix.lengths)
        scores = score_examples(
            base=base,
            prefix=prefix,
            examples=[example for example in examples for _ in range(count)],
            rows=list(range(count)) * len(examples),
            verbalizers=self.verbalizers,
            batch_size=batch_size,
            length_normalisation=self.length_normalisation,
        ).view(len(examples), count, -1)
        labels = [example.label for example in examples]
        results: list[Result] = []
        for row in range(count):
            found = classification_result(scores[:, row], labels)
            share = float(scores[:, row].argmax(-1).bincount(minlength=scores.shape[-1]).max()) / len(labels)
            metrics = {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "largest_prediction_share": share}
            results.append(Result(metrics, found.loss, found.rows))
        return results
