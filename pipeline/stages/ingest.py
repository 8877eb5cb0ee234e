"""Stage ingest: a source of rows becomes one Parquet file with stable row ids."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.sources import RowStream, open_source
from pipeline.data.sources.sampling import drawn_rows, row_ranks
from pipeline.layout import Paths, find_root
from pipeline.params import IngestParams, TaskParams
from pipeline.records import iterate_parquet, parquet_writer, sha256_file, write_json

LISTED_LABELS = 50  # a wrongly mapped label column can have as many values as rows
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 65_536, 64 * 2**20


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:  # noqa: ARG001 - it reads the source, no stage's file
    """Read the source, draw the sample and write `raw`; returns the ingest report. Raises SourceError."""
    ingest = params.ingest
    root = find_root(outputs.raw.parent)
    with open_source(
        ingest.source, ingest.columns, root=root, maximum_rows=ingest.maximum_rows, maximum_bytes=ingest.maximum_bytes
    ) as stream:
        labels = _write_sample(stream, ingest, outputs.raw, outputs.scratch)
    facts = stream.facts
    report = {
        "source": facts.description,
        "format": facts.format,
        "source_sha256": facts.sha256,
        "source_sha256_of": facts.sha256_of,
        "source_fingerprint": facts.fingerprint,
        "source_bytes": facts.size,
        "source_rows": facts.rows,
        "oddities": facts.oddities,
        "rows": labels.total(),
        "labels": _label_counts(labels),
        "raw_sha256": sha256_file(outputs.raw),
    }
    write_json(outputs.ingest_report, report)
    return report


def _write_sample(stream: RowStream, ingest: IngestParams, path: Path, scratch: Path) -> Counter[str | None]:
    """Write the drawn rows; returns the number of rows by label (free text has none, so all of its rows count under null)."""
    if ingest.sample_rows is None:
        return _write(path, stream.schema, stream.batches, ingest.columns.answer)
    # Which rows are drawn is known at the end of the source, so all of them wait on disk.
    waiting = scratch / "rows.parquet"
    try:
        draw = _Draw(ingest.seed)
        _write(waiting, stream.schema, draw.watch(stream.batches), ingest.columns.answer)
        mask = drawn_rows(draw.ranks(), ingest.sample_rows, draw.strata() if ingest.stratify_sample else None)
        return _write(path, stream.schema, _masked(waiting, mask), ingest.columns.answer)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Draw:
    """What a draw needs of every row: 8 bytes of rank, 4 of stratum."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._ranks: list[np.ndarray] = []
        self._strata: list[np.ndarray] = []
        self._numbers: dict[str | None, int] = {}

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Hand the batches on and note their rows."""
        for batch in batches:
            self._ranks.append(row_ranks(batch.column("row_id").to_pylist(), self._seed))
            if "label" in batch.schema.names:
                numbers = [self._numbers.setdefault(label, len(self._numbers)) for label in batch.column("label").to_pylist()]
                self._strata.append(np.array(numbers, dtype=np.int32))
            yield batch

    def ranks(self) -> np.ndarray:
        """Ranks of all rows [rows]."""
        return np.concatenate(self._ranks)

    def strata(self) -> np.ndarray:
        """A number for each row's label [rows]; rows without a label are a stratum too."""
        return np.concatenate(self._strata)


def _masked(path: Path, mask: np.ndarray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in iterate_parquet(path):
        yield batch.filter(pa.array(mask[start : start + batch.num_rows]))
        start += batch.num_rows


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], answer: str) -> Counter[str | None]:
    """Write batches in large row groups; returns the number of rows by label."""
    labels: Counter[str | None] = Counter()
    held: list[pa.RecordBatch] = []
    with parquet_writer(path, schema) as writer:
        for batch in batches:
            labels.update(batch.column("label").to_pylist() if answer == "label" else {None: batch.num_rows})
            held.append(batch)
            if sum(part.num_rows for part in held) >= ROW_GROUP_ROWS or sum(part.nbytes for part in held) >= ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(held, schema))
                held = []
        if held:
            writer.write_table(pa.Table.from_batches(held, schema))
    return labels


def _label_counts(labels: Counter[str | None]) -> dict[str, int]:
    """Label -> rows for the most frequent labels, sorted by label."""
    counts = {label: count for label, count in labels.items() if label is not None}
    listed = sorted(counts, key=lambda label: (-counts[label], label))[:LISTED_LABELS]
    return {label: counts[label] for label in sorted(listed)}
