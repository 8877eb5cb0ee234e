"""Many trials: 8 in one batch against 8 runs of the same engine one after the other, and successive halving against the full grid.

    python -m benchmarks.trials --repetitions 3

Two learning rates with four seeds each, or as the options say. The three ways take turns; each trains from the same starts on the same
batches, so what a trial loses in the batch and alone must be the same. Results: `benchmarks/results/trials.json`, `.md` and `.png`.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.arms import Task, now, start_values
from benchmarks.drawing import Panel, goals_table, table, with_spread
from benchmarks.measuring import goal, spread, take_turns
from benchmarks.recording import add_options, write_results
from pipeline.engine.batching import Example
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.training import Record, TrainingSettings, TrialSettings, train

TITLE = "Trials: in one batch, one by one, and with successive halving"
ONE_BY_ONE, TOGETHER, HALVING = "engine, one by one", "engine, in one batch", "engine, in one batch, halving"
TOGETHER_GOAL = {"cpu": 1.0, "cuda": 1 / 3}
HALVING_GOAL = 0.5
LOSS_GOAL = 1e-4
METRIC = "accuracy"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the three ways train: every learning rate with every seed, from the start of `num_virtual_tokens`."""

    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    num_virtual_tokens: int
    batch_size: int
    steps: int
    evaluate_every: int

    def trials(self) -> list[TrialSettings]:
        """The grid; the seeds of one learning rate share a name."""
        return [
            TrialSettings(
                name=f"learning rate {rate:g}",
                seed=seed,
                optimiser=OptimiserSettings(learning_rate=rate, warmup_ratio=0.05, maximum_steps=self.steps),
            )
            for rate, seed in itertools.product(self.learning_rates, self.seeds)
        ]


@dataclass(frozen=True)
class Outcome:
    """Seconds of training and evaluation, the loss of each trial at each step, and the best validation metric."""

    seconds: float
    losses: dict[tuple[int, int], float]
    best_metric: float
    best_trial: int


def train_together(task: Task, plan: Plan, examples: Sequence[Example], validation: Sequence[Example], *, halving: bool = False) -> Outcome:
    """All trials in one batch."""
    return _train(task, plan, plan.trials(), examples, validation, halving=halving)


def train_one_by_one(task: Task, plan: Plan, examples: Sequence[Example], validation: Sequence[Example]) -> Outcome:
    """A run for each trial."""
    outcomes = [_train(task, plan, [trial], examples, validation) for trial in plan.trials()]
    best = max(range(len(outcomes)), key=lambda index: outcomes[index].best_metric)
    return Outcome(
        sum(outcome.seconds for outcome in outcomes),
        {(trial, step): loss for trial, outcome in enumerate(outcomes) for (_, step), loss in outcome.losses.items()},
        outcomes[best].best_metric,
        best,
    )


def _train(
    task: Task,
    plan: Plan,
    trials: Sequence[TrialSettings],
    examples: Sequence[Example],
    validation: Sequence[Example],
    *,
    halving: bool = False,
) -> Outcome:
    records: list[Record] = []
    settings = TrainingSettings(
        maximum_gradient_norm=1.0,
        batch_size=plan.batch_size,
        maximum_steps=plan.steps,
        evaluate_every=plan.evaluate_every,
        early_stopping_patience=plan.steps,
        metric=METRIC,
        halving=halving,
    )
    start = start_values(task.base, plan.num_virtual_tokens)
    started = now(task.base)
    learner = SharedPrefixLearner(
        base=task.base,
        head=task.head,
        objective=Classification(task.verbalizers),
        modules=[build_method(base=task.base, settings=MethodSettings(name="prompt_tuning"), embeddings=start, seed=0) for _ in trials],
    )
    result = train(learner=learner, trials=trials, train=examples, validation=validation, settings=settings, on_record=records.append)
    seconds = now(task.base) - started
    losses = {(record["trial"], record["step"]): record["loss"] for record in records if record["event"] == "step"}
    return Outcome(seconds, losses, result.best.metrics[METRIC], result.best_trial)


def compare(task: Task, plan: Plan, examples: Sequence[Example], validation: Sequence[Example], repetitions: int) -> dict[str, Any]:
    """Seconds of the three ways, the largest difference of a trial's loss in the batch and alone, and the best metric of each."""
    ways = {
        ONE_BY_ONE: partial(train_one_by_one, task, plan, examples, validation),
        TOGETHER: partial(train_together, task, plan, examples, validation),
        HALVING: partial(train_together, task, plan, examples, validation, halving=True),
    }
    outcomes = take_turns(ways, repetitions)
    alone, together = outcomes[ONE_BY_ONE][0], outcomes[TOGETHER][0]
    differences = {step: abs(loss - together.losses[step]) for step, loss in alone.losses.items()}
    first_steps = [difference for (_, step), difference in differences.items() if step == 1]
    return {
        "seconds": {name: spread([outcome.seconds for outcome in found]) for name, found in outcomes.items()},
        "best_metric": {name: found[0].best_metric for name, found in outcomes.items()},
        "best_trial": {name: found[0].best_trial for name, found in outcomes.items()},
        "trial_steps": {name: len(found[0].losses) for name, found in outcomes.items()},
        "largest_loss_difference": max(differences.values()),
        "largest_loss_difference_at_step_1": max(first_steps),
        "validation_rows": len(validation),
    }


def goals(found: dict[str, Any], device: str, dtype: str) -> list[dict[str, Any]]:
    """Times, equal losses (set for float32) and equal validation metric within its standard error."""
    seconds, best = found["seconds"], found["best_metric"]
    noise = (best[TOGETHER] * (1 - best[TOGETHER]) / found["validation_rows"]) ** 0.5
    listed = [
        goal(
            "time in one batch over one by one",
            seconds[TOGETHER]["median"] / seconds[ONE_BY_ONE]["median"],
            TOGETHER_GOAL[device],
            at_least=False,
        ),
        goal("time of halving over the full grid", seconds[HALVING]["median"] / seconds[TOGETHER]["median"], HALVING_GOAL, at_least=False),
        goal("best validation accuracy lost by halving, limit one standard error", best[TOGETHER] - best[HALVING], noise, at_least=False),
    ]
    if dtype == "float32":
        listed.append(
            goal("largest difference of a trial's loss, batch against alone", found["largest_loss_difference"], LOSS_GOAL, at_least=False)
        )
    return listed


def tables(found: dict[str, Any], found_goals: Sequence[dict[str, Any]]) -> list[str]:
    """The markdown tables."""
    lines = [
        [name, with_spread(seconds), str(found["trial_steps"][name]), f"{found['best_metric'][name]:.3f}", str(found["best_trial"][name])]
        for name, seconds in found["seconds"].items()
    ]
    header = ["way", "seconds", "steps of all trials", f"best validation {METRIC}", "best trial"]
    return [table(header, lines), goals_table(found_goals)]


def panels(found: dict[str, Any]) -> list[Panel]:
    """Seconds, and the best metric."""
    best = {name: {"median": value, "minimum": value, "maximum": value} for name, value in found["best_metric"].items()}
    return [Panel("time for all trials", "seconds", found["seconds"]), Panel("what the best trial reaches", f"validation {METRIC}", best)]


def run(options: argparse.Namespace) -> None:
    """Measure and write."""
    from benchmarks.demo_task import load_demo  # needs pandas and the params, which a bare machine has not

    demo = load_demo(options)
    base = demo.load(options.dtype)
    plan = make_plan(options)
    validation = demo.tweets(base, "validation", options.validation_rows)
    found = compare(demo.task(base), plan, demo.tweets(base, "train"), validation, options.repetitions)
    found_goals = goals(found, "cpu", options.dtype)
    write_results(
        "trials",
        title=TITLE,
        device=base.device,
        settings={"repetitions": options.repetitions, "dtype": options.dtype, **vars(plan)},
        found={**found, "goals": found_goals},
        tables=tables(found, found_goals),
        panels=panels(found),
        columns=2,
        folder=options.output,
    )
    print("\n".join(tables(found, found_goals)))


def make_plan(options: argparse.Namespace) -> Plan:
    """The plan the options ask for."""
    return Plan(
        learning_rates=tuple(options.learning_rates),
        seeds=tuple(options.seeds),
        num_virtual_tokens=options.virtual_tokens,
        batch_size=options.batch_size,
        steps=options.steps,
        evaluate_every=max(1, options.steps // 4),
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repetitions=3)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.001, 0.005])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--virtual-tokens", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16, help="of each trial; evaluated, and halved, after every quarter")
    parser.add_argument("--validation-rows", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    return parser


def main() -> None:
    """Run from the command line."""
    run(make_parser().parse_args())


if __name__ == "__main__":
    main()
