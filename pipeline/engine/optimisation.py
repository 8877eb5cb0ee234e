"""Optimisers and learning-rate schedules, each with the settings that suit soft prompts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from transformers.optimization import Adafactor


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """How parameters move. `learning_rate` is the peak; steps are optimiser steps."""

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float
    weight_decay: float = 0.0
    warmup_ratio: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    maximum_steps: int


def make_optimiser(settings: OptimiserSettings, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, or Adafactor as Lester et al. (2021) used it for soft prompts: parameter scaling off, their rate is a constant 0.3."""
    if settings.name == "adamw":
        return torch.optim.AdamW(list(parameters), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return Adafactor(
        list(parameters),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def warmup_steps(settings: OptimiserSettings) -> int:
    """How many steps the learning rate takes to its peak."""
    return math.ceil(settings.warmup_ratio * settings.maximum_steps)


def learning_rate_at(step: int, settings: OptimiserSettings) -> float:
    """Learning rate of a step (0-based): linear warm-up to the peak, then the schedule down to 0 at `maximum_steps`."""
    warmup = warmup_steps(settings)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, settings.maximum_steps - warmup)
    factor = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1 - progress
    return settings.learning_rate * factor
