"""The virtual tokens as the card lists them: nearest words and drift, each word made visible."""

from dataclasses import dataclass

from pipeline.reporting.examples import Piece, visible_pieces
from pipeline.reporting.formats.virtual_tokens import VirtualToken, VirtualTokens, Word


@dataclass(frozen=True)
class NearWord:
    """A vocabulary word with a space in front of it, a line break and the like made visible."""

    pieces: list[Piece]
    word: Word


@dataclass(frozen=True)
class TokenRow:
    """One virtual token; its words are the nearest first."""

    token: VirtualToken
    words: list[NearWord]


def token_rows(record: VirtualTokens) -> list[TokenRow]:
    """A row for each virtual token, in their order before the text."""
    return [TokenRow(token, [NearWord(visible_word(word.text, word.token_id), word) for word in token.nearest]) for token in record.tokens]


def visible_word(text: str, token_id: int) -> list[Piece]:
    """The word with spaces as open boxes and line breaks as arrows, so that " good" and "good" are told apart.

    A token without a text, or with a part of a character (which decodes to U+FFFD), is shown by its number.
    """
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return [Piece(f"token {token_id}", hidden=True)]
    shown = text.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{RETURN SYMBOL}").replace("\t", "\N{RIGHTWARDS ARROW TO BAR}")
    return visible_pieces(shown)
