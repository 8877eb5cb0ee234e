"""Stage ingest: a source of labelled rows becomes one Parquet file with stable row ids."""

from typing import Any

import pandas as pd

from pipeline.data.sources import draw_sample, read_source
from pipeline.layout import Paths, find_root
from pipeline.params import TaskParams
from pipeline.records import sha256_file, write_json, write_parquet

LISTED_LABELS = 50  # a wrongly mapped label column can have as many values as rows


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:  # noqa: ARG001 - it reads the source, no stage's file
    """Read the source, draw the sample and write `raw`; returns the ingest report. Raises SourceError."""
    source = read_source(params.ingest.source, params.ingest.columns, root=find_root(outputs.raw.parent))
    rows = draw_sample(source.rows, sample_rows=params.ingest.sample_rows, seed=params.ingest.seed)
    write_parquet(outputs.raw, rows)
    report = {
        "source": source.description,
        "source_sha256": source.sha256,
        "source_bytes": source.size,
        "source_rows": len(source.rows),
        "rows": len(rows),
        "labels": _label_counts(rows["label"]),
        "raw_sha256": sha256_file(outputs.raw),
    }
    write_json(outputs.ingest_report, report)
    return report


def _label_counts(labels: pd.Series) -> dict[str, int]:
    """Label -> rows for the most frequent labels, sorted by label."""
    counts = {str(label): int(n) for label, n in labels.value_counts().items()}
    listed = sorted(counts, key=lambda label: (-counts[label], label))[:LISTED_LABELS]
    return {label: counts[label] for label in sorted(listed)}
