"""Blocks of a source as batches of the stage file `raw`: named, typed, with row ids, their characters examined."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.data.sources.cells import examine
from pipeline.data.sources.limits import Caps
from pipeline.data.sources.row_ids import RowIds
from pipeline.data.sources.tables import Block, Blocks
from pipeline.errors import SourceError
from pipeline.params import Columns


def wanted_columns(columns: Columns) -> list[str]:
    """The source columns to read: those of the text columns of `raw`, then the label confidence."""
    return [*columns.mapping().values(), *([columns.label_confidence] if columns.label_confidence else [])]


def raw_schema(columns: Columns) -> pa.Schema:
    """Columns of `raw`, as docs/data.md lists them."""
    texts = {name: pa.string() for name in columns.mapping()}
    head = {name: texts.pop(name) for name in (*columns.fields, columns.answer)}
    fixed = {"row_id": pa.string(), "source_row": pa.int64()}
    return pa.schema({**fixed, **head, "label_confidence": pa.float64(), **texts})


def raw_batches(
    blocks: Blocks, columns: Columns, *, where: str, caps: Caps, ids: RowIds, oddities: Counter[str]
) -> Iterator[pa.RecordBatch]:
    """Batches of `raw_schema`; raises SourceError when there is no row, more than the cap, or a cell that cannot be taken."""
    schema = raw_schema(columns)
    source_ids = RowIds()
    for block in blocks:
        first_row = caps.rows + 1
        caps.add_rows(len(block[0]), where)
        for name, cells in zip(wanted_columns(columns), block, strict=True):
            examine(cells, column=name, first_row=first_row, where=where, oddities=oddities)
        named = dict(zip(columns.mapping(), ([_present(cell) for cell in cells] for cells in block), strict=False))
        if columns.id:
            _check_ids(named["source_id"], source_ids, columns.id, first_row, where)
        contents = _contents(named, columns)
        rows = len(block[0])
        made = {
            "row_id": ids.of(contents),
            "source_row": range(first_row, first_row + rows),
            "label_confidence": _confidences(block, columns, first_row, where),
        }
        yield pa.RecordBatch.from_pydict(
            {name: pa.array(made.get(name, named.get(name)), schema.field(name).type) for name in schema.names}
        )
    if not caps.rows:
        raise SourceError(f"{where} has no data row. Fetch it again or correct ingest.source.")


def _contents(named: dict[str, list[str | None]], columns: Columns) -> list[object]:
    """What a row's id is made of: its fields and its answer."""
    answers = named[columns.answer]
    fields = list(zip(*(named[name] for name in columns.fields), strict=True))
    names = list(columns.fields)
    return [{columns.answer: answer, "fields": dict(zip(names, texts, strict=True))} for answer, texts in zip(answers, fields, strict=True)]


def _present(cell: str | None) -> str | None:
    """A blank cell is a missing value; the text "NA" is a text."""
    return cell if cell and not cell.isspace() else None


def _confidences(block: Block, columns: Columns, first_row: int, where: str) -> Sequence[float | None]:
    if columns.label_confidence is None:
        return [None] * len(block[0])
    return [_number(cell, f"{where}, data row {row}, column {columns.label_confidence!r}") for row, cell in enumerate(block[-1], first_row)]


def _number(cell: str | None, where: str) -> float | None:
    if cell is None or not cell.strip():
        return None
    try:
        value = float(cell.replace("_", "?"))  # float() would read 1_000 as a number
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(
            f"{where}: {cell[:40]!r} is not a number. Correct the cell, leave it empty, or set ingest.columns.label_confidence to null."
        )
    return value


def _check_ids(ids: Sequence[str | None], seen: RowIds, column: str, first_row: int, where: str) -> None:
    """The source's own ids tell rows apart, so each row has one, and no two have the same."""
    for row, (value, made) in enumerate(zip(ids, seen.of(ids), strict=True), first_row):
        if value is None or "-" in made:
            found = "no id" if value is None else f"the id {value[:40]!r}, which an earlier row has"
            raise SourceError(
                f"{where}, data row {row}, column {column!r}: {found}. Give every row an id of its own, or leave ingest.columns.id out."
            )
