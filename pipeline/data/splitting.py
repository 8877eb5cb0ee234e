"""Every row's split, as a pure function of its own origin or text, and the rows set aside so that no two splits share a text.

A split that depended on other rows would move rows between training and test whenever data is added. So near-duplicates are not moved into
one split: where a cluster of them touches two, the rows of one split stay and the others are set aside.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.deduplication import Digests, DistinctTexts, bare_texts, digests
from pipeline.data.near_duplicates import cluster_texts
from pipeline.errors import SplitError
from pipeline.params import SplitParams
from pipeline.records import sha256_json

SPLITS = ("train", "validation", "test")
TIES = ("test", "validation", "train")  # which split keeps its rows when several hold as many rows of a cluster
RULES = ("near_duplicate_across_splits", "in_external_test")
STAYS = -1

Codes = npt.NDArray[np.int8]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """What decides where rows go: `split` [n] as an index into SPLITS, and digests of the `key` [n] it came from and of the bare `text` [n]."""

    split: Codes
    key: Digests
    text: Digests


@dataclass(frozen=True)
class Placement:
    """`rule` [n]: why a row is set aside, an index into RULES, or STAYS. `beside` [n]: for a near-duplicate that is set aside, a row of its
    cluster that stays, else -1. `near_duplicates`: counts for the report."""

    rule: Codes
    beside: Index
    near_duplicates: dict[str, int]


def position(key: str, seed: int) -> float:
    """A number in [0, 1), uniform over keys, from sha256 of seed and key (53 bits, so that it is an exact float)."""
    digest = hashlib.sha256(f"{seed}/{key}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_code(key: str, *, params: SplitParams) -> int:
    """The split of all rows with this key, as an index into SPLITS.

    Test is cut from the bottom and validation from the top, so that changing one share leaves the other's rows where they are.
    """
    where = position(key, params.seed)
    if where < params.test_share:
        return SPLITS.index("test")
    return SPLITS.index("validation" if where >= 1.0 - params.validation_share else "train")


def examine_rows(batches: Iterable[pa.RecordBatch], texts: DistinctTexts, *, fields: Sequence[str], params: SplitParams) -> Rows:
    """The split, key and text of every row; the texts are added to `texts`.

    The key is the row's `origin` where it has one, else its bare text (see deduplication.bare).
    """
    parts: list[tuple[Codes, Digests, Digests]] = []
    for batch in batches:
        bare = bare_texts(batch, fields, params.ignored)
        origins = batch.column("origin").to_pylist() if "origin" in batch.schema.names else [None] * len(bare)
        keys = [text if origin is None else origin for origin, text in zip(origins, bare, strict=True)]
        split = np.fromiter((split_code(key, params=params) for key in keys), dtype="int8", count=len(keys))
        parts.append((split, digests(keys, len(keys)), texts.add(bare)))
    split, key, text = zip(*parts, strict=True) if parts else ([], [], [])
    nothing = np.empty(0, dtype="uint64")
    return Rows(np.concatenate([nothing.astype("int8"), *split]), np.concatenate([nothing, *key]), np.concatenate([nothing, *text]))


def place_rows(rows: Rows, external: Digests, texts: DistinctTexts, *, params: SplitParams) -> Placement:
    """Which rows stay. In a cluster of near-duplicates that touches several splits, those of the split with most of its rows stay.

    Where a cluster holds a text of `external`, a test file of the user's own, the rows of training and validation are set aside.
    `texts` holds the texts of both.
    """
    distinct, known = texts.in_order()
    found = cluster_texts(distinct, params=params.near_duplicates, seed=params.seed)
    cluster = found.cluster[np.searchsorted(known, rows.text)]
    rows_of = np.stack([np.bincount(cluster[rows.split == code], minlength=len(known)) for code in range(len(SPLITS))])
    in_order = np.array([SPLITS.index(name) for name in TIES])
    keeper = in_order[np.argmax(rows_of[in_order], axis=0)]
    touched = np.zeros(len(known), dtype=bool)
    touched[found.cluster[np.searchsorted(known, external)]] = True
    keeper[touched] = SPLITS.index("test")
    across, outside = (RULES.index(name) for name in ("near_duplicate_across_splits", "in_external_test"))
    rule = np.where(rows.split == keeper[cluster], STAYS, np.where(touched[cluster], outside, across)).astype("int8")
    sizes = rows_of.sum(axis=0)
    counts = {
        "distinct_texts": len(known),
        "boilerplate_shingles": found.boilerplate_shingles,
        "compared_pairs": found.compared,
        "clusters": int((sizes > 1).sum()),
        "rows_in_clusters": int(sizes[sizes > 1].sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "clusters_across_splits": int(((rows_of > 0).sum(axis=0) > 1).sum()),
    }
    return Placement(rule, _beside(cluster, rule, len(known)), counts)


def _beside(cluster: Index, rule: Codes, clusters: int) -> Index:
    """For each row set aside as a near-duplicate, the first row of its cluster that stays; else -1."""
    staying = np.flatnonzero(rule == STAYS)[::-1]
    first = np.full(clusters, -1)
    first[cluster[staying]] = staying
    return np.where(rule == RULES.index("near_duplicate_across_splits"), first[cluster], -1)


def label_shares(answers: Index, rows: Rows, labels: Sequence[str], params: SplitParams) -> dict[str, dict[str, dict[str, float]]]:
    """label -> split -> `share` of the label's rows, the `expected` one, and the `standard_deviation` of such a share by chance.

    `answers` [n] are indices into `labels`. A split is drawn for each key, so with m_i rows of the label under key i its share has the variance
    p (1 - p) sum(m_i**2) / sum(m_i)**2: a binomial's when every key has one row. Rows set aside count where they would have gone.
    """
    expected = {"test": params.test_share, "validation": params.validation_share}
    expected["train"] = 1 - sum(expected.values())
    _, keys = np.unique(rows.key, return_inverse=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for answer, label in enumerate(labels):
        own = answers == answer
        sizes = np.bincount(keys[own]).astype("float64")
        spread = sqrt(float((sizes**2).sum())) / max(int(own.sum()), 1)
        found[label] = {
            split: {
                "share": float((rows.split[own] == code).mean()) if own.any() else 0.0,
                "expected": expected[split],
                "standard_deviation": sqrt(expected[split] * (1 - expected[split])) * spread,
            }
            for code, split in enumerate(SPLITS)
        }
    return found


def split_ids_sha256(ids: Mapping[str, Iterable[str]]) -> str:
    """Hex sha256 of which row ids are in which split, independent of their order."""
    return sha256_json({name: sorted(ids[name]) for name in SPLITS})


def check_counts(rows: Mapping[str, int], labels: Mapping[str, Mapping[str, int]], total: int) -> None:
    """Raise SplitError when a split (name -> rows, name -> label -> rows) has no row, or none of a label."""
    for name, count in rows.items():
        missing = [label for label, n in labels[name].items() if not n]
        if missing or not count:
            lacking = f"row with the label {', '.join(map(repr, missing))}" if missing else "row"
            raise SplitError(
                f"The {name} split ({count} of {total} accepted rows) has no {lacking}."
                " Add rows, raise split.validation_share or split.test_share, or set another split.seed."
                " Rows of one origin, and rows whose texts differ in split.ignored alone, share a split."
            )
