"""Labelled rows from files, data sets and databases, read strictly: what cannot be read as described is an error, never a guess.

Rows pass through in blocks, so that a source of any length needs the memory of a few thousand rows. docs/data.md describes the sources.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipeline.data.sources.columnar import read_arrow_file, read_parquet_file
from pipeline.data.sources.delimited import read_delimited
from pipeline.data.sources.file_bytes import FileBytes, open_file, seekable
from pipeline.data.sources.hub import open_hub_dataset
from pipeline.data.sources.json_lines import read_json_lines
from pipeline.data.sources.limits import Caps
from pipeline.data.sources.places import describe, locate
from pipeline.data.sources.raw_rows import raw_batches, raw_schema, wanted_columns
from pipeline.data.sources.row_ids import RowIds, row_ids
from pipeline.data.sources.sampling import draw_sample
from pipeline.data.sources.sql import open_query
from pipeline.data.sources.tables import Blocks
from pipeline.params import Columns, FileSource, HubDatasetSource, IngestParams, PackageFileSource, SqlSource

__all__ = ["RowStream", "SourceFacts", "SourceRows", "draw_sample", "locate", "open_source", "read_source", "row_ids"]

Source = PackageFileSource | FileSource | HubDatasetSource | SqlSource
MAXIMUM_ROWS = IngestParams.model_fields["maximum_rows"].default
MAXIMUM_BYTES = IngestParams.model_fields["maximum_bytes"].default


@dataclass
class SourceFacts:
    """What is known of a source once its last row was read.

    `sha256` is that of a file's stored bytes, and of the rows as read where there are no bytes (`sha256_of`: "bytes" or "rows"); `size` counts the
    same bytes. `fingerprint` is a hub data set's own, or the sha256 of a query. `oddities`: name -> cells that hold such characters.
    """

    description: str
    format: str
    sha256: str = ""
    sha256_of: str = "bytes"
    size: int = 0
    fingerprint: str | None = None
    rows: int = 0
    oddities: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RowStream:
    """The rows of an open source: `batches` of `schema`, to be read once; `facts` holds when the last one was."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    facts: SourceFacts


@dataclass(frozen=True)
class SourceRows:
    """All rows of a source. `rows` has the columns of the stage file `raw`."""

    rows: pd.DataFrame
    facts: SourceFacts


def read_source(source: Source, columns: Columns, *, root: Path) -> SourceRows:
    """Read every row of `source` into memory, with the default caps; what is raised is as in `open_source`."""
    with open_source(source, columns, root=root) as stream:
        table = pa.Table.from_batches(stream.batches, stream.schema)
        return SourceRows(table.to_pandas(), stream.facts)


@contextmanager
def open_source(
    source: Source, columns: Columns, *, root: Path, maximum_rows: int = MAXIMUM_ROWS, maximum_bytes: int = MAXIMUM_BYTES
) -> Generator[RowStream]:
    """Open `source`; a relative path starts at `root`, the folder of params.yaml.

    Raises SourceError, then or while the batches are read, when the source is not there, is not what the params say, lacks a column,
    holds a value that cannot be taken, or goes beyond a cap.
    """
    caps = Caps(maximum_rows, maximum_bytes)
    oddities: Counter[str] = Counter()
    wanted = wanted_columns(columns)
    with _opened(source, wanted, root, caps, oddities) as (blocks, where, facts):
        yield RowStream(raw_schema(columns), _finished(blocks, columns, where, caps, oddities, facts), facts)


def _finished(
    blocks: Blocks, columns: Columns, where: str, caps: Caps, oddities: Counter[str], facts: SourceFacts
) -> Iterator[pa.RecordBatch]:
    """The batches, and behind the last one the facts that only the end shows."""
    ids = RowIds()
    yield from raw_batches(blocks, columns, where=where, caps=caps, ids=ids, oddities=oddities)
    facts.rows = caps.rows
    facts.oddities = {name: count for name, count in sorted(oddities.items()) if count}
    if facts.sha256_of == "rows":
        facts.sha256, facts.size = ids.content_sha256(), caps.bytes


@contextmanager
def _opened(
    source: Source, wanted: list[str], root: Path, caps: Caps, oddities: Counter[str]
) -> Generator[tuple[Blocks, str, SourceFacts]]:
    if isinstance(source, HubDatasetSource):
        blocks, where, fingerprint = open_hub_dataset(source, wanted, caps, root=root)
        yield blocks, where, SourceFacts(where, source.kind, sha256_of="rows", fingerprint=fingerprint)
    elif isinstance(source, SqlSource):
        with open_query(source, wanted, caps) as (blocks, where, fingerprint):
            yield blocks, where, SourceFacts(where, source.kind, sha256_of="rows", fingerprint=fingerprint)
    else:
        with open_file(source, caps, root=root) as file:
            facts = SourceFacts(describe(source), source.stored_format)
            yield _file_blocks(file, source, wanted, caps, oddities, facts), file.where, facts


def _file_blocks(
    file: FileBytes, source: PackageFileSource | FileSource, wanted: list[str], caps: Caps, oddities: Counter[str], facts: SourceFacts
) -> Blocks:
    stored = source.stored_format
    if stored in ("parquet", "arrow"):
        read = read_parquet_file if stored == "parquet" else read_arrow_file
        with seekable(file) as stream:
            yield from read(stream, wanted=wanted, where=file.where, caps=caps)
    elif stored == "jsonl":
        yield from read_json_lines(file.stream, encoding=source.encoding, wanted=wanted, where=file.where, oddities=oddities)
    else:
        yield from read_delimited(
            file.stream, encoding=source.encoding, delimiter=source.cell_delimiter, wanted=wanted, where=file.where, oddities=oddities
        )
    file.finish()
    facts.sha256, facts.size = file.sha256, file.size
