"""What changed between two raw tables: rows added, removed and relabelled, and how the labels shifted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from pipeline.records import iterate_parquet

KEY_BYTES = 8  # two of 1,000,000 different texts share a key with a probability of 3e-8


@dataclass(frozen=True)
class RawTable:
    """A raw table, and its sha256 where it lies without a checksum beside it, as in DVC's cache."""

    path: Path
    sha256: str | None = None


def compare_tables(before: RawTable, after: RawTable, *, fields: Sequence[str], target: str, labels: bool = True) -> dict[str, Any]:
    """Counts of what changed from `before` to `after`; rows are the same when their `fields` are, so a row's order does not matter.

    A text whose `target` (the name of the column) is another is relabelled; a text that stands in one table n times more often has n rows
    added or removed. So rows_before + added - removed = rows_after. With `labels`: label -> its rows before and after, and
    `total_variation_distance`, half the sum of the differences between label shares, from 0 (the same shares) to 1.

    Raises StageInputError when a table is missing, altered or lacks a column.
    """
    counts = {"before": _read_counts(before, fields, target), "after": _read_counts(after, fields, target)}
    pairs = pd.DataFrame(counts).fillna(0).astype("int64")
    same = pairs.min(axis=1)
    left = pairs.sub(same, axis=0).groupby(level="text").sum()
    relabelled = left.min(axis=1)
    report: dict[str, Any] = {
        "rows_before": int(pairs["before"].sum()),
        "rows_after": int(pairs["after"].sum()),
        "added": int((left["after"] - relabelled).sum()),
        "removed": int((left["before"] - relabelled).sum()),
        "relabelled": int(relabelled.sum()),
    }
    return report | (_label_shift(before, after, target) if labels else {})


def _read_counts(table: RawTable, fields: Sequence[str], target: str) -> pd.Series:
    """Rows by (key of the text, key of the target)."""
    keys = [(_keys(batch, fields), _keys(batch, [target])) for batch in iterate_parquet(table.path, [*fields, target], sha256=table.sha256)]
    texts, targets = (np.concatenate([pair[side] for pair in keys]) if keys else np.empty(0, np.uint64) for side in (0, 1))
    return pd.DataFrame({"text": texts, "target": targets}).groupby(["text", "target"]).size()


def _keys(batch: Any, columns: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash [rows] of the cells of each row; null is told from every text, and ("a", "b") from ("ab", "")."""
    cells = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    digests = b"".join(hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest() for row in cells)
    return np.frombuffer(digests, dtype=np.uint64)


def _label_shift(before: RawTable, after: RawTable, target: str) -> dict[str, Any]:
    counts = pd.DataFrame({"before": _label_counts(before, target), "after": _label_counts(after, target)}).fillna(0).astype("int64")
    shares = counts / counts.sum().clip(lower=1)
    distance = float((shares["after"] - shares["before"]).abs().sum() / 2)
    rows = cast(dict[str, dict[str, int]], counts.sort_index().to_dict(orient="index"))
    return {"labels": {str(label): found for label, found in rows.items()}, "total_variation_distance": distance}


def _label_counts(table: RawTable, target: str) -> pd.Series:
    """Rows by label; rows without one are left out."""
    total = pd.Series(dtype="int64")
    for batch in iterate_parquet(table.path, [target], sha256=table.sha256):
        total = total.add(batch.column(target).to_pandas().value_counts(), fill_value=0)
    return total.astype("int64")
