"""Batches of examples: length bucketing, padding, masks and positions.

Positions and masks are explicit everywhere, so that an example's score depends neither on its batch mates nor on padding.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from pipeline.engine.template import Verbalizers

BUCKET_WINDOW = 32  # batches sorted together by length: wide enough to save padding, narrow enough to keep the order random


@dataclass(frozen=True)
class Example:
    """One example's own tokens behind the shared prefix, and the index of its label (-1 when unknown)."""

    token_ids: Sequence[int]
    label: int


@dataclass(frozen=True)
class Batch:
    """Padded examples followed, in the same row, by the verbalizers' inner tokens as branches.

    input_ids [B, T+E], real [B, T+E] (what is no padding), positions [B, T+E] counted from the end of the shared prefix,
    visible [B, T+E, T+E] (which token sees which), label_positions [B, 1+E] (the token that predicts the first verbalizer token, then the branches), labels [B].
    E is 0 when every verbalizer is one token.
    """

    input_ids: torch.Tensor
    real: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    label_positions: torch.Tensor
    labels: torch.Tensor


def collate(examples: Sequence[Example], verbalizers: Verbalizers, device: torch.device) -> Batch:
    """Pad the examples on the right and append the branches of verbalizers longer than one token."""
    lengths = torch.tensor([len(example.token_ids) for example in examples])
    width, count = int(lengths.max()), len(examples)
    inner = [ids[:-1] for ids in verbalizers.token_ids]
    branches = sum(len(ids) for ids in inner)
    total = width + branches

    input_ids = torch.zeros(count, total, dtype=torch.long)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
    positions = torch.arange(total).repeat(count, 1)
    real = (positions < lengths[:, None]) | (positions >= width)
    visible = torch.ones(total, total, dtype=torch.bool).tril().repeat(count, 1, 1)
    visible[:, :, width:] = False
    column = width
    for ids in inner:
        for depth, token in enumerate(ids):
            at = column + depth
            input_ids[:, at] = token
            positions[:, at] = lengths + depth
            # A branch sees its example's real tokens and what precedes it in its own branch.
            visible[:, at, :width] = torch.arange(width) < lengths[:, None]
            visible[:, at, column : at + 1] = True
        column += len(ids)
    label_positions = torch.cat([lengths[:, None] - 1, torch.arange(width, total).repeat(count, 1)], dim=1)
    labels = torch.tensor([example.label for example in examples])
    return Batch(*(tensor.to(device) for tensor in (input_ids, real, positions, visible, label_positions, labels)))


def training_order(examples: Sequence[Example], *, batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Batches without end: each epoch is shuffled, sorted by length within a window of batches, and the batches shuffled again.

    The same seed gives the same order. An incomplete last batch of an epoch is left out, so every step sees `batch_size` examples
    (all of them when there are fewer).
    """
    randomness = random.Random(seed)
    size = min(batch_size, len(examples))
    while True:
        order = list(range(len(examples)))
        randomness.shuffle(order)
        order = order[: len(order) - len(order) % size]
        for start in range(0, len(order), size * BUCKET_WINDOW):
            window = sorted(order[start : start + size * BUCKET_WINDOW], key=lambda index: len(examples[index].token_ids))
            batches = [window[first : first + size] for first in range(0, len(window), size)]
            randomness.shuffle(batches)
            for batch in batches:
                yield [examples[index] for index in batch]


def training_order_sha256(examples: Sequence[Example], *, batch_size: int, seed: int, batches: int) -> str:
    """Hex sha256 of the examples in the order in which the first `batches` batches of `training_order` hold them.

    It is taken over tokens and labels, not over positions: rows that moved in the file but are trained on in the same order are the same training.
    """
    digest = hashlib.sha256()
    for batch in islice(training_order(examples, batch_size=batch_size, seed=seed), batches):
        digest.update(repr([(list(example.token_ids), example.label) for example in batch]).encode())
    return digest.hexdigest()


def scoring_order(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Indices of the examples in batches of similar length, longest first (a batch that does not fit fails at once)."""
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].token_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
