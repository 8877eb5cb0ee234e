"""The scored test rows of all variants, checked before any figure is computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StageInputError
from pipeline.evaluation.intervals import Floats, Integers
from pipeline.records import read_parquet
from pipeline.variants import MAJORITY_CLASS, MAY_BE_SKIPPED, TUNED, VARIANTS

if TYPE_CHECKING:
    import pandas as pd

CHAMPION_VARIANT = "champion"

SUM_TOLERANCE = 1e-3
# Probabilities are stored after rounding; two labels that tie within it are both argmax.
_TIE_TOLERANCE = 1e-6
_AGAIN = "Run the stage `score` again."
_CHAMPION_AGAIN = "Run the stage `score_champion` again."


@dataclass(frozen=True)
class Scored:
    """What one variant said: `predicted` [N] as an index of the labels, `probabilities` [N, K], whose rows sum to 1."""

    predicted: Integers
    probabilities: Floats


@dataclass(frozen=True)
class Predictions:
    """Test rows in the order of their row ids, the actual label of each as an index of `labels` [N], and every variant's answers."""

    labels: tuple[str, ...]
    row_ids: list[str]
    texts: list[str]
    actual: Integers
    variants: Mapping[str, Scored]

    @property
    def tuned(self) -> Scored:
        """The answers of the tuned prompt."""
        return self.variants[TUNED]


def scored_frame(
    rows: "pd.DataFrame", *, variant: str, fields: Sequence[str], labels: Sequence[str], probabilities: NDArray[np.floating[Any]]
) -> "pd.DataFrame":
    """The answers [N, K] of one variant to `rows`, in the long format of docs/stage-files.md."""
    import pandas as pd

    return pd.DataFrame(
        {
            "row_id": rows["row_id"],
            "variant": variant,
            "text": ["\n".join(values) for values in zip(*(rows[name] for name in fields), strict=True)],
            "label": rows["label"],
            "prediction": [labels[index] for index in probabilities.argmax(axis=1)] if len(rows) else [],
            **{f"p.{label}": probabilities[:, index].astype(float) for index, label in enumerate(labels)},
        }
    )


def read_predictions(path: Path, labels: Sequence[str], *, variants: Sequence[str] | None = None) -> Predictions:
    """Read and check the predictions of one task, which has these `variants` (see task_variants), or at least the tuned
    prompt and the majority class.

    Raises StageInputError naming row and variant unless every variant is there once per row and no other one, with the same rows,
    texts and labels in each; labels and predictions are of `labels`; probabilities are finite, within [0, 1], sum to 1 within
    SUM_TOLERANCE, and are highest for the prediction. Sums are then made exactly 1.
    """
    columns = [f"p.{label}" for label in labels]
    frame = read_parquet(path, ["row_id", "variant", "text", "label", "prediction", *columns])
    surplus = [name for name in frame.columns if name.startswith("p.") and name not in columns]
    if surplus:
        raise StageInputError(f"{path} has the columns {surplus}, but the labels of prompt.verbalizers are {list(labels)}. {_AGAIN}")
    known, found = variants or VARIANTS, {str(name) for name in frame["variant"]}
    unknown = sorted(found - set(known))
    if unknown:
        raise StageInputError(f"{path} holds the unknown variants {unknown}; known: {list(known)}. {_AGAIN}")
    optional = MAY_BE_SKIPPED if variants else set(VARIANTS) - {TUNED, MAJORITY_CLASS}
    by_variant = {name: _rows_of(path, frame, name) for name in known if name in found or name not in optional}
    tuned = by_variant[TUNED]
    for name in by_variant:
        _check_same_rows(path, tuned, by_variant[name], name)
    return Predictions(
        labels=tuple(labels),
        row_ids=[str(value) for value in tuned["row_id"]],
        texts=[str(value) for value in tuned["text"]],
        actual=_label_indices(path, tuned, "label", labels, TUNED),
        variants={name: _scored(path, rows, labels, name) for name, rows in by_variant.items()},
    )


def read_champion_predictions(path: Path, predictions: Predictions) -> Scored | None:
    """What the champion answers to the rows of `predictions`, in their order; None when the file has no rows, for want of a champion.

    Raises StageInputError as `read_predictions` does, also when the rows, their texts or labels are not those of `predictions`.
    """
    labels = predictions.labels
    frame = read_parquet(path, ["row_id", "variant", "text", "label", "prediction", *(f"p.{label}" for label in labels)])
    if frame.empty:
        return None
    rows = _rows_of(path, frame, CHAMPION_VARIANT)
    if [str(value) for value in rows["row_id"]] != predictions.row_ids or [str(value) for value in rows["text"]] != predictions.texts:
        raise StageInputError(f"{path} holds other rows than the {len(predictions.row_ids)} that the candidate answered. {_CHAMPION_AGAIN}")
    if not np.array_equal(_label_indices(path, rows, "label", labels, CHAMPION_VARIANT), predictions.actual):
        raise StageInputError(f"{path} has other labels than the rows that the candidate answered. {_CHAMPION_AGAIN}")
    return _scored(path, rows, labels, CHAMPION_VARIANT)


def _rows_of(path: Path, frame: "pd.DataFrame", variant: str) -> "pd.DataFrame":
    rows = frame[frame["variant"] == variant].sort_values("row_id", ignore_index=True)
    if rows.empty:
        found = sorted({str(name) for name in frame["variant"]})
        raise StageInputError(f"{path} has no rows of variant {variant!r}; it has {found}. {_AGAIN}")
    for column in ("row_id", "text"):
        empty = rows[column].isna()
        if empty.any():
            raise StageInputError(f"{path}, variant {variant!r}: {int(empty.sum())} row(s) without {column}. {_AGAIN}")
    repeated = rows["row_id"][rows["row_id"].duplicated()]
    if len(repeated):
        raise StageInputError(f"{path}, row {repeated.iloc[0]!r}, variant {variant!r}: the row stands there more than once. {_AGAIN}")
    return rows


def _check_same_rows(path: Path, tuned: "pd.DataFrame", other: "pd.DataFrame", variant: str) -> None:
    only_one = sorted(set(tuned["row_id"]) ^ set(other["row_id"]))
    if only_one:
        side = TUNED if only_one[0] in set(tuned["row_id"]) else variant
        raise StageInputError(
            f"{path}, row {only_one[0]!r}, variant {side!r}: one of {len(only_one)} rows in only one of {TUNED!r} and {variant!r}. {_AGAIN}"
        )
    for column in ("label", "text"):
        for row_id, expected, found in zip(tuned["row_id"], tuned[column], other[column], strict=True):
            if expected != found:
                raise StageInputError(
                    f"{path}, row {row_id!r}, variant {variant!r}: {column} is {found!r}, in {TUNED!r} it is {expected!r}. {_AGAIN}"
                )


def _label_indices(path: Path, rows: "pd.DataFrame", column: str, labels: Sequence[str], variant: str) -> Integers:
    index = {label: position for position, label in enumerate(labels)}
    for row_id, value in zip(rows["row_id"], rows[column], strict=True):
        if value not in index:
            raise StageInputError(
                f"{path}, row {row_id!r}, variant {variant!r}: {column} is {value!r}, expected one of {list(labels)}. "
                "Correct prompt.verbalizers or run the stage `score` again."
            )
    return np.array([index[value] for value in rows[column]], dtype=np.int64)


def _scored(path: Path, rows: "pd.DataFrame", labels: Sequence[str], variant: str) -> Scored:
    predicted = _label_indices(path, rows, "prediction", labels, variant)
    try:
        probabilities = rows[[f"p.{label}" for label in labels]].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise StageInputError(f"{path}, variant {variant!r}: a probability is not a number ({error}). {_AGAIN}") from error
    sums = probabilities.sum(axis=1)
    chosen = probabilities[np.arange(len(predicted)), predicted]
    problems = (
        (~np.isfinite(probabilities).all(axis=1), "probabilities must be finite"),
        (((probabilities < 0) | (probabilities > 1)).any(axis=1), "probabilities must lie within 0 and 1"),
        (np.abs(sums - 1) > SUM_TOLERANCE, f"probabilities must sum to 1 within {SUM_TOLERANCE}"),
        (chosen < probabilities.max(axis=1) - _TIE_TOLERANCE, "the prediction must be the label with the highest probability"),
    )
    for wrong, rule in problems:
        if wrong.any():
            row = int(np.argmax(wrong))
            listed = {label: float(value) for label, value in zip(labels, probabilities[row], strict=True)}
            raise StageInputError(
                f"{path}, row {rows['row_id'].iloc[row]!r}, variant {variant!r}: {rule}; found {listed} (sum {sums[row]:.6g}) "
                f"and prediction {labels[predicted[row]]!r}. {_AGAIN}"
            )
    return Scored(predicted, probabilities / sums[:, None])
