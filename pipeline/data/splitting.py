"""Every row's split, as a pure function of its normalised text: stable when rows come and go."""

import hashlib
from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline.data.deduplication import text_keys
from pipeline.errors import SplitError
from pipeline.params import SplitParams
from pipeline.records import sha256_json

SPLITS = ("train", "validation", "test")


def position(key: str, seed: int) -> float:
    """A number in [0, 1), uniform over keys, from sha256 of seed and key (53 bits, so that it is an exact float)."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_name(key: str, *, params: SplitParams) -> str:
    """The split of all rows with this normalised text.

    Test is cut from the bottom and validation from the top, so that changing one share leaves the other's rows where they are.
    """
    where = position(key, params.seed)
    if where < params.test_share:
        return "test"
    return "validation" if where >= 1.0 - params.validation_share else "train"


def split_rows(rows: pd.DataFrame, *, fields: Sequence[str], labels: Sequence[str], params: SplitParams) -> dict[str, pd.DataFrame]:
    """The rows of train, validation and test, each in the given order.

    Rows with the same normalised text share a split. Adding or removing rows moves no other row. The price is that sizes and
    label shares are met on average and not exactly: a split that is exact per label depends on all rows, so it would
    move rows between training and test whenever data is added. With n rows a share p is off by about sqrt(p(1-p)/n).

    Raises SplitError when a split would lack a label.
    """
    names = pd.Series([split_name(str(key), params=params) for key in text_keys(rows, fields)], index=rows.index, dtype="str")
    splits = {name: rows.loc[names == name].reset_index(drop=True) for name in SPLITS}
    _check_labels(splits, labels, len(rows))
    return splits


def split_ids_sha256(splits: Mapping[str, pd.DataFrame]) -> str:
    """Hex sha256 of which row ids are in which split, independent of their order."""
    return sha256_json({name: sorted(rows["row_id"]) for name, rows in splits.items()})


def _check_labels(splits: Mapping[str, pd.DataFrame], labels: Sequence[str], total: int) -> None:
    for name, rows in splits.items():
        missing = [label for label in labels if label not in set(rows["label"])]
        if missing:
            raise SplitError(
                f"The {name} split ({len(rows)} of {total} accepted rows) has no row with the label {', '.join(map(repr, missing))}."
                " Add rows with it, raise split.validation_share or split.test_share, or set another split.seed."
            )
