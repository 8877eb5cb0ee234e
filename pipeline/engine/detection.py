"""Trouble that a training run can be in, and which parameter to change.

Divergence: a loss or gradient is NaN or infinite. The trial ends.

Plateau: nothing was learnt and nothing is being learnt. Both the training loss and the validation result must stand still, since
the first is noisy and the second coarse, and what has been reached must be no better than answering without looking at the
example. The last condition tells a stuck run from one that has converged, which early stopping ends and which is no problem.
"Still" means within two standard errors and within the share that is noise to a user, as the threshold of ReduceLROnPlateau does
for one metric; the window is counted in evaluations, as the strips of Prechelt (1998, "Early stopping - but when?") are in epochs.

One class: nearly all validation examples get one label, and wrongly so, from the first to the last evaluation of a window. One such
evaluation is no alarm: measured on tweets with SmolLM2-135M, a run that learns passes through it (macro F1 0.20 at step 50, 0.36
at step 100), and the base model starts there.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.engine.objectives import Result

Kind = Literal["divergence", "plateau", "one_class"]
ADVICE: dict[Kind, str] = {
    "divergence": "Lower tune.learning_rate or tune.maximum_gradient_norm, or set base_model.dtype to float32.",
    "plateau": (
        "Raise tune.learning_rate (by a factor of 3 to 10) or lower tune.warmup_ratio; if that does not help, check that the labels belong "
        "to the texts, and start from a text that describes the task (tune.init)."
    ),
    "one_class": (
        "Lower tune.learning_rate, or start from the labels or a text that describes the task (tune.init); with rare labels set tune.metric "
        "to macro_f1."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Detection:
    """When to speak of trouble. A window of n evaluations lies between n + 1 of them, all after the learning-rate warm-up.

    `smallest_gain` is a share of the loss and a difference of the metric (there at least 1 / sqrt(rows), two standard errors of a
    share at its most uncertain); `largest_prediction_share` is a share of the validation examples.
    """

    window: int = 2
    smallest_gain: float = 0.02
    largest_prediction_share: float = 0.98


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of one trial after `step` optimiser steps."""

    step: int
    result: Result


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What was found in a trial, and what to change."""

    kind: Kind
    found: str

    @property
    def advice(self) -> str:
        """Which parameter to change."""
        return ADVICE[self.kind]


def problems(
    *, losses: Sequence[float], evaluations: Sequence[Evaluation], warmup: int, metric: str, detection: Detection
) -> list[Problem]:
    """Look at a trial after an evaluation: `losses` of all its steps, all its `evaluations`, and its steps of learning-rate warm-up."""
    after = [evaluation for evaluation in evaluations if evaluation.step > warmup]
    found = (_one_class(after, detection), _plateau(losses, after, metric, detection))
    return [problem for problem in found if problem is not None]


def _one_class(evaluations: Sequence[Evaluation], detection: Detection) -> Problem | None:
    """All through the window nearly everything got one label; where nearly everything has that label, this is right."""
    limit = detection.largest_prediction_share
    if len(evaluations) <= detection.window:
        return None
    for evaluation in evaluations[-1 - detection.window :]:
        metrics = evaluation.result.metrics
        if not metrics.get("largest_prediction_share", 0.0) >= limit > metrics.get("accuracy", 0.0):
            return None
    share = evaluations[-1].result.metrics["largest_prediction_share"]
    return Problem(
        kind="one_class",
        found=f"{share:.1%} of the validation examples get one label (limit {limit:.1%}), {detection.window + 1} times in a row",
    )


def _plateau(losses: Sequence[float], evaluations: Sequence[Evaluation], metric: str, detection: Detection) -> Problem | None:
    """No gain over the last `window` evaluations, and nothing reached that is better than the trivial answer."""
    if len(evaluations) <= detection.window:
        return None
    first, *later = evaluations[-1 - detection.window :]
    ended, gain = first.step, detection.smallest_gain
    between = losses[ended : evaluations[-1].step]
    earlier, recent = between[: len(between) // 2], between[len(between) // 2 :]
    reference = first.result.trivial_loss
    if reference is None:  # an objective without a trivial answer: what the trial started from
        reference = statistics.fmean(losses[: max(1, evaluations[0].step // 10)])
    metric_gain = max(gain, 1 / math.sqrt(first.result.rows))
    still = (
        all(one.result.metrics[metric] <= first.result.metrics[metric] + metric_gain for one in later)
        and all(one.result.loss >= first.result.loss * (1 - gain) for one in later)
        and _fall(earlier, recent) <= max(2 * _standard_error(earlier, recent), gain * statistics.fmean(earlier))
    )
    reached = min(statistics.fmean(recent), *(one.result.loss for one in evaluations))
    if not still or reached < (1 - gain) * reference:
        return None
    return Problem(
        kind="plateau",
        found=f"no gain since step {first.step}: training loss {statistics.fmean(earlier):.4g} then {statistics.fmean(recent):.4g}, "
        f"{metric} {first.result.metrics[metric]:.4g} then {later[-1].result.metrics[metric]:.4g}, and a loss of {reference:.4g} is reached "
        "without looking at the examples",
    )


def _fall(earlier: Sequence[float], recent: Sequence[float]) -> float:
    return statistics.fmean(earlier) - statistics.fmean(recent)


def _standard_error(earlier: Sequence[float], recent: Sequence[float]) -> float:
    """Of the difference of two means (Welch)."""
    if min(len(earlier), len(recent)) < 2:
        return math.inf
    return math.sqrt(statistics.variance(earlier) / len(earlier) + statistics.variance(recent) / len(recent))
