"""The shared-prefix pass: run what all examples have in common once, then each example's own tokens.

In a causal language model the virtual tokens and the head of the template see only each other, so their keys and values are the
same for every example of a step. They are computed once per soft prompt, with gradients, and expanded over the batch as a view;
the work of a step falls from B(S+T) to S+BT tokens and the gradient stays exact. Several soft prompts (trials, or tuned prompts to
compare) share one batch: each row says which prefix it stands behind.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Batch, Example, collate
from pipeline.engine.prefix_cache import Prefix, cache_of, empty_cache, layers_of, rows_of_prefix
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.template import Verbalizers
from pipeline.errors import BaseModelError

# Largest difference of log-probabilities between the shared pass and the plain one that rounding explains.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.35, torch.float16: 0.05}


def encode_prefixes(base: BaseModel, soft_prompts: Sequence[SoftPrompt | None], head: tuple[int, ...]) -> Prefix:
    """Keys and values of each soft prompt followed by the `head` tokens, in one pass; None stands for no soft prompt.

    Soft prompts are float32 masters, cast to the base model's dtype; gradients flow back to them. All are of one kind.
    """
    kinds = {soft_prompt.kind for soft_prompt in soft_prompts if soft_prompt is not None}
    if len(kinds) > 1:
        raise ValueError(f"soft prompts of one batch are all of one kind, found {sorted(kinds)}")
    if kinds == {"key_values"}:
        return _behind_key_values(base, [soft_prompt for soft_prompt in soft_prompts if soft_prompt is not None], head)
    return _of_embeddings(base, [None if one is None else one.values for one in soft_prompts], head)


def label_scores(
    base: BaseModel, prefix: Prefix, rows: Sequence[int], batch: Batch, verbalizers: Verbalizers, *, length_normalisation: bool = False
) -> torch.Tensor:
    """Score of every label for every example, [B, C] in float32; example b stands behind prefix `rows[b]`.

    With single-token verbalizers a score is a logit; otherwise it is the log-probability of the verbalizer's tokens, divided by
    their number with `length_normalisation`. Either way softmax over C gives the probabilities of rank classification.
    """
    at_labels = hidden_states(base, prefix, rows, batch)  # [B, 1+E, H]
    output: Any = base.model.get_output_embeddings()
    if verbalizers.single_token:
        first = torch.tensor([ids[0] for ids in verbalizers.token_ids], device=base.device)
        bias = None if output.bias is None else output.bias[first]
        return torch.nn.functional.linear(at_labels[:, 0], output.weight[first], bias).float()
    scores = _sequence_scores(output(at_labels).float().log_softmax(-1), verbalizers)
    if not length_normalisation:
        return scores
    return scores / torch.tensor([len(ids) for ids in verbalizers.token_ids], device=base.device)


def hidden_states(base: BaseModel, prefix: Prefix, rows: Sequence[int], batch: Batch) -> torch.Tensor:
    """The last hidden states at the batch's label positions, [B, 1+E, H]: no others reach the language model head."""
    index = torch.tensor(rows, device=base.device)
    width = batch.input_ids.shape[1]
    before = prefix.visible(base.device)[index][:, None].expand(-1, width, -1)
    lengths = torch.tensor(prefix.lengths, device=base.device)[index]
    hidden = decoder(base.model)(
        inputs_embeds=base.model.get_input_embeddings()(batch.input_ids),
        attention_mask=additive_mask(torch.cat([before, batch.visible], dim=-1), base.dtype),
        position_ids=batch.positions + lengths[:, None],
        past_key_values=cache_of(rows_of_prefix(prefix, rows)),
        use_cache=True,
    ).last_hidden_state
    return hidden[torch.arange(len(rows), device=base.device)[:, None], batch.label_positions]


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
        shared = label_scores(base, encode_prefixes(base, [None], head), (0, 0), batch, verbalizers).log_softmax(-1)
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


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, Q, K] booleans as an additive mask [B, 1, Q, K] in the base model's dtype."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def key_value_shape(base: BaseModel) -> tuple[int, int, int]:
    """(layers, key/value heads, head dimension) of the base model, as its own cache shows them."""
    with torch.no_grad():
        layers = encode_prefixes(base, [None], (0,)).layers
    return len(layers), layers[0][0].shape[1], layers[0][0].shape[3]


def _of_embeddings(base: BaseModel, embeddings: list[torch.Tensor | None], head: tuple[int, ...]) -> Prefix:
    lengths = tuple((0 if one is None else one.shape[0]) + len(head) for one in embeddings)
    width = max(lengths)
    if width == 0:
        return Prefix((), lengths)
    embed = base.model.get_input_embeddings()
    head_embeddings = embed(torch.tensor(head, dtype=torch.long, device=base.device))
    padded: list[torch.Tensor] = []
    for one, length in zip(embeddings, lengths, strict=True):
        parts = [head_embeddings.new_zeros(width - length, base.hidden_size)]
        parts += [one.to(base.dtype)] if one is not None else []
        padded.append(torch.cat([*parts, head_embeddings]))
    cache = empty_cache()
    _extend(base, cache, torch.stack(padded), Prefix((), lengths))
    return Prefix(layers_of(cache), lengths)


def _behind_key_values(base: BaseModel, soft_prompts: list[SoftPrompt], head: tuple[int, ...]) -> Prefix:
    count = tuple(one.values.shape[0] for one in soft_prompts)
    layers, heads, size = key_value_shape(base)
    padded = torch.stack([torch.nn.functional.pad(one.values, (0, 0, max(count) - one.values.shape[0], 0)) for one in soft_prompts])
    # PEFT's layout: [N, P, 2 x layers (keys and values in turn), heads, d].
    split = padded.to(base.dtype).view(len(count), max(count), 2 * layers, heads, size).permute(2, 0, 3, 1, 4)
    given = Prefix(tuple((split[2 * layer], split[2 * layer + 1]) for layer in range(layers)), count)
    if not head:
        return given
    cache = cache_of(given.layers)
    embeddings = base.model.get_input_embeddings()(torch.tensor(head, device=base.device))
    _extend(base, cache, embeddings.expand(len(count), -1, -1), given)
    return Prefix(layers_of(cache), tuple(length + len(head) for length in count))


def _extend(base: BaseModel, cache: Any, embeddings: torch.Tensor, given: Prefix) -> None:
    """Run `embeddings` [N, Q, H] causally behind what `cache` holds; with nothing given the rows are padded on the left to Q."""
    rows, queries = embeddings.shape[:2]
    device = base.device
    causal = torch.ones(queries, queries, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)
    lengths = torch.tensor(given.lengths, device=device)
    if given.layers:
        visible = torch.cat([given.visible(device)[:, None].expand(-1, queries, -1), causal], dim=-1)
        positions = lengths[:, None] + torch.arange(queries, device=device)
    else:
        padding = queries - lengths
        # A padded position sees itself, so that no row of attention is empty; nothing real sees it.
        real = torch.arange(queries, device=device)[None] >= padding[:, None]
        visible = (causal & real[:, None]) | torch.eye(queries, dtype=torch.bool, device=device)
        positions = (torch.arange(queries, device=device)[None] - padding[:, None]).clamp(min=0)
    decoder(base.model)(
        inputs_embeds=embeddings,
        attention_mask=additive_mask(visible, base.dtype),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )


def _sequence_scores(log_probabilities: torch.Tensor, verbalizers: Verbalizers) -> torch.Tensor:
    """Sum the log-probabilities [B, 1+E, V] of each verbalizer's tokens; returns [B, C]."""
    scores: list[torch.Tensor] = []
    branch = 1
    for ids in verbalizers.token_ids:
        at = [0, *range(branch, branch + len(ids) - 1)]
        branch += len(ids) - 1
        scores.append(log_probabilities[:, at, list(ids)].sum(-1))
    return torch.stack(scores, dim=-1)
