"""Near-duplicates among texts: MinHash signatures, locality-sensitive hashing, exact similarity of what meets, connected components.

A text is the set of its shingles (overlapping runs of characters), and two texts are near-duplicates when the Jaccard similarity of their
sets, |A and B| / |A or B|, reaches the threshold. Shingles that many texts have are a template and do not count: similarity asks how
much of what is particular to two texts they share, not whether they share any run of characters.

The equal positions of two MinHash signatures estimate the similarity (Broder 1997, "On the resemblance and containment of documents"); their
16 low bits are kept (Li and Koenig 2010, "b-bit minwise hashing"). Cut into bands, similar texts meet in a band (Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", 3.4), and what meets is compared exactly. Memory is about 300 bytes per text, whatever its length.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.params import NearDuplicateParams

PERMUTATIONS = 128
MISSED = 1e-6  # the chance that two texts exactly as similar as the threshold meet in no band
NEIGHBOURS = 128  # with how many others of a band's bucket a text is compared; the order is another one in each band
BOILERPLATE_TEXTS = 10  # what fewer texts share is no template
TEXTS_AT_ONCE = 10_000
COMPARED_AT_ONCE = 20_000

Index = npt.NDArray[np.int64]
_COUNTERS = 20  # bits


@dataclass(frozen=True)
class Clusters:
    """`cluster` [n]: texts with the same number are linked by a chain of near-duplicates. `compared`: pairs whose similarity was computed."""

    cluster: Index
    compared: int
    boilerplate_shingles: int


@dataclass(frozen=True)
class _Shingles:
    """The shingle sets of several texts as 32-bit hashes: those of text i are `hashes[starts[i]:starts[i + 1]]`, sorted."""

    hashes: npt.NDArray[np.uint32]
    starts: Index

    @property
    def sizes(self) -> Index:
        return np.diff(self.starts)


def cluster_texts(texts: pa.ChunkedArray, *, params: NearDuplicateParams, seed: int) -> Clusters:
    """Connected components of the near-duplicates among distinct `texts` [n].

    A pair above the threshold is missed with a chance below MISSED, or when more than NEIGHBOURS texts that all meet are
    not linked otherwise; pipeline.data.leakage looks for such pairs in another way.
    """
    boilerplate = _boilerplate(texts, params)
    signatures = _signatures(texts, boilerplate, params, seed)
    cluster = np.arange(len(texts))
    compared = np.empty(0, dtype="int64")  # pairs as numbers, sorted: texts that meet in several bands are compared once
    generator = np.random.default_rng(seed)
    for keys in _band_keys(signatures, params.similarity, generator):
        of_band = [compared]
        for meeting in _meetings(keys, generator):
            unlinked = meeting[:, cluster[meeting[0]] != cluster[meeting[1]]]
            similar = unlinked[:, _look_similar(signatures, unlinked, params.similarity)]
            numbers = similar.min(axis=0) * len(texts) + similar.max(axis=0)
            new = ~_contains(compared, numbers)
            pairs = similar[:, new]
            of_band.append(numbers[new])
            linked = pairs[:, _similarities(texts, pairs, boilerplate, params) >= params.similarity]
            cluster = _merged(cluster, linked)
        compared = np.sort(np.concatenate(of_band))
    return Clusters(cluster, len(compared), len(boilerplate))


# --- texts to sets ----------------------------------------------------------------------------------------------------


def _shingles(texts: pa.Array | pa.ChunkedArray, size: int) -> _Shingles:
    """The set of hashed shingles of each text; a text shorter than `size` is one shingle."""
    padded = [text.ljust(size, "\0") for text in texts.to_pylist()]
    lengths = np.fromiter(map(len, padded), dtype="int64", count=len(padded)) - size + 1
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype("uint64")
    hashes = np.zeros(max(len(codes) - size + 1, 0), dtype="uint64")
    for offset in range(size):  # a polynomial modulo 2**64 over each window
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(hashes)]
    owners = np.repeat(np.arange(len(padded), dtype="uint64"), lengths)
    within = np.arange(len(owners)) + (size - 1) * owners.astype("int64")  # windows that lie inside one text
    # Owner above hash, so that one sort makes a set of each text's shingles; np.unique's hash table is many times slower here.
    members = np.sort(owners << np.uint64(32) | _mixed(hashes[within]) >> np.uint64(32))
    members = members[np.concatenate([[True], members[1:] != members[:-1]])]
    counts = np.bincount((members >> np.uint64(32)).astype("int64"), minlength=len(padded))
    return _Shingles(members.astype("uint32"), np.concatenate([[0], np.cumsum(counts)]))


def _mixed(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """MurmurHash3's 64-bit finaliser: every bit of the input moves every bit of the output."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes = (hashes ^ hashes >> np.uint64(33)) * np.uint64(factor)
    return hashes ^ hashes >> np.uint64(33)


def _boilerplate(texts: pa.ChunkedArray, params: NearDuplicateParams) -> npt.NDArray[np.uint32]:
    """The shingles in more than the boilerplate share of the texts.

    Two passes: hashed counters, which never count too little, leave few shingles to count exactly.
    """
    limit = max(params.boilerplate_share * len(texts), BOILERPLATE_TEXTS)
    counters = np.zeros(2**_COUNTERS, dtype="int64")
    for sets in _batches(texts, params.shingle_characters):
        counters += np.bincount(sets.hashes >> np.uint32(32 - _COUNTERS), minlength=2**_COUNTERS)
    frequent = counters > limit
    if not frequent.any():
        return np.empty(0, dtype="uint32")
    candidates = (sets.hashes[frequent[sets.hashes >> np.uint32(32 - _COUNTERS)]] for sets in _batches(texts, params.shingle_characters))
    known, counts = np.empty(0, dtype="uint32"), np.empty(0, dtype="int64")
    for hashes in candidates:
        known, where = np.unique(np.concatenate([known, hashes]), return_inverse=True)
        weights = np.concatenate([counts, np.ones(len(hashes), dtype="int64")])
        counts = np.bincount(where, weights=weights, minlength=len(known)).astype("int64")
    return known[counts > limit]


def _particular(sets: _Shingles, boilerplate: npt.NDArray[np.uint32]) -> _Shingles:
    """The sets without boilerplate; a text that is nothing else keeps all its shingles."""
    counted = ~np.isin(sets.hashes, boilerplate)
    owners = np.repeat(np.arange(len(sets.sizes)), sets.sizes)
    nothing_left = np.bincount(owners[counted], minlength=len(sets.sizes)) == 0
    counted |= nothing_left[owners]
    sizes = np.bincount(owners[counted], minlength=len(sets.sizes))
    return _Shingles(sets.hashes[counted], np.concatenate([[0], np.cumsum(sizes)]))


def _batches(texts: pa.ChunkedArray, size: int) -> Iterator[_Shingles]:
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield _shingles(texts.slice(start, TEXTS_AT_ONCE), size)


# --- signatures and bands ---------------------------------------------------------------------------------------------


def _signatures(
    texts: pa.ChunkedArray, boilerplate: npt.NDArray[np.uint32], params: NearDuplicateParams, seed: int
) -> npt.NDArray[np.uint16]:
    """MinHash signatures [n, PERMUTATIONS]."""
    from datasketch import MinHash

    # Shingles are hashed already, so datasketch's own hash function is the identity.
    empty = MinHash(PERMUTATIONS, seed=seed, hashfunc=operator.index)
    signatures = np.empty((len(texts), PERMUTATIONS), dtype="uint16")
    row = 0
    for batch in _batches(texts, params.shingle_characters):
        sets = _particular(batch, boilerplate)
        for start, end in zip(sets.starts[:-1], sets.starts[1:], strict=True):
            sketch = empty.copy()
            sketch.update_batch(sets.hashes[start:end].tolist())
            signatures[row] = sketch.hashvalues.astype("uint16")
            row += 1
    return signatures


def band_width(similarity: float) -> int:
    """The most signature positions per band with which texts of this similarity still meet in one, but for a chance of MISSED."""
    fitting = (width for width in range(PERMUTATIONS, 1, -1) if (1 - similarity**width) ** (PERMUTATIONS // width) <= MISSED)
    return next(fitting, 1)


def _band_keys(signatures: npt.NDArray[np.uint16], similarity: float, generator: np.random.Generator) -> Iterator[npt.NDArray[np.uint64]]:
    """For each band a number per text, equal for texts whose signatures are equal there (others: one pair in 2**64)."""
    width = band_width(similarity)
    for start in range(0, PERMUTATIONS - width + 1, width):
        factors = generator.integers(2**63, size=width, dtype="uint64") * np.uint64(2) + np.uint64(1)
        keys = np.zeros(len(signatures), dtype="uint64")
        for position, factor in enumerate(factors):
            keys = _mixed(keys + signatures[:, start + position] * factor)
        yield keys


def _meetings(keys: npt.NDArray[np.uint64], generator: np.random.Generator) -> Iterator[Index]:
    """Pairs [2, m] of texts with equal keys, in turns: with the next text of the bucket, the one behind it, up to NEIGHBOURS.

    A large bucket is mostly one cluster, linked after few turns; comparing all its pairs would take its size squared.
    """
    shuffled = generator.permutation(len(keys))
    order = shuffled[np.argsort(keys[shuffled], kind="stable")]
    keys = keys[order]
    first = np.arange(len(keys))
    for distance in range(1, NEIGHBOURS + 1):
        first = first[first + distance < len(keys)]
        first = first[keys[first] == keys[first + distance]]
        if not len(first):
            return
        yield np.stack([order[first], order[first + distance]])


def _look_similar(signatures: npt.NDArray[np.uint16], pairs: Index, similarity: float) -> npt.NDArray[np.bool_]:
    """Whether the estimate of a pair's similarity is within five standard errors of the threshold, or above."""
    least = similarity - 5 * sqrt(similarity * (1 - similarity) / PERMUTATIONS)
    found = np.empty(pairs.shape[1], dtype=bool)
    for start in range(0, pairs.shape[1], COMPARED_AT_ONCE):
        left, right = signatures[pairs[:, start : start + COMPARED_AT_ONCE]]
        found[start : start + COMPARED_AT_ONCE] = (left == right).mean(axis=1) >= least
    return found


# --- pairs to clusters ------------------------------------------------------------------------------------------------


def _contains(ordered: Index, values: Index) -> npt.NDArray[np.bool_]:
    """Which of `values` are in the sorted array."""
    places = np.searchsorted(ordered, values)
    return np.concatenate([ordered, [-1]])[places] == values


def _similarities(
    texts: pa.ChunkedArray, pairs: Index, boilerplate: npt.NDArray[np.uint32], params: NearDuplicateParams
) -> npt.NDArray[np.float64]:
    """The Jaccard similarity of each pair, from the texts."""
    parts = [
        _jaccard(texts, pairs[:, start : start + COMPARED_AT_ONCE], boilerplate, params)
        for start in range(0, pairs.shape[1], COMPARED_AT_ONCE)
    ]
    return np.concatenate([np.empty(0), *parts])


def _jaccard(
    texts: pa.ChunkedArray, pairs: Index, boilerplate: npt.NDArray[np.uint32], params: NearDuplicateParams
) -> npt.NDArray[np.float64]:
    from scipy import sparse

    rows, places = np.unique(pairs, return_inverse=True)
    sets = _particular(_shingles(texts.take(rows), params.shingle_characters), boilerplate)
    columns, positions = np.unique(sets.hashes, return_inverse=True)
    shape = (len(rows), len(columns))
    table: Any = sparse.csr_array((np.ones(len(positions), dtype="int32"), positions, sets.starts), shape=shape)
    left, right = places.reshape(pairs.shape)
    both = np.asarray(table[left].multiply(table[right]).sum(axis=1)).ravel()
    return both / (sets.sizes[left] + sets.sizes[right] - both)


def _merged(cluster: Index, linked: Index) -> Index:
    """`cluster` with the clusters of each linked pair made one, under the smallest of their numbers."""
    if not linked.shape[1]:
        return cluster
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    known, places = np.unique(cluster[linked], return_inverse=True)
    left, right = places.reshape(linked.shape)
    graph = sparse.csr_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(known), len(known)))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)  # `known` is sorted, so the first of a component is its smallest
    renamed = np.arange(len(cluster))
    renamed[known] = known[smallest[component]]
    return renamed[cluster]
