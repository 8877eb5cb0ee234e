"""Surface properties of texts, and how far they give the label away: a prompt can learn them instead of the task.

The association is Cramer's V (Cramér 1946) of the contingency table of property and label: 0 is none, 1 says that the property
tells the label. Cohen (1988) calls 0.1 small, 0.3 medium and 0.5 large for two values.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import compute

from pipeline.errors import ParamsError

pc: Any = compute  # its functions are made at import and unknown to type checkers

# Property -> RE2 pattern of the texts that have it.
PATTERNS = {"URL": r"(?i)\bhttps?://|\bwww\.\w", "handle": r"(?:^|[^\w@])@\w", "hashtag": r"(?:^|[^\w&#])#\w"}
LENGTH = "length"
PROPERTIES = (*PATTERNS, LENGTH)
LENGTH_CLASSES = 4  # quarters of the rows


def has_property(texts: pa.Array, name: str) -> npt.NDArray[np.bool_]:
    """Whether each text has the property; null has none."""
    return pc.fill_null(pc.match_substring_regex(texts, PATTERNS[name]), False).to_numpy(zero_copy_only=False)


def script_shares(texts: pa.Array, scripts: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Share of each text's letters that are of one of the Unicode `scripts`, 0 to 1; NaN for null and for a text without letters.

    Raises ParamsError when one is no script of Unicode.
    """
    expected = "[" + "".join(rf"\p{{{name}}}" for name in scripts) + "]"
    try:
        pc.count_substring_regex(pa.array(["a"]), expected)
    except pa.ArrowInvalid:
        raise ParamsError(
            f"validate.script.expected: {', '.join(scripts)}: one of these is no script of Unicode; use names such as Latin, Cyrillic or Han."
        ) from None
    ascii_only = pc.fill_null(pc.string_is_ascii(texts), True).to_numpy(zero_copy_only=False)
    shares = np.full(len(texts), np.nan)
    letters = pc.fill_null(pc.match_substring_regex(texts, "[A-Za-z]"), False).to_numpy(zero_copy_only=False)
    shares[ascii_only & letters] = float("Latin" in scripts)
    others = texts.filter(pa.array(~ascii_only))
    all_letters = pc.count_substring_regex(others, r"\p{L}").to_numpy(zero_copy_only=False).astype("float64")
    of_script = pc.count_substring_regex(others, expected).to_numpy(zero_copy_only=False)
    # A script also has signs that are no letters, such as Roman numerals.
    shares[~ascii_only] = np.divide(
        np.minimum(of_script, all_letters), all_letters, out=np.full(len(others), np.nan), where=all_letters > 0
    )
    return shares


def associations(
    properties: Mapping[str, npt.NDArray[Any]], lengths: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Property -> Cramer's V with the label (codes from 0), also for the quarters of `lengths`; NaN without rows."""
    edges = np.quantile(lengths, np.linspace(0, 1, LENGTH_CLASSES + 1)[1:-1]) if len(lengths) else []
    classes = {**properties, LENGTH: np.searchsorted(edges, lengths)}
    return {name: _cramers_v(np.asarray(values).astype("int64"), labels) for name, values in classes.items()}


def _cramers_v(values: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    """0 where either side has one value only, since that tells nothing of the other."""
    from scipy.stats.contingency import association

    if not len(labels):
        return float("nan")
    table = np.zeros((int(values.max()) + 1, int(labels.max()) + 1), dtype="int64")
    np.add.at(table, (values, labels), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    return float(association(table, method="cramer")) if min(table.shape) > 1 else 0.0
