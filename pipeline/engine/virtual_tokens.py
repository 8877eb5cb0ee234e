"""What the virtual tokens of a soft prompt lie near: vocabulary words, and the rows they started from.

A diagnostic, not an explanation. Lester et al. (2021, section 7) look at nearest neighbours by cosine similarity; Khashabi et al. (2022,
"Prompt Waywardness") show that a soft prompt can lie near the words of any text whatever and do its task as well.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.initialisation import embed
from pipeline.engine.soft_prompt import SoftPrompt

NEAREST = 5
WORDS_AT_ONCE = 8192
METHOD = "nearest by cosine distance (0 to 2) among the input embeddings of the tokenizer's vocabulary; drift: distance from the row that training started from"


@dataclass(frozen=True)
class Word:
    """A vocabulary word near a virtual token: `text` as the tokenizer writes it, cosine distance in [0, 2] and L2 distance, both 0 at best."""

    token_id: int
    text: str
    cosine_distance: float
    l2_distance: float


@dataclass(frozen=True)
class VirtualToken:
    """One row of the soft prompt: its norm, its drift from the initialisation (cosine distance and L2), and the nearest words, nearest first."""

    norm: float
    initial_norm: float
    drift_cosine_distance: float
    drift_l2_distance: float
    nearest: list[Word]


def virtual_tokens(base: BaseModel, tuned: SoftPrompt | None, initial: SoftPrompt | None) -> dict[str, Any]:
    """The record of what training made of `initial`, or the reason why there are no virtual tokens to look at; `None` is LoRA or a prefix."""
    if tuned is None or initial is None:
        return not_applicable("the method trains weights or keys and values inside the layers and puts no tokens before the input")
    if tuned.kind == "key_values":
        return not_applicable("the method trains keys and values of every layer, which are not among the embeddings of any words")
    return describe_virtual_tokens(base, tuned, initial)


def describe_virtual_tokens(base: BaseModel, tuned: SoftPrompt, initial: SoftPrompt, *, nearest: int = NEAREST) -> dict[str, Any]:
    """The record of one soft prompt, ready for JSON; `initial` has the rows [P, H] that training started from.

    `vocabulary` says how many words there were to choose from and the median L2 norm of their embeddings, which drift is to be read
    beside. Raises ValueError unless both are embeddings of one shape.
    """
    if tuned.kind != "embeddings" or tuned.kind != initial.kind or tuned.values.shape != initial.values.shape:
        raise ValueError(f"expected embeddings of one shape, found {tuned.kind} {list(tuned.values.shape)}, {list(initial.values.shape)}")
    rows, start = (prompt.values.detach().double().cpu() for prompt in (tuned, initial))
    blocks = [(_directions(rows) @ _directions(words).T, words.norm(dim=1)) for words in _embeddings(base)]
    cosines, norms = torch.cat([block for block, _ in blocks], dim=1), torch.cat([block for _, block in blocks])
    tokens = [
        VirtualToken(
            norm=float(row.norm()),
            initial_norm=float(first.norm()),
            drift_cosine_distance=_cosine_distance(row, first),
            drift_l2_distance=float((row - first).norm()),
            nearest=_nearest(base, row, one, nearest),
        )
        for row, first, one in zip(rows, start, cosines, strict=True)
    ]
    return {
        "applicable": True,
        "reason": None,
        "method": METHOD,
        "vocabulary": {"words": len(norms), "median_norm": float(norms.median())},
        "tokens": [asdict(token) for token in tokens],
    }


def not_applicable(reason: str) -> dict[str, Any]:
    """The record of what has no virtual tokens among the input embeddings."""
    return {"applicable": False, "reason": reason, "method": None, "vocabulary": None, "tokens": []}


def _embeddings(base: BaseModel) -> Iterator[torch.Tensor]:
    """The embeddings of the tokenizer's words in blocks [W, H]; a table longer than the vocabulary ends in rows that no text reaches."""
    words = min(len(base.tokenizer), base.vocabulary_embeddings().shape[0])
    for start in range(0, words, WORDS_AT_ONCE):
        yield embed(base, range(start, min(start + WORDS_AT_ONCE, words))).double().cpu()


def _directions(rows: torch.Tensor) -> torch.Tensor:
    """Rows [..., H] of length 1; one of length 0 stays, and is at distance 1 of every direction by its inner product."""
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _cosine_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """1 minus the cosine of the angle, as half the squared distance of the directions: 0 for equal rows, without rounding."""
    if not one.any() or not other.any():
        return 0.0 if torch.equal(one, other) else 1.0
    return float((_directions(one) - _directions(other)).square().sum() / 2)


def _nearest(base: BaseModel, row: torch.Tensor, cosines: torch.Tensor, count: int) -> list[Word]:
    """The `count` words of the largest `cosines` [V]; among equally distant ones the nearer by L2, then the one that comes first."""
    likeliest: list[int] = cosines.argsort(descending=True, stable=True)[:count].tolist()
    words = [
        Word(token, str(base.tokenizer.decode([token])), _cosine_distance(row, embedding), float((row - embedding).norm()))
        for token, embedding in zip(likeliest, embed(base, likeliest).double().cpu(), strict=True)
    ]
    return sorted(words, key=lambda word: (word.cosine_distance, word.l2_distance, word.token_id))
