"""JSON lines: one object on each line, strict JSON (RFC 8259), no key twice, every mapped key in every row."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

from pipeline.data.sources.cells import as_text
from pipeline.data.sources.decoding import Undecodable, decoded_lines, placed
from pipeline.data.sources.limits import BLOCK_BYTES, BLOCK_ROWS, MAXIMUM_COLUMNS, MAXIMUM_JSON_DEPTH
from pipeline.data.sources.tables import Blocks, transpose
from pipeline.errors import SourceError

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def read_json_lines(stream: BinaryIO, *, encoding: str, wanted: Sequence[str], where: str, oddities: Counter[str]) -> Blocks:
    """Yield the wanted values of all rows as text; raises SourceError naming the line and the row."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)
    rows: list[list[str | None]] = []
    size = 0
    for row, (number, line) in enumerate(_lines(decoded_lines(stream, encoding, oddities), where), 1):
        place = f"{where}, line {number} (data row {row})"
        rows.append(_cells(_parsed(line, decoder, place), wanted, place))
        size += len(line)
        if len(rows) == BLOCK_ROWS or size > BLOCK_BYTES:
            yield transpose(rows)
            rows, size = [], 0
    if rows:
        yield transpose(rows)


def _lines(lines: Iterator[str], where: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line but blank ones."""
    row = 1
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")
                row += 1
    except Undecodable as error:
        raise placed(error, where, row) from None


def _parsed(line: str, decoder: json.JSONDecoder, place: str) -> dict[str, Any]:
    _check_depth(line, place)
    try:
        record = decoder.decode(line)
    except json.JSONDecodeError as error:
        advice = (
            "one JSON object on each line; a JSON array is no JSON lines file"
            if line.lstrip()[:1] == "["
            else "one JSON object on each line"
        )
        raise SourceError(f"{place}, column {error.colno}: {error.msg}. Expected {advice}. Correct the line.") from None
    except ValueError as error:
        raise SourceError(f"{place}: {error}. Correct the line.") from None
    if not isinstance(record, dict):
        raise SourceError(
            f'{place}: the line holds a JSON {type(record).__name__}, expected an object such as {{"text": ...}}. Correct the file.'
        )
    return record


def _cells(record: dict[str, Any], wanted: Sequence[str], place: str) -> list[str | None]:
    for name in wanted:
        if name not in record:
            listed = ", ".join(repr(key[:60]) for key in list(record)[:20])
            raise SourceError(
                f"{place}: no column (key) {name!r}; it has {listed or 'none'}. Correct ingest.columns, or write null where there is no value."
            )
    return [as_text(record[name], f"{place}, key {name!r}") for name in wanted]


def _check_depth(line: str, place: str) -> None:
    """The parser goes down by recursion, so the depth is known before it starts."""
    if line.count("[") + line.count("{") <= MAXIMUM_JSON_DEPTH:
        return
    depth = 0
    for character in re.findall(r"[\[\]{}]", _STRING.sub("", line)):
        depth += 1 if character in "[{" else -1
        if depth > MAXIMUM_JSON_DEPTH:
            raise SourceError(
                f"{place}: values nested more than {MAXIMUM_JSON_DEPTH} deep. Write the mapped values at the top of the object."
            )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated[:60]!r} stands twice in one object, and JSON does not say which value holds")
    if len(pairs) > MAXIMUM_COLUMNS:
        raise ValueError(f"{len(pairs):,} keys in one object, the limit is {MAXIMUM_COLUMNS:,}")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value; write null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large for a float")
    return value
