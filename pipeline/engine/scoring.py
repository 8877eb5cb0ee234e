"""Rank classification of many examples over shared prefixes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, collate, scoring_order
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.shared_prefix import label_scores
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
    prefix: Prefix,
    examples: Sequence[Example],
    verbalizers: Verbalizers,
    batch_size: int,
    rows: Sequence[int] | None = None,
    length_normalisation: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> torch.Tensor:
    """Log-probabilities of the labels, [N, C] float32 on the CPU in the order of `examples`; `advance` is told of finished rows.

    `prefix` is computed once by `encode_prefixes` and serves the whole set. With several prefixes in it, `rows` says which one
    each example stands behind (several tuned prompts in one mixed batch); by default all stand behind the first.
    """
    behind = [0] * len(examples) if rows is None else list(rows)
    scores = torch.empty(len(examples), len(verbalizers.labels))
    with torch.no_grad():
        for indices in scoring_order(examples, batch_size):
            batch = collate([examples[index] for index in indices], verbalizers, base.device)
            found = label_scores(
                base, prefix, [behind[index] for index in indices], batch, verbalizers, length_normalisation=length_normalisation
            )
            scores[indices] = found.log_softmax(-1).cpu()
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
