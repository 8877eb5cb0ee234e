"""Keys and values of shared prefixes, and the cache classes of transformers that carry them into a forward pass.

This is the only module that touches those classes; tests/engine/test_prefix_cache.py holds what it relies on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of N shared prefixes: per layer a pair of [N, heads, S, head dimension], padded on the left.

    `lengths` has the real length of each; S is the longest. A prefix of length 0 has no layers. Behind a `packed` prefix the
    examples run end to end in one row (see packing.py), otherwise each in a row of its own.
    """

    layers: KeyValues
    lengths: tuple[int, ...]
    packed: bool = False

    @property
    def width(self) -> int:
        """S."""
        return max(self.lengths)

    def visible(self, device: torch.device) -> torch.Tensor:
        """Which of the S positions are real, [N, S]."""
        columns = torch.arange(self.width, device=device)
        return columns[None] >= self.width - torch.tensor(self.lengths, device=device)[:, None]

    def positions(self, device: torch.device) -> torch.Tensor:
        """Position of each of the S columns in its own text, [N, S]; 0 for padding."""
        padding = self.width - torch.tensor(self.lengths, device=device)
        return (torch.arange(self.width, device=device)[None] - padding[:, None]).clamp(min=0)

    def detached(self) -> "Prefix":
        """The same values as leaves that collect gradients: what backward() leaves there goes on through the prefix, once."""
        leaves = tuple((k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in self.layers)
        return replace(self, layers=leaves)

    def tensors(self) -> list[torch.Tensor]:
        """All keys and values, layer by layer."""
        return [tensor for pair in self.layers for tensor in pair]


def empty_cache() -> DynamicCache:
    """A cache for a forward pass that starts from nothing."""
    return DynamicCache()


def cache_of(layers: KeyValues) -> DynamicCache:
    """A cache that starts with `layers`; they are not copied until a forward pass appends to them."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def layers_of(cache: DynamicCache) -> KeyValues:
    """What a forward pass left in `cache`."""
    layers = cast(list[DynamicLayer], cache.layers)
    return tuple((cast(torch.Tensor, layer.keys), cast(torch.Tensor, layer.values)) for layer in layers)


def rows_of_prefix(prefix: Prefix, rows: Sequence[int]) -> KeyValues:
    """The prefix of each batch row, per layer [B, heads, S, d]; a view when all rows share one prefix."""
    if len(prefix.lengths) == 1:
        return tuple((k.expand(len(rows), -1, -1, -1), v.expand(len(rows), -1, -1, -1)) for k, v in prefix.layers)
    if not prefix.layers:
        return ()
    index = torch.tensor(rows, device=prefix.layers[0][0].device)
    return tuple((k.index_select(0, index), v.index_select(0, index)) for k, v in prefix.layers)


def side_by_side(prefix: Prefix) -> KeyValues:
    """All prefixes one after the other in one row, per layer [1, heads, N*S, d]; a view when there is only one."""
    return tuple((k.transpose(0, 1).flatten(1, 2)[None], v.transpose(0, 1).flatten(1, 2)[None]) for k, v in prefix.layers)


def keep_rows(cache: DynamicCache, rows: torch.Tensor) -> None:
    """Leave only these batch rows in `cache`, in this order."""
    cache.batch_select_indices(rows)


def repeat_rows(cache: DynamicCache, times: int) -> None:
    """Repeat every batch row of `cache`, the copies of one row side by side, as beam search expects them."""
    cache.batch_repeat_interleave(times)


def align_right(cache: DynamicCache, real: torch.Tensor) -> torch.Tensor:
    """Move the real columns [B, K] of every row of `cache` to its right end, in their order; returns which are real now.

    Code that counts a sliding window in columns then counts it in tokens.
    """
    real, order = real.sort(dim=-1, stable=True)
    for layer in cast(list[DynamicLayer], cache.layers):
        keys, values = cast(torch.Tensor, layer.keys), cast(torch.Tensor, layer.values)
        index = order[:, None, :, None]
        layer.keys = keys.gather(2, index.expand_as(keys))
        layer.values = values.gather(2, index.expand_as(values))
    return real
