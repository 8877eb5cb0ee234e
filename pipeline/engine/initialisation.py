"""Where a soft prompt starts. In the comparison of PEFT's maintainers a random start reached 5.7 % accuracy where a good one reached
34.3 %, so `text` and `class_labels` are what the params files use; the others are there to be compared with.

Every function returns float32 rows [P, H] that lie among the vocabulary's embeddings (except `random_uniform`), made by the base
model's own embedding layer, so that a family which scales its embeddings scales these too.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.shared_prefix import encode_prefixes
from pipeline.engine.soft_prompt import SoftPrompt, flatten_key_values
from pipeline.errors import TemplateError

# Lester et al. (2021), section 3.2: uniform in [-0.5, 0.5), and a sample of the 5,000 commonest tokens.
UNIFORM_RANGE = 0.5
COMMONEST_TOKENS = 5000


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """How a soft prompt starts: `text` needs `text`, `tuned_prompt` needs `values`."""

    kind: Literal["text", "class_labels", "sample_vocabulary", "random_uniform", "tuned_prompt"]
    text: str = ""
    values: SoftPrompt | None = None


def initial_embeddings(
    *,
    base: BaseModel,
    num_virtual_tokens: int,
    initialisation: Initialisation,
    seed: int,
    verbalizers: Sequence[Sequence[int]] = (),
    corpus: Iterable[Sequence[int]] = (),
) -> torch.Tensor:
    """The first rows [P, H] of a soft prompt.

    `verbalizers` are the token ids of the labels (for `class_labels`); `corpus` the token ids of training texts, whose 5,000 commonest
    tokens `sample_vocabulary` draws from. The two random kinds depend on `seed`, the others do not.
    Raises TemplateError when a text or the labels have no tokens, or a tuned prompt has another shape.
    """
    kind, count = initialisation.kind, num_virtual_tokens
    generator = torch.Generator().manual_seed(seed)
    if kind == "random_uniform":
        return (torch.rand(count, base.hidden_size, generator=generator) * 2 - 1) * UNIFORM_RANGE
    if kind == "tuned_prompt":
        return _tuned(initialisation, count, base.hidden_size)
    if kind == "text":
        ids = list(base.tokenizer(initialisation.text)["input_ids"])
        return embed(base, _tiled(ids, count, f"the text {initialisation.text!r}"))
    if kind == "class_labels":
        # Lester et al.: the embeddings of the labels' tokens, averaged over the tokens of one label.
        rows = torch.stack([embed(base, ids).mean(0) for ids in verbalizers]) if verbalizers else torch.empty(0)
        return rows[_tiled(list(range(len(rows))), count, "the label set")]
    # Without replacement while there are tokens left, as in Lester et al.'s code: two equal virtual tokens would learn the same.
    commonest = [token for token, _ in Counter(token for ids in corpus for token in ids).most_common(COMMONEST_TOKENS)]
    drawn = [commonest[index] for index in torch.randperm(len(commonest), generator=generator).tolist()]
    return embed(base, _tiled(drawn, count, "the training texts"))


def key_values_of(base: BaseModel, embeddings: torch.Tensor) -> torch.Tensor:
    """Keys and values that the base model computes for `embeddings` [P, H], in PEFT's flat layout [P, 2 x layers x heads x d].

    A key/value prefix that starts here gives exactly the logits of the virtual tokens themselves.
    """
    with torch.no_grad():
        prefix = encode_prefixes(base, [SoftPrompt(embeddings.to(base.device))], ())
    return flatten_key_values(prefix.layers)


def embed(base: BaseModel, token_ids: Sequence[int]) -> torch.Tensor:
    """What the base model's embedding layer makes of tokens, [P, H] float32, taking no gradient."""
    with torch.no_grad():
        ids = torch.tensor(list(token_ids), dtype=torch.long, device=base.device)
        return base.model.get_input_embeddings()(ids).float()


def _tiled(ids: list[int], count: int, what: str) -> list[int]:
    """`ids` repeated and cut to `count`, as PEFT does."""
    if not ids:
        raise TemplateError(f"The soft prompt cannot start from {what}: it has no tokens. Correct tune.init.")
    return [ids[index % len(ids)] for index in range(count)]


def _tuned(initialisation: Initialisation, count: int, width: int) -> torch.Tensor:
    found = initialisation.values
    if found is None or found.kind != "embeddings" or found.values.shape[1] != width:
        shape = None if found is None else (found.kind, list(found.values.shape))
        raise TemplateError(f"The soft prompt cannot start from {shape}: embeddings [P, {width}] are needed. Correct tune.init.")
    rows = found.values.detach().float()
    return rows[torch.tensor(_tiled(list(range(len(rows))), count, "the tuned prompt"))].clone()
