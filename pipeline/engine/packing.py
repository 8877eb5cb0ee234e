"""Padding-free packing: the examples of a batch end to end in one row, each seeing its own prefix and itself.

The keys and values of the N prefixes lie side by side once, [1, heads, N*S, d], instead of once per example, and a row of L tokens has
no padding. What keeps the examples apart is the mask, so packing pays where the attention kernel skips hidden blocks: FlexAttention on a
GPU (Dong et al. 2024, "Flex Attention"). A kernel that computes L x (N*S+L) scores and hides most of them gives the same result; it
serves the tests, and rarely pays otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask

from pipeline.engine.prefix_cache import KeyValues, Prefix, side_by_side

FLEX_ATTENTION = "flex_attention"  # transformers' name of the kernel

Sees = Callable[[Any, Any, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class PackedRow:
    """L tokens of B examples in one row behind N prefixes of width S; K = N*S + L keys.

    input_ids [1, L], positions [1, L] counted from each text's start, layers as in Prefix with [1, heads, N*S, d].
    Per query: `owner` [L], its example, `column` [L], its place in the padded batch, `slot` [L], its prefix. Per key: `key_slot` [K], the
    prefix it belongs to (-1 for padding and for tokens of the row), `key_owner` [K] and `key_column` [K] (-1 and 0 in a prefix).
    `own` [B, T, T] says which of an example's tokens sees which.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    layers: KeyValues
    owner: torch.Tensor
    column: torch.Tensor
    slot: torch.Tensor
    key_slot: torch.Tensor
    key_owner: torch.Tensor
    key_column: torch.Tensor
    key_positions: torch.Tensor
    own: torch.Tensor

    def sees(self, window: int | None) -> Sees:
        """Whether query q sees key k, in the signature of FlexAttention's masks (batch, head, q, k); indices may be broadcast."""
        owner, column, slot, own = self.owner, self.column, self.slot, self.own
        key_slot, key_owner, key_column = self.key_slot, self.key_owner, self.key_column
        positions, key_positions = self.positions[0], self.key_positions

        def in_prefix_or_example(_batch: Any, _head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            same = key_owner[k] == owner[q]
            return (key_slot[k] == slot[q]) | (same & own[owner[q], column[q], key_column[k]])

        if window is None:
            return in_prefix_or_example
        back = window

        def near(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return in_prefix_or_example(batch, head, q, k) & (positions[q] - key_positions[k] < back)

        return near

    def visible(self, window: int | None) -> torch.Tensor:
        """The dense mask, [L, K] booleans."""
        device = self.owner.device
        queries, keys = torch.arange(len(self.owner), device=device), torch.arange(len(self.key_slot), device=device)
        return self.sees(window)(0, 0, queries[:, None], keys[None])

    def block_mask(self, window: int | None) -> Any:
        """The same mask for FlexAttention: which blocks of 128 x 128 are empty, and the function for the others."""
        # Not compiled: it is built once per pass, and compiling it would cost more for every new length than the L x K booleans do.
        return create_block_mask(self.sees(window), None, None, len(self.owner), len(self.key_slot), device=self.owner.device)

    def unpacked(self, hidden: torch.Tensor) -> torch.Tensor:
        """[1, L, H] back to the padded [B, T, H]; padding is zero."""
        count, width = self.own.shape[:2]
        flat = hidden.new_zeros(count * width, hidden.shape[-1])
        return flat.index_copy(0, self.owner * width + self.column, hidden[0]).view(count, width, -1)


def pack(
    prefix: Prefix, rows: Sequence[int], input_ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, real: torch.Tensor
) -> PackedRow:
    """Lay the `real` [B, T] tokens of a padded batch end to end; example b stands behind prefix `rows[b]`.

    `positions` [B, T] count from the end of the prefix; `visible` [B, T, T] says which of an example's tokens sees which.
    """
    device = input_ids.device
    owner, column = real.nonzero(as_tuple=True)
    slot = torch.tensor(rows, device=device)[owner]
    absolute = positions[owner, column] + torch.tensor(prefix.lengths, device=device)[slot]
    slots = torch.arange(len(prefix.lengths), device=device)[:, None].expand(-1, prefix.width)
    in_prefix = torch.where(prefix.visible(device), slots, -1).flatten()
    outside = torch.full_like(in_prefix, -1)
    return PackedRow(
        input_ids=input_ids[owner, column][None],
        positions=absolute[None],
        layers=side_by_side(prefix),
        owner=owner,
        column=column,
        slot=slot,
        key_slot=torch.cat([in_prefix, torch.full_like(owner, -1)]),
        key_owner=torch.cat([outside, owner]),
        key_column=torch.cat([torch.zeros_like(in_prefix), column]),
        key_positions=torch.cat([prefix.positions(device).flatten(), absolute]),
        own=visible,
    )
