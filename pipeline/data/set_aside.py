"""Rows that were set aside: by the contract (the file `quarantined`) and by the split (`set_aside`), listed and exported as one.

An export is CSV, Parquet or JSON lines, complete or not there. Rows are read and written in batches.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.errors import StageInputError
from pipeline.records import iterate_parquet, parquet_schema, replacing_file

# A spreadsheet takes a cell that starts with one of these for a formula, and runs it (OWASP, CSV injection). The last four are full width.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def count_rules(paths: Sequence[Path]) -> dict[str, int]:
    """Rule -> rows set aside under it, most first. The first file must be there; the others may not have been written yet."""
    counts: Counter[str] = Counter()
    for path in _present(paths):
        for batch in iterate_parquet(path, ["rule"]):
            counts.update(batch.column("rule").to_pylist())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def rows_set_aside(paths: Sequence[Path], *, rule: str | None = None, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of all files, or those of one rule, at most `limit`; a column that a file lacks is null. There is at least one batch."""
    schema = _schema(paths)
    left = limit
    yield pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
    for path in _present(paths):
        for batch in iterate_parquet(path):
            kept = batch if rule is None else batch.filter(pa.array([name == rule for name in batch.column("rule").to_pylist()]))
            kept = kept if left is None else kept.slice(0, left)
            left = None if left is None else left - kept.num_rows
            yield _as(kept, schema)
            if left == 0:
                return


def export_rows(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    """Write the rows to a file whose suffix is one of EXPORTS, and return how many there are.

    In CSV an apostrophe is put in front of a cell that a spreadsheet would take for a formula, and of one that starts with an
    apostrophe, so that taking one away gives the text back.
    """
    with replacing_file(path) as temporary:
        return EXPORTS[path.suffix](batches, temporary)


def _present(paths: Sequence[Path]) -> list[Path]:
    first, *others = paths
    if not first.is_file():
        raise StageInputError(f"{first} does not exist, so nothing was judged yet. Run the stage validate: `dvc repro validate`.")
    return [first, *(path for path in others if path.is_file())]


def _schema(paths: Sequence[Path]) -> pa.Schema:
    """The columns of all files, `rule` and `reason` last."""
    fields = {field.name: field for path in _present(paths) for field in parquet_schema(path)}
    return pa.schema([*(field for name, field in fields.items() if name not in ("rule", "reason")), fields["rule"], fields["reason"]])


def _as(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    absent = pa.nulls(batch.num_rows)
    columns = [batch.column(field.name) if field.name in batch.schema.names else absent for field in schema]
    return pa.RecordBatch.from_arrays(
        [_without_nan(column.cast(field.type)) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _without_nan(column: pa.Array) -> pa.Array:
    """NaN as null: JSON has no word for it."""
    return pa.array(column.to_numpy(zero_copy_only=False), column.type, from_pandas=True) if types.is_floating(column.type) else column


def _to_csv(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        for number, batch in enumerate(batches):
            if number == 0:
                writer.writerow([_harmless(name) for name in batch.schema.names])
            columns = [_cells(column) for column in batch.columns]
            writer.writerows(zip(*columns, strict=True))
            rows += batch.num_rows
    return rows


def _cells(column: pa.Array) -> list[object]:
    """Numbers as they are: they cannot be formulas."""
    values = column.to_pylist()
    return (
        values
        if types.is_floating(column.type) or types.is_integer(column.type)
        else [None if v is None else _harmless(str(v)) for v in values]
    )


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith((*FORMULA_STARTS, "'")) else cell


def _to_parquet(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    table = pa.Table.from_batches(list(batches))
    pq.write_table(table, path, compression="zstd")
    return table.num_rows


def _to_jsonl(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    rows = 0
    with path.open("w", encoding="utf-8") as stream:
        for batch in batches:
            stream.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in batch.to_pylist())
            rows += batch.num_rows
    return rows


EXPORTS: dict[str, Callable[[Iterable[pa.RecordBatch], Path], int]] = {".csv": _to_csv, ".parquet": _to_parquet, ".jsonl": _to_jsonl}
