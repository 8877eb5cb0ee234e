"""What the contract looks at: numbers per row, measured once, batch by batch.

Texts stay on disk; a row keeps its id, its label and some ninety bytes of numbers. All row rules and nearly all expectations look at
these alone, so a million rows take no more memory than their ids.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyarrow import compute

from pipeline.data.deduplication import digests, text_keys
from pipeline.data.personal_data import KINDS, find_personal_data
from pipeline.data.surface import PATTERNS, has_property, script_shares
from pipeline.data.token_counts import PromptTokens

pc: Any = compute  # its functions are made at import and unknown to type checkers

SCRIPT_SHARE = "script share"
PERSONAL_DATA = "personal data"
PERSONAL_DATA_LEFT = "personal data left"
PROMPT_TOKENS = "prompt tokens"
TEXT_KEY = "text key"
ANSWER_KEY = "answer key"
UNKNOWN = -1  # the answer key of a row without a label, or with one outside the set

# Names of measures have a space, which no field name has.
Measures = pd.DataFrame


@dataclass(frozen=True)
class Plan:
    """How the rows of a task are measured. `answer` is `label` or `target`; `labels` is empty for targets."""

    fields: tuple[str, ...]
    answer: str
    labels: tuple[str, ...]
    tokens: PromptTokens
    scripts: tuple[str, ...]
    phone_region: str | None
    masked: bool

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of text that a prompt shows or answers."""
        return self.fields if self.answer == "label" else (*self.fields, self.answer)


def characters(name: str) -> str:
    """The measure that holds the characters of a text column, NaN where it is null."""
    return f"{name} characters"


def tokens(name: str) -> str:
    """The measure that holds the tokens of a field by itself, 0 where it is null."""
    return f"{name} tokens"


def measure(batches: Iterable[pa.RecordBatch], plan: Plan, schema: pa.Schema) -> Measures:
    """One line of measures per row, in order; `schema` is that of the batches, of which there may be none.

    Columns: `row_id`, `source_row`, `label` or none, `label_confidence`, the groups, `<text> characters`, `<field> tokens`, `prompt tokens`,
    `script share` (the lowest of the fields), the kinds of personal data (how many in all texts), how many are left once masked, the surface properties (bool),
    `text key` (uint64, equal for rows whose normalised fields are equal) and `answer key` (int64, equal for equal answers).
    """
    parts = [_measure_batch(batch, plan) for batch in batches] or [_measure_batch(_no_rows(schema), plan)]
    # A column's parts are given up as soon as they are joined: all at once would take twice the memory.
    return pd.DataFrame({name: _joined([part.pop(name) for part in parts]) for name in list(parts[0])})


def shown(batch: pa.RecordBatch, plan: Plan) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    """The batch as it goes on (personal data masked, if so planned), and what each row held: [rows, KINDS]."""
    counts = np.zeros((batch.num_rows, len(KINDS)), dtype="int64")
    for name in plan.texts:
        found = find_personal_data(batch.column(name), phone_region=plan.phone_region)
        counts += found.counts
        if plan.masked:
            batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), found.masked)
    return batch, counts


def _measure_batch(batch: pa.RecordBatch, plan: Plan) -> dict[str, Any]:
    batch, personal = shown(batch, plan)
    lengths = {characters(name): pc.utf8_length(batch.column(name)).cast("float64") for name in plan.texts}
    kept = ["row_id", "source_row", *(["label"] if plan.answer == "label" else []), "label_confidence"]
    groups = [name for name in batch.schema.names if name.startswith("group.")]
    return {
        **{name: batch.column(name) for name in (*kept, *groups)},
        **{name: column.to_numpy(zero_copy_only=False) for name, column in lengths.items()},
        **plan.tokens.count_rows(batch, plan.fields, plan.answer),
        **({SCRIPT_SHARE: _lowest_share(batch, plan)} if plan.scripts else {}),
        **{kind: personal[:, index] for index, kind in enumerate(KINDS)},
        PERSONAL_DATA: personal.sum(axis=1),
        PERSONAL_DATA_LEFT: _left(batch, personal, plan),
        **{name: np.any([has_property(batch.column(field), name) for field in plan.fields], axis=0) for name in PATTERNS},
        TEXT_KEY: _text_keys(batch, plan.fields),
        ANSWER_KEY: _answer_keys(batch.column(plan.answer), plan.labels),
    }


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in schema], schema=schema)


def _left(batch: pa.RecordBatch, personal: npt.NDArray[np.int64], plan: Plan) -> npt.NDArray[np.int64]:
    """What is still found once it was masked: looked for again where there was anything."""
    left = personal.sum(axis=1)
    changed = left > 0
    if plan.masked and changed.any():
        again = batch.filter(pa.array(changed))
        left[changed] = sum(
            find_personal_data(again.column(name), phone_region=plan.phone_region).counts.sum(axis=1) for name in plan.texts
        )
    return left


def _lowest_share(batch: pa.RecordBatch, plan: Plan) -> npt.NDArray[np.float64]:
    shares = [script_shares(batch.column(name), plan.scripts) for name in plan.fields]
    return np.fmin.reduce(shares)


def _text_keys(batch: pa.RecordBatch, fields: Sequence[str]) -> npt.NDArray[np.uint64]:
    """As `deduplication.text_keys`, for rows with nulls too."""
    filled = [pc.fill_null(batch.column(name), "") for name in fields]
    return text_keys(pa.RecordBatch.from_arrays(filled, names=list(fields)), fields)


def _answer_keys(column: pa.Array, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    if labels:
        codes = pc.index_in(column, value_set=pa.array(labels, type=column.type), skip_nulls=True)
        return pc.fill_null(codes, UNKNOWN).to_numpy(zero_copy_only=False).astype("int64")
    # A bit less, so that UNKNOWN and the other negative numbers stay free.
    keys = (digests(pc.fill_null(column, "").to_pylist(), len(column)) >> np.uint64(1)).astype("int64")
    return np.where(column.is_null().to_numpy(zero_copy_only=False), UNKNOWN, keys)


def _joined(parts: list[Any]) -> Any:
    """The parts of one column: text as pandas' Arrow-backed strings, numbers as one array."""
    if not isinstance(parts[0], pa.Array):
        return np.concatenate(parts)
    whole = pa.chunked_array(parts)
    if pa.types.is_string(whole.type) or pa.types.is_large_string(whole.type):
        return pd.array(whole.cast(pa.large_string()), dtype="str")
    return whole.to_numpy()
