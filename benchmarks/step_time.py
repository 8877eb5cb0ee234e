"""Seconds of one training step on this machine, for each way of computing it.

    python -m benchmarks.step_time

The demo's base model, 16 examples of about 40 tokens, 20 virtual tokens; the ways take turns, and the median of the repetitions
is reported with the fastest and slowest. This is where `dtype: auto` and `attention: auto` on a CPU come from, why the linear layers of
a float32 base model are oneDNN's there, and why nothing is compiled. Results go to `benchmarks/results/step_time.json`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Task, engine_learner, now, start_values
from benchmarks.measuring import spread, take_turns
from benchmarks.recording import RESULTS, describe_machine
from pipeline.engine.base_model import load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.frozen_linear import multiply_by_blas
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.shared_prefix import decoder
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


@dataclass(frozen=True)
class Way:
    """How a step is computed; `compiled` puts the decoder through torch.compile, `blas` leaves the linear layers torch's own."""

    dtype: str
    attention: str
    compiled: bool = False
    blas: bool = False

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return ", ".join([self.attention, *["torch.compile"] * self.compiled, *["torch's linear layers"] * self.blas])


WAYS = (
    Way("float32", "eager"),
    Way("float32", "eager", blas=True),
    Way("float32", "sdpa"),
    Way("float32", "eager", compiled=True),
    Way("bfloat16", "eager"),
    Way("bfloat16", "sdpa"),
    Way("bfloat16", "eager", compiled=True),
)


def make_learner(way: Way, source: dict[str, Any]) -> SharedPrefixLearner:
    """The engine on a base model of its own."""
    base = load_base_model(source=source, dtype=way.dtype, attention=way.attention)
    if way.blas:
        multiply_by_blas(base.model)
    if way.compiled:
        decoder(base.model).compile(dynamic=True)
    task = Task(base, (5, 6, 7), Verbalizers(("a", "b", "c"), ((60,), (61,), (62,))))
    return engine_learner(task, start_values(base, 20))


def main() -> None:
    """Measure and write the results."""
    source = load_task(find_root(Path.cwd()) / "params.yaml", "tweet_sentiment").base_model.source.model_dump()
    arms = {way: partial(one_step, make_learner(way, source)) for way in WAYS}
    first = {way: found[0] for way, found in take_turns(arms, 1).items()}  # a warm-up, in which compilers work
    rows: list[dict[str, Any]] = []
    for way, taken in take_turns(arms, REPETITIONS).items():
        found = spread(taken)
        figures = {"median": found["median"], "fastest": found["minimum"], "slowest": found["maximum"], "first": first[way]}
        rows.append({"dtype": way.dtype, "way": way.name, **figures})
        print(
            f"{way.dtype:9} {way.name:30} {found['median']:.2f} s ({found['minimum']:.2f} to {found['maximum']:.2f}), first {first[way]:.1f} s"
        )
    write_json(RESULTS / "step_time.json", {"machine": describe_machine(torch.device("cpu")), "repetitions": REPETITIONS, "rows": rows})


if __name__ == "__main__":
    main()
