"""The training loop: several trials side by side, deterministic, with early stopping on the validation task metric.

A trial is one soft prompt with its own seed, learning rate, start and length. Trials share every forward and backward pass (see
learners.py) and nothing else: each has its own optimiser, order of examples, clipping and early stopping, so a trial in the batch
learns what it would learn alone.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.engine.batching import Example, training_order
from pipeline.engine.hardware import deterministic_algorithms
from pipeline.engine.learners import Learner
from pipeline.engine.objectives import Result
from pipeline.engine.optimisation import OptimiserSettings, learning_rate_at, make_optimiser
from pipeline.errors import TrainingError

Record = dict[str, Any]
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What may differ between trials. `name` says which configuration this is, the seed apart: trials of one name are compared."""

    name: str
    seed: int
    optimiser: OptimiserSettings


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What all trials share. Steps are optimiser steps; `early_stopping_patience` counts evaluations.

    With `halving`, the worse half of the trials is given up at each evaluation until one is left (successive halving, Jamieson and
    Talwalkar 2016): their rows are freed.
    """

    maximum_gradient_norm: float
    batch_size: int
    maximum_steps: int
    evaluate_every: int
    early_stopping_patience: int
    metric: str
    halving: bool = False


@dataclass(kw_only=True)
class Trial:
    """One trial under way. `order` gives its batches; `batches` counts those it has used; `best` is its best evaluation so far."""

    index: int
    settings: TrialSettings
    module: torch.nn.Module
    optimiser: torch.optim.Optimizer
    order: Iterator[list[Example]]
    batches: int = 0
    without_gain: int = 0
    active: bool = True
    ended: str = ""
    best: Result | None = None
    best_step: int = 0
    best_state: State = field(default_factory=dict[str, torch.Tensor])

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What the optimiser moves."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def keep_best(self, step: int, result: Result, metric: str) -> bool:
        """Remember this evaluation when it is the best so far; returns whether it is."""
        improved = self.best is None or rank(result, metric) > rank(self.best, metric)
        if improved:
            self.best, self.best_step = result, step
            self.best_state = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.without_gain = 0 if improved else self.without_gain + 1
        return improved


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The trials with their best evaluations, which of them is best, and how many steps the longest took.

    The best trial's module holds its best state again.
    """

    trials: tuple[Trial, ...]
    best_trial: int
    steps: int
    stopped_early: bool

    @property
    def best(self) -> Result:
        """The best trial's best evaluation."""
        found = self.trials[self.best_trial].best
        assert found is not None
        return found

    @property
    def best_step(self) -> int:
        """The step of that evaluation."""
        return self.trials[self.best_trial].best_step

    def spread(self, metric: str) -> dict[str, dict[str, float]]:
        """For each configuration: the mean and standard deviation (n - 1) of the trials' best metric over seeds, and their number."""
        by_name: dict[str, list[float]] = {}
        for trial in self.trials:
            if trial.best is not None:
                by_name.setdefault(trial.settings.name, []).append(trial.best.metrics[metric])
        return {
            name: {
                "mean": statistics.fmean(values),
                "standard_deviation": statistics.stdev(values) if len(values) > 1 else math.nan,
                "trials": len(values),
            }
            for name, values in by_name.items()
        }


@deterministic_algorithms()
def train(
    *,
    learner: Learner,
    trials: Sequence[TrialSettings],
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainingSettings,
    on_record: Callable[[Record], None] = lambda record: None,
) -> TrainingResult:
    """Train all trials; `trials[i]` moves `learner.modules[i]`.

    `on_record` gets a record per trial and step, and per trial and evaluation (see docs/stage-files.md, `train_log`).
    Raises TrainingError when no trial is left that has not diverged. Two runs on one machine give the same bits.
    """
    running = [start_trial(index, one, learner.modules[index], train, settings) for index, one in enumerate(trials)]
    step = 0
    while step < settings.maximum_steps and any(trial.active for trial in running):
        for record in take_step(learner, [trial for trial in running if trial.active], step, settings):
            on_record(record)
        step += 1
        if not any(trial.active for trial in running):
            break
        if step % settings.evaluate_every == 0 or step == settings.maximum_steps:
            for record in evaluate(learner, running, validation, step, settings):
                on_record(record)
    return _finish(running, step, settings)


def start_trial(
    index: int, trial: TrialSettings, module: torch.nn.Module, examples: Sequence[Example], settings: TrainingSettings
) -> Trial:
    """A trial before its first step."""
    return Trial(
        index=index,
        settings=trial,
        module=module,
        optimiser=make_optimiser(trial.optimiser, [parameter for parameter in module.parameters() if parameter.requires_grad]),
        order=training_order(examples, batch_size=settings.batch_size, seed=trial.seed),
    )


def take_step(learner: Learner, trials: Sequence[Trial], step: int, settings: TrainingSettings) -> list[Record]:
    """One optimiser step of each trial. A trial whose loss or gradient is not finite ends here, and its parameters stay as they were."""
    started = time.perf_counter()
    batches = {trial.index: next(trial.order) for trial in trials}
    for trial in trials:
        trial.batches += 1
        trial.optimiser.zero_grad()
    losses = learner.backward(batches, 1 / len(batches[trials[0].index]))
    records: list[Record] = []
    for trial in trials:
        norm = float(torch.nn.utils.clip_grad_norm_(trial.parameters, settings.maximum_gradient_norm))
        rate = learning_rate_at(step, trial.settings.optimiser)
        if math.isfinite(losses[trial.index]) and math.isfinite(norm):
            for group in trial.optimiser.param_groups:
                group["lr"] = rate
            trial.optimiser.step()
        else:
            trial.active, trial.ended = False, f"diverged at step {step + 1}: loss {losses[trial.index]}, gradient norm {norm}"
        records.append(
            {
                "event": "step",
                "trial": trial.index,
                "step": step + 1,
                "loss": losses[trial.index],
                "learning_rate": rate,
                "gradient_norm": norm,
            }
        )
    seconds = time.perf_counter() - started
    examples = sum(len(batch) for batch in batches.values())
    return [{**record, "examples_per_second": examples / seconds, "seconds": seconds} for record in records]


def evaluate(
    learner: Learner, trials: Sequence[Trial], validation: Sequence[Example], step: int, settings: TrainingSettings
) -> list[Record]:
    """Evaluate the active trials on `validation`, keep the best of each, and end those that stopped improving or are halved away."""
    active = [trial for trial in trials if trial.active]
    outputs = learner.outputs([trial.index for trial in active], validation)
    results = [learner.result(outputs[:, row], validation) for row in range(len(active))]
    records: list[Record] = []
    for trial, result in zip(active, results, strict=True):
        improved = trial.keep_best(step, result, settings.metric)
        if trial.without_gain >= settings.early_stopping_patience:
            trial.active, trial.ended = False, f"no gain in {trial.without_gain} evaluations"
        records.append(
            {"event": "evaluation", "trial": trial.index, "step": step, **result.metrics, "loss": result.loss, "rows": result.rows, "best": improved}
        )
    if settings.halving and len(active) > 1 and step < settings.maximum_steps:
        ranked = sorted(zip(active, results, strict=True), key=lambda pair: rank(pair[1], settings.metric), reverse=True)
        for trial, _ in ranked[math.ceil(len(active) / 2) :]:
            trial.active, trial.ended = False, f"halved away at step {step}"
    return records


def rank(result: Result, metric: str) -> tuple[float, float]:
    """Better is greater: the task metric, then the lower loss."""
    return (result.metrics[metric], -result.loss)


def _finish(trials: list[Trial], steps: int, settings: TrainingSettings) -> TrainingResult:
    evaluated = [trial for trial in trials if trial.best is not None]
    if not evaluated:
        ends = "; ".join(f"trial {trial.index} {trial.ended}" for trial in trials if trial.ended)
        raise TrainingError(
            f"Training diverged before its first evaluation: {ends}. "
            "Lower tune.learning_rate or tune.maximum_gradient_norm, or set base_model.dtype to float32."
        )

    def best_rank(trial: Trial) -> tuple[float, float]:
        assert trial.best is not None
        return rank(trial.best, settings.metric)

    best = max(evaluated, key=best_rank)
    best.module.load_state_dict(best.best_state)
    return TrainingResult(trials=tuple(trials), best_trial=best.index, steps=steps, stopped_early=steps < settings.maximum_steps)
