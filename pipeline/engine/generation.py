"""Generation tasks on decoder-only base models: training by teacher forcing, and decoding from the shared prefix's cache.

A prompt's tokens but the last run in one pass behind the prefix; from there on every pass is one token. The prefix is computed once by
`encode_prefixes` and serves the whole set; masks and positions are explicit, so that a text depends neither on batch mates nor on
padding. What is left is rounding, which differs with the shape of a batch: where two tokens have equal logits in bfloat16, either may
be chosen.

Beam search is transformers' own `generate`, started from the prepared cache. With the cache's padding moved to the left, a mask of its
columns and explicit positions it is exact for expanded prefixes and prefixes of different lengths, and its scoring of finished beams
is not worth writing again. What it cannot do is drop rows that have ended: one text that never ends holds up its whole batch. Greedy
decoding, whose loop is short, is therefore written here and drops them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, GenerationConfig

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, scoring_order
from pipeline.engine.objectives import Result
from pipeline.engine.prefix_cache import Prefix, align_right, cache_of, keep_rows, repeat_rows, rows_of_prefix
from pipeline.engine.shared_prefix import attention_masks, logits, run_behind
from pipeline.errors import TemplateError

# Target tokens whose logits [tokens, V] exist at the same time: 1,024 of them over 128,000 words take 0.5 GB in float32.
TOKENS_AT_ONCE = 1024

DecodeBatch = Callable[[Sequence[int], Sequence[Sequence[int]]], list[list[int]]]


@dataclass(frozen=True)
class GenerationExample(Example):
    """A prompt and the tokens to be generated after it, the end token included; made by `of`.

    `token_ids` is the row that teacher forcing runs: the prompt's tokens, then the target's but its last, which predicts nothing.
    Ordering by length so counts both.
    """

    target_ids: Sequence[int]

    @classmethod
    def of(cls, *, prompt_ids: Sequence[int], target_ids: Sequence[int]) -> "GenerationExample":
        """The example of a prompt behind the shared prefix and its target; raises TemplateError when one of them has no tokens."""
        if not prompt_ids or not target_ids:
            raise TemplateError(
                f"An example has {len(prompt_ids)} tokens behind the shared prefix and {len(target_ids)} to generate; each must have one "
                "at least. End the template with text after its last field, and end every target with an end token."
            )
        return cls(token_ids=(*prompt_ids, *target_ids[:-1]), label=-1, target_ids=tuple(target_ids))

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The example's own tokens, without the target."""
        return self.token_ids[: len(self.token_ids) - len(self.target_ids) + 1]


@dataclass(frozen=True)
class TargetBatch:
    """Prompts and targets padded on the right to T, and where the M target tokens of all rows are predicted.

    input_ids [B, T], real [B, T] (what is no padding), positions [B, T] counted from the end of the prefix, visible [B, T, T]; row [M]
    and column [M] of the token that predicts each target token, target_ids [M], lengths [B] of the targets.
    """

    input_ids: torch.Tensor
    real: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    target_ids: torch.Tensor
    lengths: torch.Tensor


def collate_targets(examples: Sequence[GenerationExample], device: torch.device) -> TargetBatch:
    """Pad the examples on the right; nothing real sees the padding."""
    width = max(len(example.token_ids) for example in examples)
    input_ids = torch.zeros(len(examples), width, dtype=torch.long)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
    positions = torch.arange(width).repeat(len(examples), 1)
    real = positions < torch.tensor([len(example.token_ids) for example in examples])[:, None]
    visible = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(examples), 1, 1)
    predicting = [range(len(example.token_ids) - len(example.target_ids), len(example.token_ids)) for example in examples]
    lengths = torch.tensor([len(example.target_ids) for example in examples])
    row = torch.arange(len(examples)).repeat_interleave(lengths)
    column = torch.tensor([at for columns in predicting for at in columns])
    target_ids = torch.tensor([token for example in examples for token in example.target_ids])
    return TargetBatch(*(tensor.to(device) for tensor in (input_ids, real, positions, visible, row, column, target_ids, lengths)))


@dataclass(frozen=True)
class Generation:
    """Teacher forcing. The loss of an example is the mean negative log-likelihood of its target tokens, in nats.

    The mean over an example's own tokens, and not their sum, so that a long target weighs no more than a short one and the learning
    rate need not follow the length; not the mean over the tokens of the batch either, which would make an example's loss
    depend on its batch mates. exp(loss) is an example's perplexity, and exp of a Result's loss the geometric mean of those.
    """

    def losses(self, base: BaseModel, prefix: Prefix, rows: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """Mean negative log-likelihood of each example's target, [B] float32; `examples` are GenerationExamples."""
        batch = collate_targets(_with_targets(examples), base.device)
        losses, _ = token_scores(base, prefix, rows, batch)
        return _mean_by_row(losses, batch)

    def outputs(self, base: BaseModel, prefix: Prefix, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
        """Of each example its loss and how many of its target tokens have the highest logit, [E, N, 2]; all prefixes in mixed batches."""
        count = len(prefix.lengths)
        repeated = [example for example in _with_targets(examples) for _ in range(count)]
        behind = list(range(count)) * len(examples)
        found = torch.empty(len(repeated), 2)
        with torch.no_grad():
            for indices in scoring_order(repeated, batch_size):
                batch = collate_targets([repeated[index] for index in indices], base.device)
                losses, right = token_scores(base, prefix, [behind[index] for index in indices], batch)
                found[indices] = torch.stack([_mean_by_row(losses, batch), _sum_by_row(right.float(), batch)], dim=-1).cpu()
        return found.view(len(examples), count, 2)

    def result(self, outputs: torch.Tensor, examples: Sequence[Example]) -> Result:
        """Token accuracy and exact match (0 to 1, best 1), and the mean loss.

        `token_accuracy` is the share of all target tokens that have the highest logit when the right tokens precede them.
        `exact_match` is the share of examples where all of them have it. That is what greedy decoding would find, and costs no
        decoding: up to its first wrong token, greedy decoding sees the right ones, too.
        """
        lengths = torch.tensor([len(example.target_ids) for example in _with_targets(examples)])
        losses, right = outputs.unbind(-1)
        metrics = {"token_accuracy": float(right.sum() / lengths.sum()), "exact_match": float((right == lengths).float().mean())}
        return Result(metrics, float(losses.mean()), len(examples))


def token_scores(base: BaseModel, prefix: Prefix, rows: Sequence[int], batch: TargetBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of every target token [M], float32, and whether its logit is the highest [M].

    Only the hidden states that predict a target token reach the language model head, at most TOKENS_AT_ONCE at a time; when there are
    more, the backward pass computes their logits again instead of keeping them.
    """
    hidden = run_behind(base, prefix, rows, batch.input_ids, batch.positions, batch.visible, real=batch.real)[batch.row, batch.column]

    def score(states: torch.Tensor, target_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = logits(base, states).float()
        return torch.nn.functional.cross_entropy(values, target_ids, reduction="none"), values.argmax(-1) == target_ids

    if len(hidden) <= TOKENS_AT_ONCE:
        return score(hidden, batch.target_ids)
    chunks = zip(hidden.split(TOKENS_AT_ONCE), batch.target_ids.split(TOKENS_AT_ONCE), strict=True)
    parts: list[Any] = [checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat([losses for losses, _ in parts]), torch.cat([hits for _, hits in parts])


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """When a text ends: at one of `end_tokens`, or after `maximum_new_tokens`; and how many prompts are decoded together."""

    maximum_new_tokens: int
    end_tokens: tuple[int, ...]
    batch_size: int = 64


def decode_greedy(
    *,
    base: BaseModel,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    settings: DecodingSettings,
    rows: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[int]]:
    """The tokens of highest logit after each prompt, in the order of `prompts`; a text that ends keeps its end token.

    `rows` says which prefix each prompt stands behind (by default all behind the first); `advance` is told of finished prompts.
    Raises TemplateError when a prompt has no tokens or does not fit into the base model's context with its text.
    """

    def decode(behind: Sequence[int], batch: Sequence[Sequence[int]]) -> list[list[int]]:
        return _greedy_batch(base, prefix, behind, batch, settings)

    return _in_batches(base, prefix, prompts, rows, settings, decode, advance)


def decode_beams(
    *,
    base: BaseModel,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    settings: DecodingSettings,
    num_beams: int,
    length_penalty: float = 1.0,
    rows: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[int]]:
    """The best of `num_beams` texts after each prompt, by log-probability divided by length ** length_penalty, as in transformers.

    Otherwise like decode_greedy. What the base model's own generation config asks for (repetition penalties, forced tokens) is
    left aside in both.
    """
    config = GenerationConfig(
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=False,
        do_sample=False,
        max_new_tokens=settings.maximum_new_tokens,
        eos_token_id=list(settings.end_tokens) or None,
        pad_token_id=settings.end_tokens[0] if settings.end_tokens else None,
    )

    def decode(behind: Sequence[int], batch: Sequence[Sequence[int]]) -> list[list[int]]:
        return _beams_batch(base, prefix, behind, batch, config)

    return _in_batches(base, prefix, prompts, rows, settings, decode, advance)


def _greedy_batch(
    base: BaseModel, prefix: Prefix, rows: Sequence[int], prompts: Sequence[Sequence[int]], settings: DecodingSettings
) -> list[list[int]]:
    cache, visible = _start(base, prefix, rows, prompts)
    texts: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    tokens = torch.tensor([prompt[-1] for prompt in prompts], device=base.device)
    while running:
        visible = torch.nn.functional.pad(visible, (0, 1), value=True)
        positions = (visible.cumsum(-1) - 1).clamp(min=0)
        output: Any = base.model(
            input_ids=tokens[:, None],
            attention_mask=attention_masks(base, visible[:, None], positions[:, -1:], positions),
            position_ids=positions[:, -1:],
            past_key_values=cache,
            use_cache=True,
        )
        tokens = output.logits[:, -1].argmax(-1)
        going: list[int] = []
        for at, (index, token) in enumerate(zip(running, tokens.tolist(), strict=True)):
            texts[index].append(token)
            if token not in settings.end_tokens and len(texts[index]) < settings.maximum_new_tokens:
                going.append(at)
        if len(going) < len(running):
            kept = torch.tensor(going, dtype=torch.long, device=base.device)
            keep_rows(cache, kept)
            visible, tokens, running = visible[kept], tokens[kept], [running[at] for at in going]
    return texts


def _beams_batch(
    base: BaseModel, prefix: Prefix, rows: Sequence[int], prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> list[list[int]]:
    cache, visible = _start(base, prefix, rows, prompts)
    visible = torch.nn.functional.pad(align_right(cache, visible), (0, 1), value=True)
    repeat_rows(cache, config.num_beams or 1)
    # A copy that shares all weights: `generate` fills what `config` leaves open from the model's own generation config.
    model: Any = copy.copy(base.model)
    model.generation_config = GenerationConfig()
    generated = model.generate(
        torch.tensor([[prompt[-1]] for prompt in prompts], device=base.device),
        attention_mask=visible.long(),
        position_ids=visible.sum(-1, keepdim=True) - 1,
        past_key_values=cache,
        generation_config=config,
    )
    return [_up_to_end(tokens, config.eos_token_id or []) for tokens in generated[:, 1:].tolist()]


def _start(base: BaseModel, prefix: Prefix, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, torch.Tensor]:
    """Run all prompts but their last tokens, padded on the left; returns the cache and which of its columns are real, [B, S+T-1]."""
    before = prefix.visible(base.device)[torch.tensor(rows, device=base.device)]
    cache = cache_of(rows_of_prefix(prefix, rows))
    width = max(len(prompt) for prompt in prompts) - 1
    if not width:
        return cache, before
    padding = torch.tensor([width - len(prompt) + 1 for prompt in prompts], device=base.device)[:, None]
    input_ids = torch.tensor([[0] * (width - len(prompt) + 1) + list(prompt[:-1]) for prompt in prompts], device=base.device)
    columns = torch.arange(width, device=base.device)
    real = columns >= padding
    # A padded token sees itself, so that no row of attention is empty; nothing real sees it.
    causal = torch.ones(width, width, dtype=torch.bool, device=base.device).tril()
    visible = (causal & real[:, None]) | torch.eye(width, dtype=torch.bool, device=base.device)
    run_behind(base, prefix, rows, input_ids, (columns - padding).clamp(min=0), visible, cache)
    return cache, torch.cat([before, real], dim=-1)


def _in_batches(
    base: BaseModel,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int] | None,
    settings: DecodingSettings,
    decode: DecodeBatch,
    advance: Callable[[int], None],
) -> list[list[int]]:
    """Decode prompts of similar length together; the texts in the order of `prompts`."""
    behind = [0] * len(prompts) if rows is None else list(rows)
    _check_lengths(base, prefix, prompts, behind, settings)
    texts: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad():
        for indices in scoring_order([Example(prompt, -1) for prompt in prompts], settings.batch_size):
            found = decode([behind[index] for index in indices], [prompts[index] for index in indices])
            for index, text in zip(indices, found, strict=True):
                texts[index] = text
            advance(len(indices))
    return texts


def _check_lengths(
    base: BaseModel, prefix: Prefix, prompts: Sequence[Sequence[int]], rows: Sequence[int], settings: DecodingSettings
) -> None:
    if settings.maximum_new_tokens < 1:
        raise ValueError(f"maximum_new_tokens is {settings.maximum_new_tokens}; at least 1 token is decoded")
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True), 1):
        if not prompt:
            raise TemplateError(f"Prompt {number} has no tokens behind the shared prefix. End the template with text after its last field.")
        needed = prefix.lengths[row] + len(prompt) + settings.maximum_new_tokens
        if needed > base.context_length:
            raise TemplateError(
                f"Prompt {number} needs {needed} tokens: {prefix.lengths[row]} of its prefix, {len(prompt)} of its own and "
                f"{settings.maximum_new_tokens} to generate. {base.source['id']} attends to {base.context_length}. Cut the fields shorter or "
                "generate fewer tokens."
            )


def _with_targets(examples: Sequence[Example]) -> list[GenerationExample]:
    found = [example for example in examples if isinstance(example, GenerationExample)]
    if len(found) < len(examples):
        raise TypeError(f"Generation takes GenerationExamples; {len(examples) - len(found)} of {len(examples)} examples have no target")
    return found


def _mean_by_row(values: torch.Tensor, batch: TargetBatch) -> torch.Tensor:
    """[M] values of target tokens to their mean in each row, [B]."""
    return _sum_by_row(values, batch) / batch.lengths


def _sum_by_row(values: torch.Tensor, batch: TargetBatch) -> torch.Tensor:
    return torch.zeros(len(batch.lengths), device=values.device).index_add(0, batch.row, values)


def _up_to_end(tokens: list[int], end_tokens: Sequence[int]) -> list[int]:
    """Without the padding behind the first end token."""
    for at, token in enumerate(tokens):
        if token in end_tokens:
            return tokens[: at + 1]
    return tokens
