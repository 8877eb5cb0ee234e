"""CSV and TSV (RFC 4180, with any delimiter): a header line, then rows of as many cells."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from pipeline.data.sources.decoding import Undecodable, decoded_lines, placed
from pipeline.data.sources.limits import BLOCK_BYTES, BLOCK_ROWS, MAXIMUM_COLUMNS
from pipeline.data.sources.tables import Blocks, positions, transpose
from pipeline.errors import SourceError


def read_delimited(stream: BinaryIO, *, encoding: str, delimiter: str, wanted: Sequence[str], where: str, oddities: Counter[str]) -> Blocks:
    """Yield the wanted cells of all rows; raises SourceError naming the line where the file is no table of one width."""
    records = _records(decoded_lines(stream, encoding, oddities), delimiter, where)
    first = next(records, None)
    if first is None:
        raise SourceError(f"{where} holds only blank lines, expected a header line and data rows. Fetch the file again.")
    header = _checked_header(first[1], where)
    places = positions(header, wanted, where=where, hint=f" or ingest.source.delimiter ({delimiter!r})")
    rows: list[list[str | None]] = []
    size = 0
    for number, (line, record) in enumerate(records, 1):
        if len(record) != len(header):
            raise SourceError(
                f"{where}, data row {number} (ends on line {line}): {len(record)} cells, the header has {len(header)}."
                f" Quote cells that hold the delimiter {delimiter!r}, or correct ingest.source.delimiter."
            )
        row: list[str | None] = [record[place] for place in places]
        rows.append(row)
        size += sum(map(len, record))
        if len(rows) == BLOCK_ROWS or size > BLOCK_BYTES:
            yield transpose(rows)
            rows, size = [], 0
    if rows:
        yield transpose(rows)


def _records(lines: Iterator[str], delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """(last line, cells) of every record but blank lines; quoted cells may span lines."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    row = 0
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
                row += 1
    except Undecodable as error:
        raise placed(error, where, row) from None
    except csv.Error as error:
        at = f"data row {row}" if row else "the header"
        raise SourceError(
            f"{where}, line {reader.line_num} ({at}): {error}. Correct the quoting there, or ingest.source.delimiter ({delimiter!r})."
        ) from None


def _checked_header(header: list[str], where: str) -> list[str]:
    if len(header) > MAXIMUM_COLUMNS:
        raise SourceError(
            f"{where}: the header has {len(header):,} cells, the limit is {MAXIMUM_COLUMNS:,} columns. Correct ingest.source.delimiter, or leave"
            " columns out."
        )
    return header
