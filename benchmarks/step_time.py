"""Seconds of one training step on this machine, for each data type and attention kernel.

    python -m benchmarks.step_time

The demo's base model, 16 examples of about 40 tokens, 20 virtual tokens; the configurations take turns, and the median of the repetitions
is reported with the fastest and slowest. This is where `dtype: auto` and `attention: auto` on a CPU come from.
Results go to `benchmarks/results/step_time.json`.
"""

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example, collate
from pipeline.engine.hardware import choose_device, describe_hardware
from pipeline.engine.shared_prefix import encode_prefix, label_scores
from pipeline.engine.soft_prompt import initial_soft_prompt
from pipeline.engine.template import Verbalizers
from pipeline.layout import find_root
from pipeline.params import load_task
from pipeline.records import write_json

REPETITIONS = 7
VERBALIZERS = Verbalizers(("a", "b", "c"), ((60,), (61,), (62,)))
EXAMPLES = [Example(list(range(100, 136 + index % 8)), index % 3) for index in range(16)]


def one_step(base: BaseModel, soft_prompt: torch.Tensor) -> float:
    """Seconds of a forward and backward pass."""
    started = time.perf_counter()
    batch = collate(EXAMPLES, VERBALIZERS, base.device)
    scores = label_scores(base, encode_prefix(base, soft_prompt, (5, 6, 7)), batch, VERBALIZERS)
    torch.nn.functional.cross_entropy(scores, batch.labels).backward()
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure and write the results."""
    root = find_root(Path.cwd())
    source = load_task(root / "params.yaml", "tweet_sentiment").base_model.source.model_dump()
    loaded = {
        (dtype, attention): load_base_model(source=source, dtype=dtype, attention=attention)
        for dtype, attention in itertools.product(("float32", "bfloat16"), ("eager", "sdpa"))
    }
    prompts = {
        key: initial_soft_prompt(base=base, num_virtual_tokens=20, init_text="Classify the tweet").requires_grad_(True)
        for key, base in loaded.items()
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in loaded}
    for repetition in range(REPETITIONS + 1):
        for key, base in loaded.items():
            taken = one_step(base, prompts[key])
            if repetition:  # the first is a warm-up
                seconds[key].append(taken)
    rows: list[dict[str, Any]] = [
        {"dtype": dtype, "attention": attention, "median": statistics.median(taken), "fastest": min(taken), "slowest": max(taken)}
        for (dtype, attention), taken in seconds.items()
    ]
    for row in rows:
        print(f"{row['dtype']:9} {row['attention']:6} {row['median']:.2f} s ({row['fastest']:.2f} to {row['slowest']:.2f})")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    write_json(results / "step_time.json", {"machine": describe_hardware(choose_device()), "repetitions": REPETITIONS, "rows": rows})


if __name__ == "__main__":
    main()
