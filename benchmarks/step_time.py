"""Seconds of one training step on this machine, for each data type and attention kernel.

    python -m benchmarks.step_time

The demo's base model, 16 examples of about 40 tokens, 20 virtual tokens; the configurations take turns, and the median of the repetitions
is reported with the fastest and slowest. This is where `dtype: auto` and `attention: auto` on a CPU come from.
Results go to `benchmarks/results/step_time.json`.
"""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.arms import Task, engine_learner, now, start_values
from benchmarks.measuring import spread, take_turns
from benchmarks.recording import RESULTS, describe_machine
from pipeline.engine.base_model import load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.template import Verbalizers
from pipeline.layout import find_root
from pipeline.params import load_task
from pipeline.records import write_json

REPETITIONS = 7
EXAMPLES = [Example(list(range(100, 136 + index % 8)), index % 3) for index in range(16)]


def one_step(learner: SharedPrefixLearner) -> float:
    """Seconds of a forward and backward pass."""
    started = now(learner.base)
    learner.backward({0: EXAMPLES}, 1 / len(EXAMPLES))
    return now(learner.base) - started


def main() -> None:
    """Measure and write the results."""
    source = load_task(find_root(Path.cwd()) / "params.yaml", "tweet_sentiment").base_model.source.model_dump()
    learners: dict[str, SharedPrefixLearner] = {}
    for dtype, attention in itertools.product(("float32", "bfloat16"), ("eager", "sdpa")):
        base = load_base_model(source=source, dtype=dtype, attention=attention)
        task = Task(base, (5, 6, 7), Verbalizers(("a", "b", "c"), ((60,), (61,), (62,))))
        learners[f"{dtype} {attention}"] = engine_learner(task, start_values(base, 20))
    arms = {name: partial(one_step, learner) for name, learner in learners.items()}
    take_turns(arms, 1)  # a warm-up
    rows: list[dict[str, Any]] = []
    for name, taken in take_turns(arms, REPETITIONS).items():
        dtype, attention = name.split()
        found = spread(taken)
        rows.append(
            {"dtype": dtype, "attention": attention, "median": found["median"], "fastest": found["minimum"], "slowest": found["maximum"]}
        )
        print(f"{dtype:9} {attention:6} {found['median']:.2f} s ({found['minimum']:.2f} to {found['maximum']:.2f})")
    device = next(iter(learners.values())).base.device
    write_json(RESULTS / "step_time.json", {"machine": describe_machine(device), "repetitions": REPETITIONS, "rows": rows})


if __name__ == "__main__":
    main()
