"""Reading a source the way the ingest stage does, for tests that look at the rows and the facts."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline.data.sources import SourceFacts, open_source
from pipeline.params import IngestParams

TEXT_AND_LABEL = {"fields": {"text": "text"}, "label": "label"}


def read(source: dict[str, Any], columns: dict[str, Any] | None = None, *, root: Path, **caps: int) -> tuple[pd.DataFrame, SourceFacts]:
    """All rows and the facts of a source given as in params.yaml; a file source need not say its kind."""
    source = {"kind": "file", **source}
    ingest = IngestParams.model_validate({"source": source, "columns": columns or TEXT_AND_LABEL, **caps})
    with open_source(
        ingest.source, ingest.columns, root=root, maximum_rows=ingest.maximum_rows, maximum_bytes=ingest.maximum_bytes
    ) as stream:
        table = pa.Table.from_batches(stream.batches, stream.schema)
        return table.to_pandas(), stream.facts


def nulls_as_none(values: pd.Series) -> list[Any]:
    """The values with None for each missing one."""
    return [None if pd.isna(value) else value for value in values]
