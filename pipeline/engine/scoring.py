"""Rank classification of many examples over one shared prefix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, collate, scoring_order
from pipeline.engine.shared_prefix import encode_prefix, label_scores
from pipeline.engine.template import Verbalizers


@dataclass(frozen=True)
class ClassificationResult:
    """Accuracy and macro F1 (0 to 1, best 1) and mean cross-entropy (nats, best 0) over `rows` examples."""

    accuracy: float
    macro_f1: float
    loss: float
    rows: int


def score_examples(
    *,
    base: BaseModel,
    soft_prompt: torch.Tensor | None,
    head: tuple[int, ...],
    examples: Sequence[Example],
    verbalizers: Verbalizers,
    batch_size: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> torch.Tensor:
    """Log-probabilities of the labels, [N, C] float32 on the CPU in the order of `examples`; `advance` is told of finished rows.

    `soft_prompt` [P, H] or None for a hard prompt alone. The prefix's keys and values are computed once.
    """
    scores = torch.empty(len(examples), len(verbalizers.labels))
    with torch.no_grad():
        prefix = encode_prefix(base, soft_prompt, head)
        for indices in scoring_order(examples, batch_size):
            batch = collate([examples[index] for index in indices], verbalizers, base.device)
            scores[indices] = label_scores(base, prefix, batch, verbalizers).log_softmax(-1).cpu()
            advance(len(indices))
    return scores


def classification_result(log_probabilities: torch.Tensor, labels: Sequence[int]) -> ClassificationResult:
    """Accuracy, macro F1 (a label without true and predicted rows counts 0, as in scikit-learn) and cross-entropy."""
    truth = torch.tensor(labels)
    predicted = log_probabilities.argmax(-1)
    f1: list[float] = []
    for label in range(log_probabilities.shape[1]):
        true_positives = int(((predicted == label) & (truth == label)).sum())
        selected = int((predicted == label).sum()) + int((truth == label).sum())
        f1.append(2 * true_positives / selected if selected else 0.0)
    loss = torch.nn.functional.nll_loss(log_probabilities, truth)
    return ClassificationResult(float((predicted == truth).float().mean()), sum(f1) / len(f1), float(loss), len(truth))
