"""Parquet and Arrow files: the mapped columns of the stored table, their values as text."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.sources.cells import as_text
from pipeline.data.sources.limits import BLOCK_BYTES, BLOCK_ROWS, MAXIMUM_CELL_CHARACTERS, MAXIMUM_COLUMNS, Caps
from pipeline.data.sources.tables import Block, Blocks, positions
from pipeline.data.sources.wording import in_one_line
from pipeline.errors import SourceError

_BUFFER_BYTES = 2**20  # read at a time; without it all of a column of a row group
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet_file(stream: BinaryIO, *, wanted: Sequence[str], where: str, caps: Caps) -> Blocks:
    """Yield the wanted columns of all rows; raises SourceError where the file is broken or lacks a column."""
    with readable(where, "Parquet file"):
        metadata = pq.read_metadata(stream)
        _check_names(metadata.schema.to_arrow_schema(), wanted, where)
        _check_unpacked_size(metadata, caps, where)
        yield from batch_blocks(stored_batches(stream, list(dict.fromkeys(wanted))), wanted, where, caps)


def stored_batches(stream: BinaryIO, names: list[str]) -> Iterator[pa.RecordBatch]:
    """These columns of all rows of a Parquet file, as they are stored; pyarrow's errors are left to the reader."""
    schema = pq.read_schema(stream)
    texts = [name for name in names if is_text(schema.field(name).type)]
    stream.seek(0)
    options: dict[str, Any] = {"page_checksum_verification": True, "buffer_size": _BUFFER_BYTES}
    with pq.ParquetFile(stream, **options) as file, pq.ParquetFile(stream, read_dictionary=texts, **options) as repeated:
        yield from _parquet_batches(file, repeated, names)


def _parquet_batches(file: Any, repeated: Any, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of so many rows that their texts fit into a block, even when every row repeats the longest text that is stored once.

    So a small file that stands for a huge table is spread out a few rows at a time.
    """
    for group in range(file.num_row_groups):
        first = next(repeated.iter_batches(1, row_groups=[group], columns=names), None)  # brings the group's whole dictionary along
        columns = first.columns if first is not None else []
        longest = max((_longest(column.dictionary) for column in columns if isinstance(column, pa.DictionaryArray)), default=0)
        yield from file.iter_batches(_rows_at_once(longest), row_groups=[group], columns=names)


def read_arrow_file(stream: BinaryIO, *, wanted: Sequence[str], where: str, caps: Caps) -> Blocks:
    """Yield the wanted columns of all rows of an Arrow IPC file or stream; raises SourceError where it is broken or lacks a column."""
    with readable(where, "Arrow file"):
        is_file = stream.read(6) == b"ARROW1"
        if not is_file:
            _check_end_of_stream(stream, where)
        stream.seek(0)
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(stream) as reader:
            _check_names(reader.schema, wanted, where)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
            yield from batch_blocks(batches, wanted, where, caps)


def batch_blocks(batches: Iterable[pa.RecordBatch], wanted: Sequence[str], where: str, caps: Caps) -> Blocks:
    """Arrow batches as blocks of texts no larger than a block should be."""
    row = 1
    for batch in batches:
        columns = [batch.column(name) for name in wanted]
        for column in columns:
            column.validate(full=True)  # offsets and UTF-8, which the formats leave unchecked
        for start, length in _cuts(columns, batch.num_rows, row, wanted, where):
            yield as_block([column.slice(start, length) for column in columns], wanted, row + start, where, caps)
        row += batch.num_rows


def as_block(columns: Sequence[Any], wanted: Sequence[str], first_row: int, where: str, caps: Caps) -> Block:
    """Arrow arrays as lists of texts, their bytes counted; raises SourceError for a value that has no text form."""
    block: Block = []
    for name, column in zip(wanted, columns, strict=True):
        values = column.to_pylist()
        if not is_text(column.type):
            values = [as_text(value, f"{where}, data row {row}, column {name!r}") for row, value in enumerate(values, first_row)]
        caps.add_bytes(sum(len(value) for value in values if value), where)
        block.append(values)
    return block


def _cuts(columns: Sequence[Any], rows: int, first_row: int, wanted: Sequence[str], where: str) -> Iterator[tuple[int, int]]:
    """(start, length) of slices whose texts fit into a block even when every row has the longest one."""
    longest = 0
    for name, column in zip(wanted, columns, strict=True):
        if is_text(column.type) and rows:
            widest = _longest(column.dictionary if isinstance(column, pa.DictionaryArray) else column)
            if widest > 4 * MAXIMUM_CELL_CHARACTERS:  # UTF-8 takes up to 4 bytes for a character
                raise SourceError(
                    f"{where}, data rows {first_row} to {first_row + rows - 1}, column {name!r}: a text of {widest:,} bytes, the limit is"
                    f" {MAXIMUM_CELL_CHARACTERS:,} characters. Shorten the text."
                )
            longest = max(longest, widest)
    step = _rows_at_once(longest)
    return ((start, min(step, rows - start)) for start in range(0, rows, step))


def _longest(texts: Any) -> int:
    """Bytes of the longest text, 0 where there is none."""
    return pc.call_function("max", [pc.call_function("binary_length", [texts])]).as_py() or 0 if is_text(texts.type) else 0


def _rows_at_once(longest: int) -> int:
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, longest)))


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text, each stored by itself or once for all of its rows."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value)


def _check_names(schema: pa.Schema, wanted: Sequence[str], where: str) -> None:
    if len(schema.names) > MAXIMUM_COLUMNS:
        raise SourceError(f"{where}: {len(schema.names):,} columns, the limit is {MAXIMUM_COLUMNS:,}. Leave columns out.")
    positions(schema.names, wanted, where=where)


def _check_unpacked_size(metadata: Any, caps: Caps, where: str) -> None:
    """What the file says of its own size, before anything is unpacked."""
    rows = metadata.num_rows
    if rows > caps.maximum_rows:
        caps.add_rows(rows, where)
    largest = max((metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)), default=0)
    if largest > caps.maximum_bytes:
        caps.add_bytes(largest, where)


def _check_end_of_stream(stream: BinaryIO, where: str) -> None:
    """A stream that was cut between two batches reads as a shorter one; only its end mark tells."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - len(_END_OF_STREAM)))
    if stream.read() != _END_OF_STREAM:
        raise SourceError(f"{where} is an Arrow stream without its end mark, so it may be cut short. Fetch or write the file again.")


@contextmanager
def readable(where: str, kind: str) -> Generator[None]:
    """Name the source in what pyarrow raises."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, NotImplementedError) as error:
        raise SourceError(f"{where} is not a readable {kind} ({in_one_line(error)}). Fetch or write the file again.") from None
