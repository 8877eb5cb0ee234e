"""Which rows are drawn: those with the smallest hash of (seed, row id), so that neither their order nor a random generator matters."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd


def row_ranks(row_ids: Sequence[str], seed: int) -> np.ndarray:
    """For each row the first 64 bits of sha256 of (seed, row id) [rows], uint64: as good as drawn at random, and always the same."""
    digests = b"".join(hashlib.sha256(f"{seed}/{row_id}".encode()).digest()[:8] for row_id in row_ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def drawn_rows(ranks: np.ndarray, sample_rows: int | None, strata: np.ndarray | None = None) -> np.ndarray:
    """Mask [rows] of `sample_rows` rows without replacement; all rows when there are no more than that.

    The rows with the smallest ranks are drawn (bottom-k sampling): a uniform draw in which a row appended to the source displaces
    at most one drawn row. With `strata` (a number for each row's label) each stratum gives its share of the sample, rounded by largest remainders.
    """
    if sample_rows is None or len(ranks) <= sample_rows:
        return np.ones(len(ranks), dtype=bool)
    mask = np.zeros(len(ranks), dtype=bool)
    if strata is None:
        mask[np.argsort(ranks, kind="stable")[:sample_rows]] = True
        return mask
    for stratum, quota in enumerate(_quotas(np.bincount(strata), sample_rows)):
        members = np.flatnonzero(strata == stratum)
        mask[members[np.argsort(ranks[members], kind="stable")[:quota]]] = True
    return mask


def draw_sample(rows: pd.DataFrame, *, sample_rows: int | None, seed: int) -> pd.DataFrame:
    """`sample_rows` rows of a frame with row ids, in the order of the frame; all rows when there are no more than that."""
    if sample_rows is None or len(rows) <= sample_rows:
        return rows.reset_index(drop=True)
    return rows[drawn_rows(row_ranks(rows["row_id"].tolist(), seed), sample_rows)].reset_index(drop=True)


def _quotas(sizes: np.ndarray, sample_rows: int) -> list[int]:
    """Rows to draw from each stratum: its share, and one more for the largest remainders until they add up."""
    shares = [int(size) * sample_rows for size in sizes]
    total = int(sizes.sum())
    quotas = [share // total for share in shares]
    remainders = sorted(range(len(shares)), key=lambda index: (-(shares[index] % total), index))
    for index in remainders[: sample_rows - sum(quotas)]:
        quotas[index] += 1
    return quotas
