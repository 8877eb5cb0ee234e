"""Hard prompt templates and verbalizers as token ids.

A template is cut at its fields. The text before the first field is the same for every example and becomes part of the shared
prefix; the rest is tokenised piece by piece, so that an example's tokens never depend on how pieces would merge across a cut.
White space in front of a field is moved to the field's side of the cut, as in the texts the base models were trained on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.errors import TemplateError

_FIELD = re.compile(r"(\s*)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_GAP = "\n\n"  # between worked examples


@dataclass(frozen=True)
class _Piece:
    """One cut of a template: a field with the white space in front of it, or literal tokens."""

    field: str | None
    space: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Template:
    """A compiled hard prompt template: `head` is shared by all examples, `pieces` make an example's own tokens."""

    tokenizer: PreTrainedTokenizerBase
    head: tuple[int, ...]
    pieces: tuple[_Piece, ...]
    maximum_field_tokens: int

    @property
    def fields(self) -> tuple[str, ...]:
        """Field names in order of appearance."""
        return tuple(piece.field for piece in self.pieces if piece.field is not None)

    def encode(self, rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """Each row's own tokens; a field longer than `maximum_field_tokens` is cut at its end.

        Raises TemplateError naming the row and field when a field is missing or not a string.
        """
        if not rows:
            return []
        columns = [self._encode_field(piece, rows) for piece in self.pieces]
        return [[token for column in columns for token in column[index]] for index in range(len(rows))]

    def _encode_field(self, piece: _Piece, rows: Sequence[Mapping[str, str]]) -> list[Sequence[int]]:
        if piece.field is None:
            return [piece.token_ids] * len(rows)
        texts: list[str] = []
        for number, row in enumerate(rows, 1):
            value = row.get(piece.field)
            if not isinstance(value, str):
                raise TemplateError(
                    f"Row {number}: the field {piece.field!r} must be a string, found {value!r}. Give every field of the template."
                )
            texts.append(piece.space + value)
        # Text that spells a special token stays text: it must not be able to end the prompt.
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [ids[: self.maximum_field_tokens] for ids in encoded]


@dataclass(frozen=True)
class Verbalizers:
    """Token ids of the string that stands for each label."""

    labels: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]

    @property
    def single_token(self) -> bool:
        """Whether every verbalizer is one token, so that C logits at one position decide."""
        return all(len(ids) == 1 for ids in self.token_ids)


def compile_template(*, tokenizer: PreTrainedTokenizerBase, template: str, maximum_field_tokens: int, closed: bool = False) -> Template:
    """Cut `template` at its `{fields}` and tokenise the literal parts; raises TemplateError when it has no field.

    What the tokenizer puts before every text (a BOS token, [CLS]) belongs to the shared prefix. With `closed` each example ends with
    what it puts after a text ([SEP], T5's </s>), as encoders and encoder-decoders have learnt; a decoder goes on with the verbalizer.
    """
    pieces: list[_Piece] = []
    end = 0
    for match in _FIELD.finditer(template):
        pieces.append(_Piece(None, "", _ids(tokenizer, template[end : match.start()])))
        pieces.append(_Piece(match.group(2), match.group(1), ()))
        end = match.end()
    if not pieces:
        raise TemplateError(f"The template {template!r} has no field such as {{text}}, so it would ask the same of every example.")
    pieces.append(_Piece(None, "", _ids(tokenizer, template[end:])))
    start, after = _around(tokenizer)
    if closed:
        pieces.append(_Piece(None, "", after))
    return Template(
        tokenizer, start + pieces[0].token_ids, tuple(piece for piece in pieces[1:] if piece.field or piece.token_ids), maximum_field_tokens
    )


def few_shot_template(
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    maximum_field_tokens: int,
    worked: Sequence[tuple[Mapping[str, str], str]],
    closed: bool = False,
) -> Template:
    """`template` behind worked examples, each a row's fields and its verbalizer (Brown et al. 2020): they are part of the shared prefix.

    A worked example is cut and tokenised as a row to be scored is, so its text is never read as part of a template.
    """
    settings: dict[str, Any] = {"tokenizer": tokenizer, "template": template, "maximum_field_tokens": maximum_field_tokens}
    compiled, opened = compile_template(**settings, closed=closed), compile_template(**settings)
    start, _ = _around(tokenizer)
    opening, gap = opened.head[len(start) :], _ids(tokenizer, _GAP)
    head = start
    for own, (_, verbalizer) in zip(opened.encode([row for row, _ in worked]), worked, strict=True):
        head += (*opening, *own, *_ids(tokenizer, verbalizer), *gap)
    return replace(compiled, head=head + opening)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after every text."""
    bare, whole = _ids(tokenizer, "a"), tuple(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    raise TemplateError(f"The tokenizer gives 'a' the tokens {bare} alone and {whole} as a text: the first must be part of the second.")


def compile_verbalizers(*, tokenizer: PreTrainedTokenizerBase, verbalizers: Mapping[str, str]) -> Verbalizers:
    """Tokenise the verbalizers; raises TemplateError when one is empty or two labels get the same tokens."""
    token_ids = tuple(_ids(tokenizer, text) for text in verbalizers.values())
    for label, ids in zip(verbalizers, token_ids, strict=True):
        if not ids:
            raise TemplateError(f"The verbalizer {verbalizers[label]!r} of label {label!r} has no tokens in this tokenizer.")
    if len(set(token_ids)) != len(token_ids):
        raise TemplateError(f"Two verbalizers have the same tokens in this tokenizer: {dict(verbalizers)}. Choose distinct ones.")
    return Verbalizers(tuple(verbalizers), token_ids)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()
