"""Rows of a user's CSV or Parquet file, read and written in batches, so that memory does not grow with the file.

A name that ends in `.parquet` is Parquet, any other CSV (UTF-8, one header line). On the way from Parquet to Parquet the columns keep
their types; in a CSV file everything is text.
"""

import csv
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.sources.cells import as_text
from pipeline.data.sources.columnar import is_text, readable, stored_batches
from pipeline.data.sources.decoding import Undecodable, decoded_lines
from pipeline.errors import SourceError
from pipeline.records import replacing_file

ROWS_AT_ONCE = 1_024  # asked together: enough to sort by length, few enough to hold
ROW_GROUP_ROWS = 32_768  # of a Parquet file that is written
ROW_GROUP_BYTES = 32 * 2**20  # and of these about so many, if they take more

Write = Callable[[pa.RecordBatch, pa.RecordBatch], None]


@dataclass(frozen=True)
class RowFile:
    """A file of rows that can be read from its start as often as needed, in any process of this machine.

    `path` is what the user calls it, `stored` where its bytes lie, `schema` its columns (of a CSV file all text) and `state` the size
    and time of the bytes when it was opened.
    """

    path: Path
    stored: Path
    schema: pa.Schema
    state: tuple[int, int]

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return list(self.schema.names)

    def batches(self, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[pa.RecordBatch]:
        """Yield all rows, `rows_at_once` in each batch but the last; raises SourceError for what is no row, and when the file has changed."""
        with _opened(self.stored, self.path) as stream:
            rows = _parquet_batches(stream, self.path, self.columns) if is_parquet(self.path) else _csv_batches(stream, self.path)
            yield from _gathered(rows, rows_at_once)
            if _state(stream) != self.state:
                raise SourceError(f"{self.path} was changed while it was read. Run it again when nothing writes to the file.")


@contextmanager
def open_rows(path: Path) -> Generator[RowFile]:
    """Open a file of rows; what can be read only once, such as a pipe, is copied to a temporary file first.

    Raises SourceError when it cannot be read, has no header, or names a column twice.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryDirectory() as folder, _opened(path, path) as source, (Path(folder) / "rows").open("wb") as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            yield _row_file(path, Path(copy.name))
    else:
        yield _row_file(path, path.absolute())


def is_parquet(path: Path) -> bool:
    """Whether a file of this name is read and written as Parquet."""
    return path.suffix.lower() == ".parquet"


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and all rows of a UTF-8 CSV file with one cell per column; raises SourceError naming the row, also when there is none."""
    with _opened(path, path) as stream:
        header, records = _records(stream, path)
        rows = [dict(zip(header, record, strict=True)) for record in records]
    if not rows:
        raise _without_rows(path)
    return header, rows


def texts_of(rows: RowFile, batch: pa.RecordBatch, fields: Sequence[str], first_row: int) -> list[dict[str, str]]:
    """The fields of each row as text, as ingest would read them; raises SourceError naming file, row and column where one is empty."""
    cells = {field: _texts(rows.path, batch, field, first_row) for field in fields}
    for field, column in cells.items():
        for number, text in enumerate(column, first_row):
            if not (text or "").strip():
                raise SourceError(f"{rows.path}, row {number}, column {field!r} is empty. Fill or remove that row.")
    return [dict(zip(fields, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def check_texts(rows: RowFile, fields: Sequence[str], *, for_csv: bool) -> int:
    """The number of rows, once all of them were read and have text in every field; raises SourceError for the first that has not.

    With `for_csv` the other columns need a text form too.
    """
    count = 0
    for batch in rows.batches():
        texts_of(rows, batch, fields, count + 1)
        for name in rows.columns if for_csv else ():
            _carried(rows.path, batch, name, count + 1)
        count += batch.num_rows
    if not count:
        raise _without_rows(rows.path)
    return count


@contextmanager
def write_rows(path: Path, columns: pa.Schema, answers: pa.Schema) -> Generator[Write]:
    """Yield a function that appends rows, and their answers as columns behind them; when the block ends well, the file gets its name.

    Raises SourceError when the file cannot be written.
    """
    writer = _parquet_writer if is_parquet(path) else _csv_writer
    try:
        with replacing_file(path) as temporary, writer(temporary, path, columns, answers) as write:
            yield write
    except OSError as error:
        raise SourceError(f"{path} cannot be written ({error.strerror or error}). Name another file or free some space.") from None


@contextmanager
def _csv_writer(temporary: Path, path: Path, columns: pa.Schema, answers: pa.Schema) -> Generator[Write]:
    with temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*columns.names, *answers.names])
        written = 0

        def write(batch: pa.RecordBatch, found: pa.RecordBatch) -> None:
            nonlocal written
            kept = [_carried(path, batch, name, written + 1) for name in columns.names]
            added = [[_rounded(value) for value in found.column(name).to_pylist()] for name in answers.names]
            writer.writerows(zip(*kept, *added, strict=True))
            written += batch.num_rows

        yield write


@contextmanager
def _parquet_writer(temporary: Path, _path: Path, columns: pa.Schema, answers: pa.Schema) -> Generator[Write]:
    schema = pa.schema([*columns, *answers], metadata=columns.metadata)
    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def flush() -> None:
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))
                held.clear()

        def write(batch: pa.RecordBatch, found: pa.RecordBatch) -> None:
            held.append(pa.RecordBatch.from_arrays([*batch.columns, *found.columns], schema=schema))
            if sum(one.num_rows for one in held) >= ROW_GROUP_ROWS or sum(one.nbytes for one in held) >= ROW_GROUP_BYTES:
                flush()

        yield write
        flush()


def _rounded(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6f}"


def _row_file(path: Path, stored: Path) -> RowFile:
    with _opened(stored, path) as stream:
        state = _state(stream)
        if is_parquet(path):
            with readable(str(path), "Parquet file"):
                schema = pq.read_schema(stream)
        else:
            schema = pa.schema([(name, pa.string()) for name in _records(stream, path)[0]])
    _check_names(path, schema.names)
    return RowFile(path, stored, schema, state)


@contextmanager
def _opened(stored: Path, path: Path) -> Generator[BinaryIO]:
    try:
        stream = stored.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}). Name a CSV or Parquet file you may read.") from None
    with stream:
        yield stream


def _state(stream: BinaryIO) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def _without_rows(path: Path) -> SourceError:
    return SourceError(f"{path} holds no rows, expected a header and at least one row. Name a file with rows.")


def _texts(path: Path, batch: pa.RecordBatch, name: str, first_row: int) -> list[str | None]:
    """A column's values as text, None where there is none; raises SourceError for a value that is no text, number, truth value or date."""
    values: list[Any] = batch.column(name).to_pylist()
    return (
        values if is_text(batch.schema.field(name).type) else [_text(value, path, row, name) for row, value in enumerate(values, first_row)]
    )


def _carried(path: Path, batch: pa.RecordBatch, name: str, first_row: int) -> list[str]:
    """A column's values for a CSV file: an empty cell for none, and also what is no finite number, as `inf` and `nan`."""
    values = batch.column(name).to_pylist()
    if is_text(batch.schema.field(name).type):
        return [value or "" for value in values]
    texts = (repr(value) if isinstance(value, float) else _text(value, path, row, name) for row, value in enumerate(values, first_row))
    return [text or "" for text in texts]


def _text(value: Any, path: Path, row: int, name: str) -> str | None:
    try:
        return as_text(value, "")
    except SourceError:
        raise SourceError(
            f"{path}, row {row}, column {name!r} holds {str(value)[:40]!r} ({type(value).__name__}), expected text, a number, a truth value or"
            " a date. Correct or leave out that column."
        ) from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{path} has the columns {twice} more than once. Rename them.")


def _records(stream: BinaryIO, path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The header of a CSV file, and its rows, each as long as the header; blank lines are none."""
    records = _cells(stream, path)
    header = next(records, None)
    if header is None:
        raise _without_rows(path)
    _check_names(path, header)
    return header, _as_long_as(header, records, path)


def _cells(stream: BinaryIO, path: Path) -> Iterator[list[str]]:
    reader = csv.reader(decoded_lines(stream, "utf-8", Counter()), strict=True)
    try:
        yield from (record for record in reader if record)
    except Undecodable as error:
        raise SourceError(f"{path}, line {error.line}: {error.problem}. Save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise SourceError(f"{path} is not a CSV file (line {reader.line_num}: {error}). Correct its quotes.") from None


def _as_long_as(header: Sequence[str], records: Iterable[list[str]], path: Path) -> Iterator[list[str]]:
    for number, record in enumerate(records, 1):
        if len(record) != len(header):
            raise SourceError(f"{path}, row {number} has {len(record)} cells, the header has {len(header)}. Correct that row.")
        yield record


def _csv_batches(stream: BinaryIO, path: Path) -> Iterator[pa.RecordBatch]:
    header, records = _records(stream, path)
    schema = pa.schema([(name, pa.string()) for name in header])
    while rows := list(islice(records, ROWS_AT_ONCE)):
        yield pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=schema)


def _parquet_batches(stream: BinaryIO, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    with readable(str(path), "Parquet file"):
        for batch in stored_batches(stream, names):
            batch.validate(full=True)  # offsets and UTF-8, which the format leaves unchecked
            yield batch


def _gathered(batches: Iterable[pa.RecordBatch], rows_at_once: int) -> Iterator[pa.RecordBatch]:
    """The same rows, `rows_at_once` in each batch but the last, wherever the file's own pieces end."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, rows_at_once - count)
            held.append(piece)
            start, count = start + piece.num_rows, count + piece.num_rows
            if count == rows_at_once:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(pieces: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
