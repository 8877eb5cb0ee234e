"""Which rows say the same: equality after normalising the text, and after leaving out what often varies between copies of a text."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.params import IgnoredPart

Digests = npt.NDArray[np.uint64]

FIELD_SEPARATOR = "\x1f"  # str.split takes U+001F for white space, so no normalised field holds it and joined fields are unambiguous

_TOKENS: dict[IgnoredPart, str] = {"urls": r"(?:https?://|www\.)\S+", "handles": r"@\w+"}
_CATEGORIES: dict[IgnoredPart, str] = {"digits": "N", "punctuation": "PS"}


def normalise(text: str) -> str:
    """Unicode NFKC and casefold, runs of white space as one space, none at the ends. Idempotent.

    Case folding can undo the composed form, so NFKC is applied again behind it (Unicode 3.13, D145).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def bare(text: str, ignored: Sequence[IgnoredPart]) -> str:
    """A normalised text without its `ignored` parts, or the text itself where nothing else is left ("@united", "12:30").

    urls: from http://, https:// or www. to the next space; handles: @ and a word; digits: Unicode's numbers (N);
    punctuation: Unicode's punctuation and symbols (P, S), emoji among them. What is left out counts as a space.
    """
    tokens, spaces = _leaving_out(tuple(ignored))
    kept = tokens.sub(" ", text) if tokens else text
    return " ".join(kept.translate(spaces).split()) or text


def digests(texts: Iterable[str], count: int) -> Digests:
    """64-bit BLAKE2b digests [count] of texts: equal texts have equal ones, and a million of them take 8 MB.

    Two different texts among n have the same digest with probability n**2 / 2**65: 3e-8 for a million, 3e-4 for a hundred million.
    """
    # A lone surrogate is no Unicode scalar value, but what a file or database held must not end in a traceback.
    hashes = (blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little") for digest in hashes), dtype="uint64", count=count)


def field_values(batch: pa.RecordBatch, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The fields of each row of a batch, none of them null."""
    return zip(*(batch.column(name).to_pylist() for name in fields), strict=True)


def joined(values: Iterable[str]) -> str:
    """The fields of a row as one string; different fields give different strings."""
    return FIELD_SEPARATOR.join(values)


def text_keys(batch: pa.RecordBatch, fields: Sequence[str]) -> Digests:
    """One number per row of a batch, equal for rows whose normalised fields are all equal."""
    return digests((joined(map(normalise, values)) for values in field_values(batch, fields)), batch.num_rows)


def bare_texts(batch: pa.RecordBatch, fields: Sequence[str], ignored: Sequence[IgnoredPart]) -> list[str]:
    """One string per row of a batch: its fields normalised, without their `ignored` parts (see `bare`), joined."""
    return [joined(bare(normalise(value), ignored) for value in values) for values in field_values(batch, fields)]


class DistinctTexts:
    """Distinct texts, collected batch by batch as Arrow strings, so that a million of them are never Python objects at once."""

    def __init__(self) -> None:
        self._known: Digests = np.empty(0, dtype="uint64")
        self._texts: list[pa.Array] = []

    def add(self, texts: Sequence[str]) -> Digests:
        """Keep the texts that were not there yet; returns the digests [n] of all of them."""
        found = digests(texts, len(texts))
        _, first = np.unique(found, return_index=True)
        new = first[~np.isin(found[first], self._known)]
        self._texts.append(pa.array([texts[index] for index in new], pa.large_string()))
        self._known = np.concatenate([self._known, found[new]])
        return found

    def in_order(self) -> tuple[pa.ChunkedArray, Digests]:
        """The texts and their digests, in the order of the digests, which no order of rows changes."""
        order = np.argsort(self._known)
        return pa.chunked_array(self._texts, pa.large_string()).take(order), self._known[order]


class _Spaces(dict[int, str]):
    """A table for str.translate: characters whose Unicode category starts with one of `categories` become spaces; filled as met."""

    def __init__(self, categories: str) -> None:
        super().__init__()
        self._categories = categories

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = " " if unicodedata.category(character)[0] in self._categories else character
        return self[code]


@cache
def _leaving_out(ignored: tuple[IgnoredPart, ...]) -> tuple[re.Pattern[str] | None, _Spaces]:
    tokens = [pattern for part, pattern in _TOKENS.items() if part in ignored]
    categories = "".join(letters for part, letters in _CATEGORIES.items() if part in ignored)
    return (re.compile("|".join(tokens)) if tokens else None), _Spaces(categories)
