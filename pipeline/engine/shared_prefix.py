"""The shared-prefix pass: run what all examples have in common once, then each example's own tokens.

In a causal language model the virtual tokens and the head of the template see only each other, so their keys and values are the
same for every example of a step. They are computed once at batch size 1, with gradients, and expanded over the batch as a view;
the work of a step falls from B(S+T) to S+BT tokens and the gradient stays exact. Logits are computed at label positions only.

This is the only module that touches the cache classes of transformers.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Batch, Example, collate
from pipeline.engine.template import Verbalizers
from pipeline.errors import BaseModelError

# Largest difference of log-probabilities between the shared pass and the plain one that rounding explains.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.35, torch.float16: 0.05}


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a shared prefix, per layer [1, heads, S, head dimension]."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    length: int


def encode_prefix(base: BaseModel, soft_prompt: torch.Tensor | None, head: tuple[int, ...]) -> Prefix:
    """Keys and values of `soft_prompt` [P, H] (float32 master, cast to the base model's dtype) followed by the `head` tokens.

    Gradients flow back to `soft_prompt`. Raises BaseModelError when both are empty: there is nothing to share.
    """
    embed = base.model.get_input_embeddings()
    parts = [soft_prompt.to(base.dtype)] if soft_prompt is not None else []
    if head:
        parts.append(embed(torch.tensor(head, device=base.device)))
    if not parts:
        return Prefix((), 0)
    embeddings = torch.cat(parts)[None]
    length = embeddings.shape[1]
    cache = DynamicCache()
    positions = torch.arange(length, device=base.device)[None]
    visible = torch.ones(1, length, length, dtype=torch.bool, device=base.device).tril()
    decoder(base.model)(
        inputs_embeds=embeddings,
        attention_mask=_additive(visible, base.dtype),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    layers = cast(list[DynamicLayer], cache.layers)
    return Prefix(tuple((cast(torch.Tensor, layer.keys), cast(torch.Tensor, layer.values)) for layer in layers), length)


def label_scores(base: BaseModel, prefix: Prefix, batch: Batch, verbalizers: Verbalizers) -> torch.Tensor:
    """Score of every label for every example, [B, C] in float32.

    With single-token verbalizers a score is a logit; otherwise it is the log-probability of the verbalizer's tokens. Either way
    softmax over C gives the probabilities of rank classification.
    """
    hidden = _hidden_states(base, prefix, batch)
    rows = torch.arange(hidden.shape[0], device=base.device)[:, None]
    at_labels = hidden[rows, batch.label_positions]  # [B, 1+E, H]
    output: Any = base.model.get_output_embeddings()
    if verbalizers.single_token:
        first = torch.tensor([ids[0] for ids in verbalizers.token_ids], device=base.device)
        bias = None if output.bias is None else output.bias[first]
        return torch.nn.functional.linear(at_labels[:, 0], output.weight[first], bias).float()
    return _sequence_scores(output(at_labels).float().log_softmax(-1), verbalizers)


def check_agreement(base: BaseModel) -> None:
    """Compare the shared pass with the model's own plain forward on a few tokens; raises BaseModelError when they disagree.

    A family whose attention sees more than position and mask say (a sliding window, logits that are rescaled) is refused
    here instead of being trained on wrong scores.
    """
    windows = {kind for kind in getattr(base.model.config, "layer_types", None) or () if kind != "full_attention"}
    if windows or getattr(base.model.config, "sliding_window", None):
        raise BaseModelError(
            f"{base.source['id']} attends through a sliding window; the shared-prefix pass needs full attention. Choose another base model."
        )
    head, own = (5, 6, 7), ((8, 9, 10, 11), (12, 13))
    verbalizers = Verbalizers(("a", "b"), ((14,), (15,)))
    with torch.no_grad():
        batch = collate([Example(ids, 0) for ids in own], verbalizers, base.device)
        shared = label_scores(base, encode_prefix(base, None, head), batch, verbalizers).log_softmax(-1)
        plain = [base.model(torch.tensor([head + ids], device=base.device)).logits[0, -1, [14, 15]].float() for ids in own]
    difference = float((shared - torch.stack(plain).log_softmax(-1)).abs().max())
    if not difference <= AGREEMENT[base.dtype]:
        raise BaseModelError(
            f"{base.source['id']}: the shared-prefix pass and the plain forward pass differ by {difference:.3g} (allowed {AGREEMENT[base.dtype]}). "
            "This family is not supported; choose another base model."
        )


def decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The stack below the language model head."""
    return model.base_model


def _hidden_states(base: BaseModel, prefix: Prefix, batch: Batch) -> torch.Tensor:
    count, width = batch.input_ids.shape
    before = torch.ones(count, width, prefix.length, dtype=torch.bool, device=base.device)
    visible = torch.cat([before, batch.visible], dim=-1)
    return decoder(base.model)(
        inputs_embeds=base.model.get_input_embeddings()(batch.input_ids),
        attention_mask=_additive(visible, base.dtype),
        position_ids=batch.positions + prefix.length,
        past_key_values=_expanded(prefix, count),
        use_cache=True,
    ).last_hidden_state


def _expanded(prefix: Prefix, count: int) -> DynamicCache:
    """A cache whose layers are views of the prefix over `count` rows: nothing is copied until a layer appends to them."""
    cache = DynamicCache()
    for keys, values in prefix.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)
        cache.layers.append(layer)
    return cache


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, Q, K] booleans as an additive mask [B, 1, Q, K] in the base model's dtype."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def _sequence_scores(log_probabilities: torch.Tensor, verbalizers: Verbalizers) -> torch.Tensor:
    """Sum the log-probabilities [B, 1+E, V] of each verbalizer's tokens; returns [B, C]."""
    scores: list[torch.Tensor] = []
    branch = 1
    for ids in verbalizers.token_ids:
        at = [0, *range(branch, branch + len(ids) - 1)]
        branch += len(ids) - 1
        scores.append(log_probabilities[:, at, list(ids)].sum(-1))
    return torch.stack(scores, dim=-1)
