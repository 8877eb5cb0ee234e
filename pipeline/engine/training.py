"""The training loop: several trials side by side, deterministic, safe to interrupt, with early stopping on the validation task metric.

A trial is one soft prompt with its own seed, learning rate, start and length. Trials share every forward and backward pass (see
learners.py) and nothing else: each has its own optimiser, order of examples, clipping and early stopping, so a trial in the batch
learns what it would learn alone.

A step is a pure function of what a checkpoint holds (see checkpoint.py), so a run that was stopped or killed and started again
gives the bits of one that was not.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from pipeline.engine.batching import Example, training_order
from pipeline.engine.checkpoint import (
    Checkpoint,
    Snapshot,
    named,
    optimiser_snapshot,
    random_snapshot,
    restore_optimiser,
    restore_random,
    within,
)
from pipeline.engine.detection import Detection, Evaluation, Problem, problems
from pipeline.engine.hardware import deterministic_algorithms
from pipeline.engine.learners import Learner
from pipeline.engine.objectives import Result
from pipeline.engine.optimisation import OptimiserSettings, learning_rate_at, make_optimiser, warmup_steps
from pipeline.engine.soft_prompt import state_sha256
from pipeline.errors import CheckpointError, TrainingError, TrainingInterrupted

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
    Talwalkar 2016): their rows are freed. `on_problem` says whether trouble in one trial (see detection.py) is only recorded or is
    an error; the divergence of all trials is always one.
    """

    maximum_gradient_norm: float
    batch_size: int
    maximum_steps: int
    evaluate_every: int
    early_stopping_patience: int
    metric: str
    halving: bool = False
    on_problem: Literal["warn", "fail"] = "warn"
    detection: Detection = field(default_factory=Detection)


@dataclass(kw_only=True)
class Trial:
    """One trial under way.

    `order` gives its batches; `batches` counts those it has used; `best` is its best evaluation so far; `problems` are the kinds of
    trouble already reported.
    """

    index: int
    settings: TrialSettings
    module: torch.nn.Module
    optimiser: torch.optim.Optimizer
    order: Iterator[list[Example]]
    batches: int = 0
    losses: list[float] = field(default_factory=list[float])
    evaluations: list[Evaluation] = field(default_factory=list[Evaluation])
    without_gain: int = 0
    active: bool = True
    ended: str = ""
    problems: list[str] = field(default_factory=list[str])
    best: Result | None = None
    best_step: int = 0
    best_state: State = field(default_factory=dict[str, torch.Tensor])

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What the optimiser moves."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def diverged(self) -> bool:
        """Whether it ended because a number was not finite."""
        return "divergence" in self.problems

    def keep_best(self, step: int, result: Result, metric: str) -> bool:
        """Remember this evaluation when it is the best so far; returns whether it is."""
        improved = self.best is None or rank(result, metric) > rank(self.best, metric)
        if improved:
            self.best, self.best_step = result, step
            self.best_state = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.without_gain = 0 if improved else self.without_gain + 1
        return improved

    def report(self, problem: Problem, step: int) -> list[Record]:
        """The record of a problem, the first time that this trial has it."""
        if problem.kind in self.problems:
            return []
        self.problems.append(problem.kind)
        if problem.kind == "divergence":
            self.active, self.ended = False, problem.found
        return [
            {
                "event": "problem",
                "trial": self.index,
                "step": step,
                "kind": problem.kind,
                "found": problem.found,
                "advice": problem.advice,
            }
        ]

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """The trial between two steps: tensors by name, and JSON values."""
        moments, counts = optimiser_snapshot(self.optimiser)
        tensors = named("module", self.module.state_dict()) | named("best", self.best_state) | named("optimiser", moments)
        return tensors, {
            **{name: getattr(self, name) for name in PLAIN_STATE},
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "best": None if self.best is None else asdict(self.best),
            "optimiser": counts,
        }

    def restore(self, tensors: State, state: dict[str, Any]) -> None:
        """Undo `snapshot` on a trial before its first step."""
        self.module.load_state_dict(within(tensors, "module"))
        restore_optimiser(self.optimiser, within(tensors, "optimiser"), state["optimiser"])
        device = next(self.module.parameters()).device
        self.best_state = {name: value.to(device) for name, value in within(tensors, "best").items()}
        self.best = None if state["best"] is None else Result(**state["best"])
        self.evaluations = [Evaluation(step=one["step"], result=Result(**one["result"])) for one in state["evaluations"]]
        for name in PLAIN_STATE:
            setattr(self, name, state[name])
        for _ in range(self.batches):
            next(self.order)


# What of a Trial is JSON as it stands.
PLAIN_STATE = ("batches", "losses", "without_gain", "active", "ended", "problems", "best_step")


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
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Train all trials; `trials[i]` moves `learner.modules[i]`.

    `on_record` gets a record per trial and step, per trial and evaluation, and per problem (see docs/stage-files.md, `train_log`).
    When there is a checkpoint training goes on from it, and `on_record` gets the former records first, so a resumed run's records
    are those of a run without interruption. `stop` is asked after each step. Two runs on one machine give the same bits.

    Raises TrainingInterrupted when `stop` said so, after saving the checkpoint; TrainingError when all trials have diverged, or with
    `on_problem` "fail" when one has a problem; CheckpointError when the checkpoint must not be used.
    """
    running = [start_trial(index, one, learner.modules[index], train, settings) for index, one in enumerate(trials)]
    step, records = _resume(running, checkpoint)
    for record in records:
        on_record(record)

    def emit(new: Sequence[Record]) -> None:
        for record in new:
            records.append(record)
            on_record(record)
        _fail_on_problems(running, new, settings)

    clock, resumed_at = time.perf_counter(), step
    while step < settings.maximum_steps and any(trial.active for trial in running):
        taken = take_step(learner, [trial for trial in running if trial.active], step, settings)
        step += 1
        left = (time.perf_counter() - clock) / (step - resumed_at) * (settings.maximum_steps - step)
        emit([{**record, "seconds_left": left} if record["event"] == "step" else record for record in taken])
        if any(trial.active for trial in running) and (step % settings.evaluate_every == 0 or step == settings.maximum_steps):
            emit(evaluate(learner, running, validation, step, settings))
        finished = step == settings.maximum_steps or not any(trial.active for trial in running)
        stopped = stop() and not finished
        if checkpoint is not None and (finished or stopped or step % checkpoint.every == 0):
            checkpoint.save(_snapshot(running, step, records))
        if stopped:
            kept = "Start it again to go on from there." if checkpoint is not None else "Nothing was kept: no checkpoint was asked for."
            raise TrainingInterrupted(f"Training was asked to stop after step {step} of {settings.maximum_steps}. {kept}")
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
    troubles: list[Record] = []
    for trial in trials:
        loss = losses[trial.index]
        trial.losses.append(loss)
        norm = float(torch.nn.utils.clip_grad_norm_(trial.parameters, settings.maximum_gradient_norm))
        rate = learning_rate_at(step, trial.settings.optimiser)
        if math.isfinite(loss) and math.isfinite(norm):
            for group in trial.optimiser.param_groups:
                group["lr"] = rate
            trial.optimiser.step()
        else:
            found = f"diverged at step {step + 1}: loss {loss}, gradient norm {norm}"
            troubles += trial.report(Problem(kind="divergence", found=found), step + 1)
        records.append(
            {"event": "step", "trial": trial.index, "step": step + 1, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
        )
    seconds = time.perf_counter() - started
    examples = sum(len(batch) for batch in batches.values())
    return [{**record, "examples_per_second": examples / seconds, "seconds": seconds} for record in records] + troubles


def evaluate(
    learner: Learner, trials: Sequence[Trial], validation: Sequence[Example], step: int, settings: TrainingSettings
) -> list[Record]:
    """Evaluate the active trials on `validation`, keep the best of each, and end those that stopped improving or are halved away."""
    active = [trial for trial in trials if trial.active]
    outputs = learner.outputs([trial.index for trial in active], validation)
    records: list[Record] = []
    for row, trial in enumerate(active):
        result = learner.result(outputs[:, row], validation)
        if not math.isfinite(result.loss):
            found = f"diverged at step {step}: validation loss {result.loss}"
            records += trial.report(Problem(kind="divergence", found=found), step)
            continue
        improved = trial.keep_best(step, result, settings.metric)
        trial.evaluations.append(Evaluation(step=step, result=result))
        if trial.without_gain >= settings.early_stopping_patience:
            trial.active, trial.ended = False, f"no gain in {trial.without_gain} evaluations"
        evaluation = {"event": "evaluation", "trial": trial.index, "step": step}
        # A loss can be the same to the last digit while the parameters are not: whoever repeats the run compares these hashes.
        values = {"rows": result.rows, "best": improved, "values_sha256": state_sha256(trial.module.state_dict())}
        records.append({**evaluation, **result.metrics, "loss": result.loss, **values})
        for problem in problems(
            losses=trial.losses,
            evaluations=trial.evaluations,
            warmup=warmup_steps(trial.settings.optimiser),
            metric=settings.metric,
            detection=settings.detection,
        ):
            records += trial.report(problem, step)
    if settings.halving and step < settings.maximum_steps:
        _halve([trial for trial in active if not trial.diverged], step, settings.metric)
    return records


def _halve(trials: Sequence[Trial], step: int, metric: str) -> None:
    """End the worse half of the trials just evaluated; one always stays."""
    ranked = sorted(trials, key=lambda trial: rank(trial.evaluations[-1].result, metric), reverse=True)
    for trial in ranked[math.ceil(len(trials) / 2) :]:
        trial.active, trial.ended = False, f"halved away at step {step}"


def rank(result: Result, metric: str) -> tuple[float, float]:
    """Better is greater: the task metric, then the lower loss."""
    return (result.metrics[metric], -result.loss)


def _snapshot(trials: Sequence[Trial], step: int, records: list[Record]) -> Snapshot:
    tensors, random_state = random_snapshot()
    tensors = named("random", tensors)
    states: list[dict[str, Any]] = []
    for trial in trials:
        of_trial, state = trial.snapshot()
        tensors |= named(f"trial.{trial.index}", of_trial)
        states.append(state)
    return Snapshot(tensors=tensors, state={"step": step, "random": random_state, "trials": states}, records=records)


def _resume(trials: Sequence[Trial], checkpoint: Checkpoint | None) -> tuple[int, list[Record]]:
    """Put the trials where the checkpoint left them; returns the steps done and the records of them."""
    snapshot = None if checkpoint is None else checkpoint.load()
    if checkpoint is None or snapshot is None:
        return 0, []
    try:
        for trial, state in zip(trials, snapshot.state["trials"], strict=True):
            trial.restore(within(snapshot.tensors, f"trial.{trial.index}"), state)
        restore_random(within(snapshot.tensors, "random"), snapshot.state["random"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint {checkpoint.path} does not fit these trials: {error!r}. It was made by other code or on other hardware "
            "although its key is the same; delete it to train from the first step."
        ) from error
    return snapshot.state["step"], snapshot.records


def _fail_on_problems(trials: Sequence[Trial], new: Sequence[Record], settings: TrainingSettings) -> None:
    """Raise TrainingError when every trial has diverged, or when a problem is to be an error."""
    found = [record for record in new if record["event"] == "problem"]
    if found and all(trial.diverged for trial in trials):
        ends = "; ".join(f"trial {trial.index} {trial.ended}" for trial in trials)
        raise TrainingError(f"Every trial diverged: {ends}. {found[0]['advice']}")
    if found and settings.on_problem == "fail":
        listed = "; ".join(f"trial {record['trial']} has the problem {record['kind']}: {record['found']}" for record in found)
        raise TrainingError(f"Training has a problem at step {found[0]['step']}: {listed}. {found[0]['advice']}")


def _finish(trials: list[Trial], steps: int, settings: TrainingSettings) -> TrainingResult:
    def best_rank(trial: Trial) -> tuple[float, float]:
        assert trial.best is not None
        return rank(trial.best, settings.metric)

    # A trial that has not diverged was evaluated: at the last step if not before.
    best = max((trial for trial in trials if trial.best is not None), key=best_rank)
    best.module.load_state_dict(best.best_state)
    return TrainingResult(trials=tuple(trials), best_trial=best.index, steps=steps, stopped_early=steps < settings.maximum_steps)
