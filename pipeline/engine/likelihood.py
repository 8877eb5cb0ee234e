"""How likely the base model finds a text where the task's first field stands, with and without a tuned soft prompt before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import scoring_order
from pipeline.engine.generation import GenerationExample, collate_targets, token_scores
from pipeline.engine.learners import halving
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.ranking import Pass
from pipeline.engine.shared_prefix import encode_prefixes
from pipeline.engine.soft_prompt import load_soft_prompt
from pipeline.engine.template import Template


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of a text's tokens together, in nats, and their number."""

    log_probability: float
    tokens: int


def likelihood_obstacle(base: BaseModel, through: Pass) -> str | None:
    """Why texts have no likelihood with this tuned prompt, or None."""
    if base.architecture != "decoder":
        return f"{base.source['id']} is an {base.architecture}, which gives a text no probability from left to right"
    if through != "shared prefix":
        return "the tuned prompt runs through PEFT's own forward pass, which scores labels alone"
    return None


def text_likelihoods(
    *,
    base: BaseModel,
    template: Template,
    bundle: Path | None,
    texts: Sequence[tuple[str, str]],
    batch_size: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[Likelihood | None]:
    """The likelihood of each (context, text) where the template's first field stands, of the text alone; None where it does not fit.

    With `bundle` its soft prompt stands before the template, without it nothing does: the difference is what tuning changed. Behind a
    context the text goes on after a space. A template without any token before its field starts from the base model's first token.
    """
    space = template.pieces[0].space
    start = template.head or (_first_token(base),)
    with torch.no_grad():
        prefix = encode_prefixes(base, [load_soft_prompt(bundle, base) if bundle else None], start[:-1])
    room = base.context_length - prefix.lengths[0]
    examples = [_example(base, start[-1], space, context, text) for context, text in texts]
    fitting = [index for index, example in enumerate(examples) if len(example.token_ids) + 1 <= room]
    found: list[Likelihood | None] = [None] * len(texts)
    kept = [examples[index] for index in fitting]

    def at_once(count: int) -> list[float]:
        return _log_probabilities(base, prefix, kept, count, advance)

    sums = halving(at_once, batch_size)[0] if kept else []
    for index, log_probability in zip(fitting, sums, strict=True):
        found[index] = Likelihood(log_probability, len(examples[index].target_ids))
    return found


def _log_probabilities(
    base: BaseModel, prefix: Prefix, examples: Sequence[GenerationExample], batch_size: int, advance: Callable[[int], None]
) -> list[float]:
    sums = [0.0] * len(examples)
    with torch.no_grad():
        for indices in scoring_order(examples, batch_size):
            batch = collate_targets([examples[index] for index in indices], base.device)
            losses, _ = token_scores(base, prefix, [0] * len(indices), batch)
            by_row = torch.zeros(len(indices), device=losses.device).index_add(0, batch.row, -losses)
            for index, value in zip(indices, by_row.tolist(), strict=True):
                sums[index] = value
            advance(len(indices))
    return sums


def _example(base: BaseModel, before: int, space: str, context: str, text: str) -> GenerationExample:
    """The last shared token and the context as prompt, the text as target."""
    preceding = _ids(base, space + context) if context else []
    return GenerationExample.of(prompt_ids=[before, *preceding], target_ids=_ids(base, (" " if context else space) + text))


def _ids(base: BaseModel, text: str) -> list[int]:
    return base.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _first_token(base: BaseModel) -> int:
    for token in (base.tokenizer.bos_token_id, base.tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0
