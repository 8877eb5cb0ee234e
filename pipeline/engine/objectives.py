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
    """Metrics by name, mean loss per example in nats, and how many rows. Of the metrics a task can stop on, more is better.

    `trivial_loss` is the loss of the best answer that does not look at the example, where the task has one: a prompt that stays
    above it has learnt nothing.
    """

    metrics: dict[str, float]
    loss: float
    rows: int
    trivial_loss: float | None = None


class Objective(Protocol):
    """A task as the engine sees it."""

    def losses(self, base: BaseModel, prefix: Prefix, rows: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """Loss of each example [B], float32, with gradients; example b stands behind prefix `rows[b]`."""
        ...

    def outputs(self, base: BaseModel, prefix: Prefix, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
        """What `result` needs to know of each of E examples behind each of the N prefixes: [E, N, K], float32 on the CPU.

        K is the objective's own and the same for any examples; an example's row depends on no other example. So the examples can
        be shared out among processes and their rows put together again.
        """
        ...

    def result(self, outputs: torch.Tensor, examples: Sequence[Example]) -> Result:
        """The result of one prefix, from its outputs [E, K] for all examples of a set."""
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

    def outputs(self, base: BaseModel, prefix: Prefix, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
        """Log-probabilities of the labels, [E, N, C]; all prefixes in mixed batches."""
        count = len(prefix.lengths)
        return score_examples(
            base=base,
            prefix=prefix,
            examples=[example for example in examples for _ in range(count)],
            rows=list(range(count)) * len(examples),
            verbalizers=self.verbalizers,
            batch_size=batch_size,
            length_normalisation=self.length_normalisation,
        ).view(len(examples), count, -1)

    def result(self, outputs: torch.Tensor, examples: Sequence[Example]) -> Result:
        """Accuracy, macro F1 and the largest share of one predicted label; the trivial loss is the entropy of the labels' shares."""
        labels = [example.label for example in examples]
        found = classification_result(outputs, labels)
        shares = torch.tensor(labels).bincount().double() / len(labels)
        metrics = {
            "accuracy": found.accuracy,
            "macro_f1": found.macro_f1,
            "largest_prediction_share": float(outputs.argmax(-1).bincount().max()) / len(labels),
        }
        # With a single label there is nothing to tell apart, and no trivial answer to be better than.
        entropy = float(-torch.xlogy(shares, shares).sum())
        return Result(metrics, found.loss, found.rows, trivial_loss=entropy or None)
