"""Keys and values of shared prefixes, and the cache classes of transformers that carry them into a forward pass.

This is the only module that touches those classes; tests/engine/test_prefix_cache.py holds what it relies on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of N shared prefixes: per layer a pair of [N, heads, S, head dimension], padded on the left.

    `lengths` has the real length of each; S is the longest. A prefix of length 0 has no layers.
    """

    layers: KeyValues
    lengths: tuple[int, ...]

    @property
    def width(self) -> int:
        """S."""
        return max(self.lengths)

    def visible(self, device: torch.device) -> torch.Tensor:
        """Which of the S positions are real, [N, S]."""
        columns = torch.arange(self.width, device=device)
        return columns[None] >= self.width - torch.tensor(self.lengths, device=device)[:, None]

    def detached(self) -> "Prefix":
        """The same values as leaves that collect gradients: what backward() leaves there goes on through the prefix, once."""
        return Prefix(tuple((k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in self.layers), self.lengths)

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
