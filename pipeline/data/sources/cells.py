"""One cell: its text form, and the characters in it that are refused or counted."""

import datetime
import decimal
import math
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.data.sources.limits import MAXIMUM_CELL_CHARACTERS
from pipeline.errors import SourceError

# Kept, because real texts hold them, and counted (in cells), because too many of them are a sign. docs/data.md has the table.
ODDITIES = {
    "byte_order_marks": "\ufeff",
    "replacement_characters": "\ufffd",
    "bidi_controls": "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069",
    "c0_controls": "\x01-\x08\x0b\x0c\x0e-\x1f\x7f",
    "c1_controls": "\x80-\x9f",
    "tag_characters": "\U000e0000-\U000e007f",
    "noncharacters": "\ufdd0-\ufdef" + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)),
}
_ODD = {name: re.compile(f"[{characters}]") for name, characters in ODDITIES.items()}
_ANY_ODD = re.compile(f"[{''.join(ODDITIES.values())}]")
_PLAIN = bytes([*b"\t\n\r", *range(0x20, 0x7F)])
_REFUSED = re.compile("[\0\ud800-\udfff]")
_TEXT_OF = (int, decimal.Decimal, datetime.date, datetime.time, uuid.UUID)  # a datetime is a date, a bool an int


def as_text(value: Any, where: str) -> str | None:
    """The text of a value: text as it is, True and False, numbers as Python writes them, dates in ISO 8601; None for none.

    Raises SourceError for numbers that are none (NaN, infinity) and for what is no single value, such as lists and bytes.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, _TEXT_OF) and not (isinstance(value, decimal.Decimal) and not value.is_finite()):
        return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
    raise SourceError(
        f"{where}: {str(value)[:40]!r} ({type(value).__name__}) is no text, number, truth value or date. Correct it, leave it empty (null), or"
        " map another column in ingest.columns."
    )


def examine(cells: Sequence[str | None], *, column: str, first_row: int, where: str, oddities: Counter[str]) -> None:
    """Count the oddities of a column's cells; raises SourceError for a cell that cannot be stored as text or is beyond the limit."""
    if max((len(cell) for cell in cells if cell), default=0) > MAXIMUM_CELL_CHARACTERS:
        row, cell = next((row, cell) for row, cell in enumerate(cells, first_row) if cell and len(cell) > MAXIMUM_CELL_CHARACTERS)
        raise SourceError(
            f"{where}, data row {row}, column {column!r}: {len(cell):,} characters, the limit is {MAXIMUM_CELL_CHARACTERS:,}. Shorten the text."
        )
    # Most characters are plain ASCII, and dropping those as bytes is ten times faster than a search among them.
    remarkable = (
        "".join(cell for cell in cells if cell).encode("utf-8", "surrogatepass").translate(None, _PLAIN).decode("utf-8", "surrogatepass")
    )
    if not remarkable:
        return
    if _REFUSED.search(remarkable):
        row, cell = next((row, cell) for row, cell in enumerate(cells, first_row) if cell and _REFUSED.search(cell))
        kind = "a NUL character" if "\0" in cell else "half of a surrogate pair, which is no character"
        raise SourceError(f"{where}, data row {row}, column {column!r}: {kind}. Correct the text where it was made.")
    if _ANY_ODD.search(remarkable):
        for name, pattern in _ODD.items():
            oddities[name] += sum(1 for cell in cells if cell and pattern.search(cell))
