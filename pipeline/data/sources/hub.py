"""Data sets in the layout of the Hugging Face hub, through the datasets library: at a fixed revision, or from a local folder.

The rows stay in the library's memory-mapped files. Only data files are read, never a loading script, and no format that can run code.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.sources.columnar import batch_blocks, readable
from pipeline.data.sources.limits import BLOCK_ROWS, Caps
from pipeline.data.sources.tables import Blocks, positions
from pipeline.data.sources.wording import in_one_line
from pipeline.errors import SourceError
from pipeline.params import HubDatasetSource

READERS = frozenset({"csv", "json", "parquet", "arrow", "text"})  # of the datasets library; others unpack archives or pickles


def open_hub_dataset(source: HubDatasetSource, wanted: Sequence[str], caps: Caps, *, root: Path) -> tuple[Blocks, str, str]:
    """(blocks, the data set's name in errors, its fingerprint); raises SourceError when it cannot be loaded or lacks a column."""
    try:
        import datasets
    except ImportError:
        raise SourceError("A source of kind hub_dataset needs the package datasets: `pip install promptmill[hub]`.") from None
    where = _name(source)
    path = _path(source, root)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        dataset = _load(datasets, source, path, where)
    finally:
        if shown:
            datasets.enable_progress_bars()
    positions(dataset.column_names, wanted, where=where)
    fingerprint: str = dataset._fingerprint  # the only name the library has for it
    return _blocks(dataset.select_columns(list(dict.fromkeys(wanted))), wanted, where, caps), where, fingerprint


def _name(source: HubDatasetSource) -> str:
    parts = [part for part in (source.config, f"split {source.split}", source.revision) if part]
    return f"The data set {source.name} ({', '.join(parts)})"


def _path(source: HubDatasetSource, root: Path) -> str:
    if not source.is_folder:
        if os.path.exists(source.name):  # noqa: PTH110 - what the library itself looks at
            raise SourceError(
                f"{source.name} is meant to be a data set on the hub, but a file or folder of that name lies here and would be read in its place."
                " Remove it, or write ./ before the name in ingest.source.name to mean it."
            )
        return source.name
    folder = (root / source.name).resolve()
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder, expected a data set's. Correct ingest.source.name ({source.name!r}).")
    return str(folder)


def _load(datasets: Any, source: HubDatasetSource, path: str, where: str) -> Any:
    try:
        builder = datasets.load_dataset_builder(path, name=source.config, revision=source.revision)
        reader = type(builder).__module__.rsplit(".", 1)[-1]
        if reader not in READERS:
            raise SourceError(f"{where} is stored as {reader!r}, expected one of {sorted(READERS)}. Convert it to Parquet.")
        return datasets.load_dataset(path, name=source.config, revision=source.revision, split=source.split)
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - the library passes on what its many parts raise
        cause = error.__cause__ or error
        raise SourceError(
            f"{where} cannot be loaded ({type(cause).__name__}: {in_one_line(cause)}). Correct ingest.source, or check the network and HF_TOKEN."
        ) from None


def _blocks(dataset: Any, wanted: Sequence[str], where: str, caps: Caps) -> Blocks:
    with readable(where, "data set"):
        yield from batch_blocks(_batches(dataset), wanted, where, caps)


def _batches(dataset: Any) -> Iterator[pa.RecordBatch]:
    """Arrow batches of all columns, class labels by name."""
    names = {name: feature.names for name, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"}
    for table in dataset.with_format("arrow").iter(BLOCK_ROWS):
        for batch in table.combine_chunks().to_batches():
            columns = {name: _named(batch.column(name), names.get(name)) for name in batch.schema.names}
            yield pa.RecordBatch.from_pydict(columns)


def _named(column: Any, labels: Sequence[str] | None) -> Any:
    """A column, or the names in place of the numbers of class labels; -1 stands for no label there."""
    if labels is None:
        return column
    present = pc.call_function("greater_equal", [column, pa.scalar(0, column.type)])
    indices = pc.call_function("if_else", [present, column, pa.scalar(None, column.type)])
    return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), pa.array(labels, pa.string()))
