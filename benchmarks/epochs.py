"""Which examples share a batch: each arm's own order over the whole training set, and the few batches of it that are timed.

The cost of a step depends on its longest text. Timing the first steps of an epoch would be unfair (transformers' length grouping starts with
its longest batches), and timing whole epochs would take days, so the batches of an epoch are ranked by width and evenly spaced ones are timed.
"""

import itertools
from collections.abc import Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from pipeline.engine.batching import Example, training_order

Batches = list[list[Example]]


def engine_epoch(examples: Sequence[Example], batch_size: int) -> Batches:
    """One epoch in the engine's order."""
    return list(itertools.islice(training_order(examples, batch_size=batch_size, seed=0), len(examples) // batch_size))


def random_epoch(examples: Sequence[Example], batch_size: int, seed: int = 0) -> Batches:
    """One epoch in random order, Trainer's default."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    return _cut(examples, order, batch_size)


def grouped_epoch(examples: Sequence[Example], batch_size: int) -> Batches:
    """One epoch in the order of Trainer's length grouping."""
    lengths = [len(example.token_ids) for example in examples]
    sampler = LengthGroupedSampler(batch_size, lengths=lengths, generator=torch.Generator().manual_seed(0))
    return _cut(examples, list(sampler), batch_size)


def evenly_spaced(batches: Batches, count: int) -> Batches:
    """`count` batches that stand for all: at even steps of the ranking by width."""
    ranked = sorted(batches, key=width)
    return [ranked[int((index + 0.5) * len(ranked) / count)] for index in range(count)]


def width(batch: Sequence[Example]) -> int:
    """Tokens a row of this batch is padded to."""
    return max(len(example.token_ids) for example in batch)


def _cut(examples: Sequence[Example], order: list[int], size: int) -> Batches:
    """Whole batches only, as the engine's order has them."""
    return [[examples[index] for index in order[start : start + size]] for start in range(0, len(order) - size + 1, size)]
