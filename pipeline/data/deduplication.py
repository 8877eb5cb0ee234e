"""Which rows say the same: exact equality after normalising the text."""

import unicodedata
from collections.abc import Sequence

import pandas as pd


def normalise(text: str) -> str:
    """Unicode NFKC and casefold, runs of white space as one space, none at the ends. Idempotent.

    Case folding can undo the composed form, so NFKC is applied again behind it (Unicode 3.13, D145).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def text_keys(rows: pd.DataFrame, fields: Sequence[str]) -> pd.Series:
    """One string per row, equal for rows whose normalised fields are all equal; fields must not be null."""
    # str.split takes U+001F for white space, so no normalised field holds it and the joint is unambiguous.
    keys = ["\x1f".join(normalise(value) for value in values) for values in zip(*(rows[name] for name in fields), strict=True)]
    return pd.Series(keys, index=rows.index, dtype="str")


def is_repetition(keys: pd.Series, labels: pd.Series) -> pd.Series:
    """True for rows whose normalised text and label stand in an earlier row already."""
    return pd.DataFrame({"key": keys, "label": labels}).duplicated(keep="first")


def has_conflict(keys: pd.Series, labels: pd.Series) -> pd.Series:
    """True for every row whose normalised text also stands in a row with another label."""
    return labels.groupby(keys, sort=False).transform("nunique") > 1
