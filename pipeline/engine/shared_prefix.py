"""The shared-prefix pass: run what all examples have in common once, then each example's own tokens.

In a causal language model the virtual tokens and the head of the template see only each other, so their keys and values are the
same for every example of a step. They are computed once per soft prompt, with gradients, and expanded over the batch as a view;
the work of a step falls from B(S+T) to S+BT tokens and the gradient stays exact. Several soft prompts (trials, or tuned prompts to
compare) share one batch: each row says which prefix it stands behind.

What a token sees is said by masks and positions of our own, so a family fits when its attention obeys these. A sliding window does:
how far a token sees back does not depend on the examples, and the window is part of the masks built here. Attention that adds rules of
its own (chunks, recurrence, distances read from the tensor's columns) does not; `disagreement` finds out before anything is trained.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Batch, Example, collate
from pipeline.engine.packing import FLEX_ATTENTION, PackedRow, pack
from pipeline.engine.prefix_cache import Prefix, cache_of, empty_cache, layers_of, rows_of_prefix
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.template import Verbalizers

# Largest difference of log-probabilities between the shared pass and the plain one that rounding explains.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.35, torch.float16: 0.05}
FULL, SLIDING = "full_attention", "sliding_attention"
KNOWN_LAYER_TYPES = {FULL, SLIDING}
# Settings of other limits (GPT-Neo's window_size, attention_chunk_size, ...) go by many names; `sliding_window` is the one we follow.
LOCAL_ATTENTION = re.compile("window|attention_chunk")
KNOWN_WINDOW_SETTINGS = {"sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"}
NARROW_WINDOW = 4


def encode_prefixes(base: BaseModel, soft_prompts: Sequence[SoftPrompt | None], head: tuple[int, ...]) -> Prefix:
    """Keys and values of each soft prompt followed by the `head` tokens, in one pass; None stands for no soft prompt.

    Soft prompts are float32 masters, cast to the base model's dtype; gradients flow back to them. All are of one kind.
    With the FlexAttention kernel the prefix is packed: that kernel skips what a mask hides, so packing is free of padding there.
    """
    kinds = {soft_prompt.kind for soft_prompt in soft_prompts if soft_prompt is not None}
    if len(kinds) > 1:
        raise ValueError(f"soft prompts of one batch are all of one kind, found {sorted(kinds)}")
    if kinds == {"key_values"}:
        prefix = _behind_key_values(base, [soft_prompt for soft_prompt in soft_prompts if soft_prompt is not None], head)
    else:
        prefix = _of_embeddings(base, [None if one is None else one.values for one in soft_prompts], head)
    return replace(prefix, packed=base.attention == FLEX_ATTENTION)


def label_scores(
    base: BaseModel, prefix: Prefix, rows: Sequence[int], batch: Batch, verbalizers: Verbalizers, *, length_normalisation: bool = False
) -> torch.Tensor:
    """Score of every label for every example, [B, C] in float32; example b stands behind prefix `rows[b]`.

    With single-token verbalizers a score is a logit; otherwise it is the log-probability of the verbalizer's tokens, divided by
    their number with `length_normalisation`. Either way softmax over C gives the probabilities of rank classification.
    """
    at_labels = hidden_states(base, prefix, rows, batch)  # [B, 1+E, H]
    return scores_at_labels(base, at_labels, verbalizers, length_normalisation=length_normalisation)


def scores_at_labels(base: BaseModel, at_labels: torch.Tensor, verbalizers: Verbalizers, *, length_normalisation: bool) -> torch.Tensor:
    """Scores [B, C] from the hidden states [B, 1+E, H] at the label positions; see label_scores."""
    if verbalizers.single_token:
        first = torch.tensor([ids[0] for ids in verbalizers.token_ids], device=base.device)
        return logits(base, at_labels[:, 0], first).float()
    scores = _sequence_scores(logits(base, at_labels).float().log_softmax(-1), verbalizers)
    if not length_normalisation:
        return scores
    return scores / torch.tensor([len(ids) for ids in verbalizers.token_ids], device=base.device)


def logits(base: BaseModel, hidden: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of all tokens, or of `tokens` alone, for last hidden states [..., H]; [..., V or len(tokens)] in the base model's dtype."""
    output: Any = base.model.get_output_embeddings()
    if tokens is None:
        values = output(hidden)
    else:
        bias = None if output.bias is None else output.bias[tokens]
        values = torch.nn.functional.linear(hidden, output.weight[tokens], bias)
    cap: float | None = getattr(base.model.config, "final_logit_softcapping", None)  # Gemma 2
    return values if cap is None else torch.tanh(values / cap) * cap


def hidden_states(base: BaseModel, prefix: Prefix, rows: Sequence[int], batch: Batch) -> torch.Tensor:
    """The last hidden states at the batch's label positions, [B, 1+E, H]: no others reach the language model head."""
    hidden = run_behind(base, prefix, rows, batch.input_ids, batch.positions, batch.visible, real=batch.real)
    return hidden[torch.arange(len(rows), device=base.device)[:, None], batch.label_positions]


def run_behind(
    base: BaseModel,
    prefix: Prefix,
    rows: Sequence[int],
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    cache: Any = None,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last hidden states of tokens [B, T] behind the prefixes, [B, T, H]; row b stands behind prefix `rows[b]`.

    `positions` [B, T] are counted from the end of the prefix, `visible` [B, T, T] says which of the tokens sees which. To go on from
    here, give `cache`, which starts with the prefixes' rows: the tokens' keys and values are left in it.
    Behind a packed prefix only the `real` [B, T] tokens are run, in one row, and the others get zeros; a `cache` is never packed.
    """
    if prefix.packed and cache is None:
        return _run_packed(
            base, pack(prefix, rows, input_ids, positions, visible, torch.ones_like(input_ids).bool() if real is None else real)
        )
    index = torch.tensor(rows, device=base.device)
    before = prefix.visible(base.device)[index][:, None].expand(-1, input_ids.shape[1], -1)
    positions = positions + torch.tensor(prefix.lengths, device=base.device)[index][:, None]
    keys = torch.cat([prefix.positions(base.device)[index], positions], dim=-1)
    return decoder(base.model)(
        inputs_embeds=base.model.get_input_embeddings()(input_ids),
        attention_mask=attention_masks(base, torch.cat([before, visible], dim=-1), positions, keys),
        position_ids=positions,
        past_key_values=cache_of(rows_of_prefix(prefix, rows)) if cache is None else cache,
        use_cache=True,
    ).last_hidden_state


def disagreement(base: BaseModel) -> str | None:
    """Why the shared pass is not this base model's own forward pass, or None when it is.

    The configuration is read for attention rules that we do not know, then label scores of a few tokens are compared with plain
    forward passes: prefixes and examples of several lengths in one batch, verbalizers of several tokens. With a sliding window they
    are compared once more with the window narrowed to a few tokens, since short texts would never leave the real one.
    """
    config: Any = base.model.config
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYER_TYPES
    if unknown:
        return f"it has layers of {sorted(unknown)}, and only {sorted(KNOWN_LAYER_TYPES)} follow masks and positions"
    local = [
        name for name, value in config.to_dict().items() if LOCAL_ATTENTION.search(name) and value and name not in KNOWN_WINDOW_SETTINGS
    ]
    if local:
        return f"its configuration sets {sorted(local)}, a limit of attention that is not known here"
    window = sliding_window(base)
    try:
        found = _difference_from_plain(base)
        if window is not None:
            config.sliding_window = NARROW_WINDOW
            found = max(found, _difference_from_plain(base))
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        return f"its forward pass does not take the prefix's cache, masks and positions ({type(error).__name__}: {error})"
    finally:
        if window is not None:
            config.sliding_window = window
    if not found <= AGREEMENT[base.dtype]:
        return f"its label scores and those of its plain forward pass differ by {found:.3g} (allowed {AGREEMENT[base.dtype]})"
    return None


def compile_decoder(base: BaseModel, *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let torch.compile make kernels for the layers at the first pass. Values stay the same up to rounding.

    Batches differ in length, so sizes are left open (`dynamic`); compiling still takes from seconds to minutes, and again for passes of
    another kind. `backend` is torch.compile's.
    """
    decoder(base.model).compile(dynamic=True, backend=backend)


def decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The stack below the language model head."""
    return model.base_model


def sliding_window(base: BaseModel) -> int | None:
    """How many tokens, itself included, a token sees back in the layers with a sliding window; None without such layers.

    Where the configuration names no layer types (Mistral, Phi 3), a window holds for all layers.
    """
    config: Any = base.model.config
    kinds = getattr(config, "layer_types", None)
    if kinds and SLIDING not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def attention_masks(
    base: BaseModel, visible: torch.Tensor, positions: torch.Tensor, key_positions: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What the base model takes as `attention_mask`: an additive mask, or one per layer type where layers differ.

    `visible` [B, Q, K] says who sees whom apart from windows; `positions` [B, Q] and `key_positions` [B, K] count from each text's start.
    """
    window = sliding_window(base)
    if window is None:
        return additive_mask(visible, base.dtype)
    near = positions[:, :, None] - key_positions[:, None] < window
    sliding = additive_mask(visible & near, base.dtype)
    return by_layer_type(base, additive_mask(visible, base.dtype), sliding)


def by_layer_type(base: BaseModel, full: Any, sliding: Any) -> Any:
    """Both masks under the names of their layers, or `sliding` alone where the configuration names no layer types."""
    kinds = getattr(base.model.config, "layer_types", None)
    return {FULL: full, SLIDING: sliding} if kinds else sliding


def _run_packed(base: BaseModel, row: PackedRow) -> torch.Tensor:
    window = sliding_window(base)
    full = _packed_mask(base, row, None)
    hidden = decoder(base.model)(
        inputs_embeds=base.model.get_input_embeddings()(row.input_ids),
        attention_mask=full if window is None else by_layer_type(base, full, _packed_mask(base, row, window)),
        position_ids=row.positions,
        past_key_values=cache_of(row.layers),
        use_cache=True,
    ).last_hidden_state
    return row.unpacked(hidden)


def _packed_mask(base: BaseModel, row: PackedRow, window: int | None) -> Any:
    """A BlockMask for FlexAttention, a dense additive mask [1, 1, L, K] for the other kernels."""
    return row.block_mask(window) if base.attention == FLEX_ATTENTION else additive_mask(row.visible(window)[None], base.dtype)


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
        key_positions = torch.cat([given.positions(device), positions], dim=-1)
    else:
        padding = queries - lengths
        # A padded position sees itself, so that no row of attention is empty; nothing real sees it.
        real = torch.arange(queries, device=device)[None] >= padding[:, None]
        visible = (causal & real[:, None]) | torch.eye(queries, dtype=torch.bool, device=device)
        positions = key_positions = given.positions(device)
    decoder(base.model)(
        inputs_embeds=embeddings,
        attention_mask=attention_masks(base, visible, positions, key_positions),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )


def _difference_from_plain(base: BaseModel) -> float:
    """Largest difference, in nats per token, between label scores of the shared pass and of plain forward passes."""
    texts, head, own = ((5, 6, 7, 8), (9,)), (10, 11), ((12, 13, 14), (15,))
    verbalizers = Verbalizers(("a", "b"), ((16,), (17, 18, 19)))
    embed = base.model.get_input_embeddings()
    with torch.no_grad():
        prompts = [SoftPrompt(embed(torch.tensor(ids, device=base.device))) for ids in texts]
        batch = collate([Example(ids, 0) for ids in own], verbalizers, base.device)
        prefix = encode_prefixes(base, prompts, head)
        shared = label_scores(base, prefix, (0, 1), batch, verbalizers, length_normalisation=True)
        plain = [
            [_plain_score(base, [*text, *head, *ids], answer) for answer in verbalizers.token_ids]
            for text, ids in zip(texts, own, strict=True)
        ]
    return float((shared.cpu() - torch.tensor(plain)).abs().max())


def _plain_score(base: BaseModel, token_ids: list[int], answer: tuple[int, ...]) -> float:
    """Mean log-probability of the tokens of `answer` behind `token_ids`, by the model's own forward pass."""
    scores: Any = base.model(torch.tensor([[*token_ids, *answer]], device=base.device)).logits[0].float().log_softmax(-1)
    return float(torch.stack([scores[len(token_ids) - 1 + depth, token] for depth, token in enumerate(answer)]).mean())


def _sequence_scores(log_probabilities: torch.Tensor, verbalizers: Verbalizers) -> torch.Tensor:
    """Sum the log-probabilities [B, 1+E, V] of each verbalizer's tokens; returns [B, C]."""
    scores: list[torch.Tensor] = []
    branch = 1
    for ids in verbalizers.token_ids:
        at = [0, *range(branch, branch + len(ids) - 1)]
        branch += len(ids) - 1
        scores.append(log_probabilities[:, at, list(ids)].sum(-1))
    return torch.stack(scores, dim=-1)
