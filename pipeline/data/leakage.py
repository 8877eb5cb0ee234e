"""Rows that two splits share: the same text, the same normalised text, a near-duplicate, the same origin.

It checks what splitting promises and shares only the definitions with it (what is normalised, what is ignored, how similar is a
near-duplicate). Where pipeline.data.near_duplicates lets signatures meet by chance, this is an exact join: with the rarest shingles first,
two sets of similarity t or more share some of the first |x| - ceil(t |x|) + k shingles of each, at least k of them (Chaudhuri, Ganti and
Kaushik 2006, "A primitive operator for similarity joins in data cleaning"; Wang, Li and Feng 2012, "Can we beat the prefix filtering?").
What shares as many is compared shingle by shingle.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.deduplication import Digests, DistinctTexts, bare_texts, digests, field_values, joined, text_keys
from pipeline.params import NearDuplicateParams, SplitParams

EXTERNAL = "external_test"
# Rows of the second must not be like a row of the first.
PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"), ("train", EXTERNAL), ("validation", EXTERNAL))
KINDS = ("exact", "normalised", "near", "origin")
EXAMPLES = 5
SHARED = 8  # k above; a larger one holds more shingles of each text and compares fewer pairs
BOILERPLATE_TEXTS = 10
TEXTS_AT_ONCE = 5_000
COMPARED_AT_ONCE = 1_000  # texts whose rarest shingles are looked up together: among a million, each may meet a thousand others

Index = npt.NDArray[np.int64]
_COLUMNS = 2**22  # shingles that fall into one column only make more pairs to compare


@dataclass(frozen=True)
class _Side:
    """The rows of one side as digests [n]; `origin` is empty where the task has none."""

    exact: Digests
    normalised: Digests
    bare: Digests
    origin: Digests
    row_ids: pa.ChunkedArray


def check_leakage(
    sides: Mapping[str, Iterable[pa.RecordBatch]], set_aside: Iterable[pa.RecordBatch], *, fields: Sequence[str], params: SplitParams
) -> dict[str, Any]:
    """For each pair of `sides` how many rows of the second are like a row of the first; 0 everywhere when nothing leaks.

    The sides are train, validation, test and perhaps external_test, with `row_id` and the fields. Rows that were set aside are on no side,
    but count when the shingles of a template are told from those of few texts.
    """
    texts = DistinctTexts()
    for batch in set_aside:
        texts.add(bare_texts(batch, fields, params.ignored))
    read = {name: _read(batches, texts, fields, params) for name, batches in sides.items()}
    distinct, known = texts.in_order()
    join = _Join(distinct, params.near_duplicates)
    pairs = [(first, second) for first, second in PAIRS if second in read]
    return {
        "similarity": params.near_duplicates.similarity,
        "shingle_characters": params.near_duplicates.shingle_characters,
        "boilerplate_share": params.near_duplicates.boilerplate_share,
        "ignored": params.ignored,
        "rows": {name: len(side.exact) for name, side in read.items()},
        "pairs": {f"{second} in {first}": _compare(read[first], read[second], known, join) for first, second in pairs},
    }


def _read(batches: Iterable[pa.RecordBatch], texts: DistinctTexts, fields: Sequence[str], params: SplitParams) -> _Side:
    exact, normalised, bare, origin = ([np.empty(0, dtype="uint64")] for _ in range(4))
    ids: list[pa.Array] = []
    for batch in batches:
        exact.append(digests(map(joined, field_values(batch, fields)), batch.num_rows))
        normalised.append(text_keys(batch, fields))
        bare.append(texts.add(bare_texts(batch, fields, params.ignored)))
        if "origin" in batch.schema.names:
            # A row without an origin is alone: no other row has its id.
            pairs = zip(batch.column("origin").to_pylist(), batch.column("row_id").to_pylist(), strict=True)
            origin.append(digests((f"row {row}" if name is None else f"origin {name}" for name, row in pairs), batch.num_rows))
        ids.append(batch.column("row_id").cast(pa.large_string()))
    return _Side(*(np.concatenate(parts) for parts in (exact, normalised, bare, origin)), row_ids=pa.chunked_array(ids, pa.large_string()))


def _compare(first: _Side, second: _Side, known: Digests, join: "_Join") -> dict[str, Any]:
    """The rows of `second` that are like one of `first`, by kind, and the row ids of a few such pairs."""
    ours, theirs = np.searchsorted(known, first.bare), np.searchsorted(known, second.bare)
    like = join.like(np.unique(ours), np.unique(theirs))
    near = np.flatnonzero(like[theirs] >= 0)
    examples = [(int(np.flatnonzero(ours == like[theirs[row]])[0]), int(row)) for row in near[:EXAMPLES]]
    return {
        "exact": int(np.isin(second.exact, first.exact).sum()),
        "normalised": int(np.isin(second.normalised, first.normalised).sum()),
        "near": len(near),
        "origin": int(np.isin(second.origin, first.origin).sum()),
        "examples": [[first.row_ids[one].as_py(), second.row_ids[other].as_py()] for one, other in examples],
    }


class _Join:
    """Finds texts of one side that are near-duplicates of texts of another, among distinct `texts`."""

    def __init__(self, texts: pa.ChunkedArray, params: NearDuplicateParams) -> None:
        self._texts, self._size, self._similarity = texts, params.shingle_characters, params.similarity
        counts = np.zeros(_COLUMNS, dtype="int64")
        for sets in self._batches():
            counts += np.bincount(_columns(_hashes(sets)), minlength=_COLUMNS)
        self._boilerplate = self._frequent(counts, max(params.boilerplate_share * len(texts), BOILERPLATE_TEXTS))
        self._sizes, self._prefixes = self._rarest_first(counts)

    def like(self, first: Index, second: Index) -> Index:
        """[texts]: for each text of `second` one of `first` that is equal or near, else -1."""
        found = np.full(len(self._texts), -1)
        texts_with = self._prefixes[first].T.tocsr()  # [columns, first]; made once, as it takes longer than a lookup
        for start in range(0, len(second), COMPARED_AT_ONCE):
            for one, other in self._candidates(first, texts_with, second[start : start + COMPARED_AT_ONCE]):
                if found[other] < 0 and self._jaccard(one, other) >= self._similarity:
                    found[other] = one
        same = np.intersect1d(first, second)
        found[same] = same
        return found

    def _candidates(self, first: Index, texts_with: Any, second: Index) -> Iterator[tuple[int, int]]:
        """Pairs of texts that share enough of their rarest shingles, and whose sizes allow the similarity."""
        shared = (self._prefixes[second] @ texts_with).tocoo()
        one, other = first[shared.coords[1]], second[shared.coords[0]]
        sizes, others = self._sizes[one], self._sizes[other]
        enough = shared.data >= np.minimum(_least_shared(sizes, self._similarity), _least_shared(others, self._similarity))
        enough &= np.minimum(sizes, others) >= self._similarity * np.maximum(sizes, others) - 1e-9
        return zip(one[enough].tolist(), other[enough].tolist(), strict=True)

    def _jaccard(self, one: int, other: int) -> float:
        left, right = (self._particular(_shingles(self._texts[index].as_py(), self._size)) for index in (one, other))
        return len(left & right) / len(left | right)

    def _particular(self, shingles: set[str]) -> set[str]:
        return (shingles - self._boilerplate) or shingles

    def _batches(self) -> Iterator[list[set[str]]]:
        for start in range(0, len(self._texts), TEXTS_AT_ONCE):
            yield [_shingles(text, self._size) for text in self._texts.slice(start, TEXTS_AT_ONCE).to_pylist()]

    def _frequent(self, counts: Index, limit: float) -> frozenset[str]:
        """The shingles in more than `limit` texts; only those in a column that often are counted one by one."""
        frequent = counts > limit
        if not frequent.any():
            return frozenset()
        found: Counter[str] = Counter()
        for sets in self._batches():
            meant = frequent[_columns(_hashes(sets))].tolist()
            found.update(shingle for shingle, is_meant in zip(chain.from_iterable(sets), meant, strict=True) if is_meant)
        return frozenset(shingle for shingle, count in found.items() if count > limit)

    def _rarest_first(self, counts: Index) -> tuple[Index, Any]:
        """The size [texts] of each set, and a table [texts, columns] of its rarest shingles: as many as the module's docstring says."""
        from scipy import sparse

        sizes: list[Index] = [np.empty(0, dtype="int64")]
        columns: list[npt.NDArray[np.int32]] = [np.empty(0, dtype="int32")]
        lengths: list[Index] = [np.zeros(1, dtype="int64")]
        for batch in self._batches():
            sets = [self._particular(shingles) for shingles in batch]
            hashes, size = _hashes(sets), np.fromiter(map(len, sets), dtype="int64", count=len(sets))
            owners = np.repeat(np.arange(len(sets)), size)
            order = np.lexsort((hashes, counts[_columns(hashes)], owners))
            rank = np.arange(len(hashes)) - np.repeat(np.cumsum(size) - size, size)
            length = size - _ceil(self._similarity * size) + _least_shared(size, self._similarity)
            columns.append(_columns(hashes[order][rank < length[owners]]).astype("int32"))
            sizes.append(size)
            lengths.append(length)
        places, starts = np.concatenate(columns), np.cumsum(np.concatenate(lengths))
        table = sparse.csr_array((np.ones(len(places), dtype="int16"), places, starts), shape=(len(self._texts), _COLUMNS))
        return np.concatenate(sizes), table


def _shingles(text: str, size: int) -> set[str]:
    """Every run of `size` characters; a shorter text is one by itself."""
    return {text[start : start + size] for start in range(max(len(text) - size + 1, 1))}


def _hashes(sets: Sequence[set[str]]) -> Index:
    """Python's own 64-bit hashes: other ones in each process, which changes the order among equally rare shingles and no result."""
    return np.fromiter(map(hash, chain.from_iterable(sets)), dtype="int64")


def _columns(hashes: Index) -> Index:
    return hashes & (_COLUMNS - 1)


def _least_shared(sizes: Index, similarity: float) -> Index:
    return np.minimum(SHARED, _ceil(similarity * sizes))


def _ceil(values: npt.NDArray[np.floating[Any]]) -> Index:
    """Rounded up, but for what floating point adds to a whole number."""
    return np.ceil(values - 1e-9).astype("int64")
