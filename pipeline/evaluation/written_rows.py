"""The written answers of all variants to the test rows, checked before any figure is computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StageInputError
from pipeline.evaluation.intervals import Floats, Integers
from pipeline.evaluation.predictions import CHAMPION_VARIANT, TUNED
from pipeline.records import read_parquet

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("row_id", "variant", "text", "target", "prediction", "tokens", "ended", "reference_loss", "reference_tokens")
_AGAIN = "Run the stage `score` again."


@dataclass(frozen=True)
class Written:
    """What one variant wrote: its answers, the tokens each took and whether it ended by itself [N].

    `losses` is the mean negative log-likelihood of each reference's tokens in nats [N], None for a variant without a model.
    """

    answers: list[str]
    tokens: Integers
    ended: NDArray[np.bool_]
    losses: Floats | None


@dataclass(frozen=True)
class WrittenRows:
    """Test rows in the order of their row ids, the reference of each with its number of tokens [N], and every variant's answers."""

    row_ids: list[str]
    texts: list[str]
    targets: list[str]
    target_tokens: Integers
    variants: Mapping[str, Written]

    @property
    def tuned(self) -> Written:
        """The answers of the tuned prompt."""
        return self.variants[TUNED]


def read_written(path: Path, variants: Sequence[str] | None = None) -> WrittenRows:
    """Read and check the predictions of one task with free-text targets.

    Raises StageInputError naming row and variant unless every one of `variants` (None: the tuned prompt and whatever else there is) is
    there once per row and no other one, with the same rows, texts and references in each; numbers of tokens are at least 0 and losses
    finite and at least 0 (or all null).
    """
    frame = read_parquet(path, list(COLUMNS))
    found = sorted({str(name) for name in frame["variant"]})
    wanted = variants or sorted({*found, TUNED})
    if found != sorted(wanted):
        raise StageInputError(f"{path} has the variants {found}, expected {sorted(wanted)}. {_AGAIN}")
    by_variant = {name: _rows_of(path, frame, name) for name in wanted}
    tuned = by_variant[TUNED]
    for name, rows in by_variant.items():
        for column in ("row_id", "text", "target", "reference_tokens"):
            if rows[column].tolist() != tuned[column].tolist():
                raise StageInputError(f"{path}: the column {column} of variant {name!r} is not that of {TUNED!r}. {_AGAIN}")
    return WrittenRows(
        row_ids=tuned["row_id"].tolist(),
        texts=tuned["text"].tolist(),
        targets=tuned["target"].tolist(),
        target_tokens=tuned["reference_tokens"].to_numpy(dtype=np.int64),
        variants={name: _written(path, rows, name) for name, rows in by_variant.items()},
    )


def read_champion_written(path: Path, rows: WrittenRows) -> Written | None:
    """What the champion wrote to `rows`, in their order; None when the file has no rows, for want of a champion.

    Raises StageInputError as `read_written` does, also when the rows, their texts or references are not those of `rows`.
    """
    frame = read_parquet(path, list(COLUMNS))
    if frame.empty:
        return None
    found = _rows_of(path, frame, CHAMPION_VARIANT)
    for column, expected in (("row_id", rows.row_ids), ("text", rows.texts), ("target", rows.targets)):
        if found[column].tolist() != expected:
            raise StageInputError(
                f"{path}: the column {column} is not that of the {len(rows.row_ids)} rows that the candidate answered. Run the stage `score_champion` again."
            )
    return _written(path, found, CHAMPION_VARIANT)


def _rows_of(path: Path, frame: "pd.DataFrame", variant: str) -> "pd.DataFrame":
    rows = frame[frame["variant"] == variant].sort_values("row_id", ignore_index=True)
    repeated = rows["row_id"][rows["row_id"].duplicated()]
    if len(repeated):
        raise StageInputError(f"{path}, row {repeated.iloc[0]!r}, variant {variant!r}: the row stands there more than once. {_AGAIN}")
    for column in ("row_id", "text", "target", "prediction", "tokens", "ended", "reference_tokens"):
        empty = int(rows[column].isna().sum())
        if empty:
            raise StageInputError(f"{path}, variant {variant!r}: {empty} row(s) without {column}. {_AGAIN}")
    return rows


def _written(path: Path, rows: "pd.DataFrame", variant: str) -> Written:
    losses = rows["reference_loss"].to_numpy(dtype=np.float64, na_value=np.nan)
    without = np.isnan(losses)
    tokens = rows["tokens"].to_numpy(dtype=np.int64)
    wrong = (tokens < 0) | (rows["reference_tokens"].to_numpy(dtype=np.int64) < 1) | ~(np.isfinite(losses) & (losses >= 0) | without)
    if wrong.any() or without.any() != without.all():
        row = int(np.argmax(wrong if wrong.any() else without))
        raise StageInputError(
            f"{path}, row {rows['row_id'].iloc[row]!r}, variant {variant!r}: {tokens[row]} tokens, a reference of "
            f"{rows['reference_tokens'].iloc[row]} tokens and the loss {losses[row]}; expected numbers from 0, and a loss for all rows or none. {_AGAIN}"
        )
    return Written(rows["prediction"].tolist(), tokens, rows["ended"].to_numpy(dtype=bool), None if without.all() else losses)
