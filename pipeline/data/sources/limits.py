"""How much of anything a source may hold. What goes beyond is an error that names the limit: it is broken or hostile far more often than meant."""

from dataclasses import dataclass

from pipeline.errors import SourceError

MAXIMUM_COLUMNS = 1_000  # columns of a table, keys of a JSON object
MAXIMUM_CELL_CHARACTERS = 131_072  # also the csv module's own limit; about 30,000 tokens
MAXIMUM_LINE_CHARACTERS = 8 * 2**20  # one line of text, before it is cut into cells
MAXIMUM_JSON_DEPTH = 32

BLOCK_ROWS = 8_192  # rows read at a time
BLOCK_BYTES = 8 * 2**20  # and about how much text they may hold together


@dataclass
class Caps:
    """What params allow of a source as a whole, and how much of it has been read."""

    maximum_rows: int
    maximum_bytes: int
    rows: int = 0
    bytes: int = 0

    def add_rows(self, count: int, where: str) -> None:
        """Count rows; raises SourceError beyond `maximum_rows`."""
        self.rows += count
        if self.rows > self.maximum_rows:
            raise SourceError(
                f"{where} has more than {self.maximum_rows:,} rows (ingest.maximum_rows). Raise the cap, or make the source smaller:"
                " its first rows alone would be no fair sample."
            )

    def add_bytes(self, count: int, where: str) -> None:
        """Count bytes, unpacked; raises SourceError beyond `maximum_bytes`."""
        self.bytes += count
        if self.bytes > self.maximum_bytes:
            raise SourceError(
                f"{where} holds more than {self.maximum_bytes:,} bytes when unpacked (ingest.maximum_bytes). Raise the cap if the source is meant"
                " to be that large."
            )
