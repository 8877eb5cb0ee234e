"""Training a soft prompt: one loop, deterministic, with early stopping on the validation task metric."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, collate, training_order
from pipeline.engine.hardware import deterministic_algorithms
from pipeline.engine.scoring import ClassificationResult, classification_result, score_examples
from pipeline.engine.shared_prefix import encode_prefix, label_scores
from pipeline.engine.template import Verbalizers
from pipeline.errors import TrainingError

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train. Steps are optimiser steps; `evaluate_every` and patience count steps and evaluations."""

    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    schedule: Literal["cosine", "linear", "constant"]
    maximum_gradient_norm: float
    batch_size: int
    maximum_steps: int
    evaluate_every: int
    early_stopping_patience: int
    metric: Literal["accuracy", "macro_f1"]
    seed: int
    scoring_batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The best soft prompt [P, H] by the validation metric, where it stood, and how many steps were taken."""

    soft_prompt: torch.Tensor
    best_step: int
    best: ClassificationResult
    steps: int
    stopped_early: bool


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Learning rate of a step (0-based): linear warm-up to the peak, then the schedule down to 0 at `maximum_steps`."""
    warmup = math.ceil(settings.warmup_ratio * settings.maximum_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, settings.maximum_steps - warmup)
    factor = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1 - progress
    return settings.learning_rate * factor


@deterministic_algorithms()
def train_soft_prompt(
    *,
    base: BaseModel,
    soft_prompt: torch.Tensor,
    head: tuple[int, ...],
    verbalizers: Verbalizers,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainingSettings,
    on_record: Callable[[Record], None] = lambda record: None,
) -> TrainingResult:
    """Tune `soft_prompt` [P, H] by cross-entropy over the verbalizers; the argument itself is left as it is.

    `on_record` gets a record per step and per evaluation (see docs/stage-files.md, `train_log`).
    Raises TrainingError when the loss is NaN or infinite. Two runs on one machine give the same bits.
    """
    tuned = soft_prompt.detach().float().to(base.device).clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([tuned], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    order = training_order(train, batch_size=settings.batch_size, seed=settings.seed)
    best: tuple[int, ClassificationResult, torch.Tensor] | None = None
    without_gain = 0
    step = 0
    while step < settings.maximum_steps and without_gain < settings.early_stopping_patience:
        on_record(_step(base, tuned, head, verbalizers, next(order), optimizer, step, settings))
        step += 1
        if step % settings.evaluate_every == 0 or step == settings.maximum_steps:
            result = _evaluate(base, tuned, head, verbalizers, validation, settings)
            improved = best is None or _rank(result, settings) > _rank(best[1], settings)
            if improved:
                best = (step, result, tuned.detach().clone())
            without_gain = 0 if improved else without_gain + 1
            on_record({"event": "evaluation", "step": step, **vars(result), "best": improved})
    if best is None:
        raise TrainingError(f"Training took no step: maximum_steps is {settings.maximum_steps}. Set it to at least 1.")
    best_step, result, tensor = best
    return TrainingResult(soft_prompt=tensor, best_step=best_step, best=result, steps=step, stopped_early=step < settings.maximum_steps)


def _step(
    base: BaseModel,
    tuned: torch.Tensor,
    head: tuple[int, ...],
    verbalizers: Verbalizers,
    examples: Sequence[Example],
    optimizer: torch.optim.Optimizer,
    step: int,
    settings: TrainingSettings,
) -> Record:
    started = time.perf_counter()
    batch = collate(examples, verbalizers, base.device)
    scores = label_scores(base, encode_prefix(base, tuned, head), batch, verbalizers)
    loss = torch.nn.functional.cross_entropy(scores, batch.labels)
    optimizer.zero_grad()
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_([tuned], settings.maximum_gradient_norm))
    value, rate = float(loss.detach()), learning_rate_at(step, settings)
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise TrainingError(
            f"Training diverged at step {step + 1}: loss {value}, gradient norm {norm}. "
            "Lower tune.learning_rate or tune.maximum_gradient_norm, or set base_model.dtype to float32."
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    seconds = time.perf_counter() - started
    return {
        "event": "step",
        "step": step + 1,
        "loss": value,
        "learning_rate": rate,
        "gradient_norm": norm,
        "examples_per_second": len(examples) / seconds,
        "seconds": seconds,
    }


def _evaluate(
    base: BaseModel,
    tuned: torch.Tensor,
    head: tuple[int, ...],
    verbalizers: Verbalizers,
    validation: Sequence[Example],
    settings: TrainingSettings,
) -> ClassificationResult:
    scores = score_examples(
        base=base, soft_prompt=tuned, head=head, examples=validation, verbalizers=verbalizers, batch_size=settings.scoring_batch_size
    )
    return classification_result(scores, [example.label for example in validation])


def _rank(result: ClassificationResult, settings: TrainingSettings) -> tuple[float, float]:
    """Better is greater: the task metric, then the lower loss."""
    metric = result.accuracy if settings.metric == "accuracy" else result.macro_f1
    return (metric, -result.loss)
