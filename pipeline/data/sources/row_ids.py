"""Row ids: from a row's own content, so that a row keeps its id when others come and go, and unique."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class RowIds:
    """Makes the ids of a source's rows, batch after batch. It remembers 12 bytes of each distinct row, not the row."""

    def __init__(self) -> None:
        self._digests = np.empty(0, dtype=np.uint64)  # sorted, of all rows so far
        self._counts = np.empty(0, dtype=np.uint32)  # how often each was seen
        self._all = hashlib.sha256()

    def of(self, contents: Sequence[object]) -> list[str]:
        """Ids of the next rows: 16 hex digits of sha256 over canonical JSON, and "-2", "-3" on exact repetitions."""
        digests = [hashlib.sha256(_CANONICAL.encode(content).encode()).digest()[:8] for content in contents]
        joined = b"".join(digests)
        self._all.update(joined)
        repetitions = self._count(np.frombuffer(joined, dtype=">u8").astype(np.uint64))
        return [digest.hex() if nth == 1 else f"{digest.hex()}-{nth}" for digest, nth in zip(digests, repetitions, strict=True)]

    def content_sha256(self) -> str:
        """Hex sha256 over all rows so far, in their order."""
        return self._all.hexdigest()

    def _count(self, digests: np.ndarray) -> list[int]:
        """For each digest the how-manieth of its kind it is, over all calls."""
        distinct, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
        places = np.searchsorted(self._digests, distinct)
        known = np.zeros(len(distinct), dtype=bool)
        inside = places < len(self._digests)
        known[inside] = self._digests[places[inside]] == distinct[inside]
        before = np.zeros(len(distinct), dtype=np.uint32)
        before[known] = self._counts[places[known]]
        self._counts[places[known]] += counts[known].astype(np.uint32)
        self._digests = np.insert(self._digests, places[~known], distinct[~known])
        self._counts = np.insert(self._counts, places[~known], counts[~known].astype(np.uint32))
        return (before[inverse] + _nth_of_its_kind(inverse, counts)).tolist()


def row_ids(contents: Sequence[object]) -> list[str]:
    """The ids of all rows at once."""
    return RowIds().of(contents)


def _nth_of_its_kind(kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """1 for the first of each kind, 2 for the second: positions in a stable sort, less where the kind begins."""
    order = np.argsort(kinds, kind="stable")
    nth = np.empty(len(kinds), dtype=np.uint32)
    nth[order] = np.arange(len(kinds)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return nth
