"""Stage split: accepted rows become training, validation and test rows that share no text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.deduplication import DistinctTexts
from pipeline.data.leakage import EXTERNAL, check_leakage
from pipeline.data.sources import open_source
from pipeline.data.splitting import (
    RULES,
    SPLITS,
    STAYS,
    Placement,
    Rows,
    check_counts,
    examine_rows,
    label_shares,
    place_rows,
    split_ids_sha256,
)
from pipeline.errors import StageInputError
from pipeline.layout import Paths, find_root
from pipeline.params import Columns, ExternalTest, SplitParams, TaskParams
from pipeline.records import iterate_parquet, parquet_schema, parquet_writer, verify_parquet, write_json

BATCH_ROWS = 131_072  # each becomes a row group of every split


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write the three splits, the rows set aside and what the leakage check found; returns the split report.

    Raises SplitError when a split would lack a label, SourceError when the external test file cannot be read.
    """
    fields, labels = tuple(params.ingest.columns.fields), params.prompt.labels
    schema = _checked_schema(inputs.accepted, [*fields, *(["label"] if labels else [])])
    paths = {"train": outputs.train, "validation": outputs.validation, "test": outputs.test}
    root = find_root(outputs.train.parent)
    # What it knows of all rows ends with it: the leakage check trusts none of it, and would only need room for both.
    report = _place_and_write(inputs.accepted, schema, params, root, {**paths, "": outputs.set_aside})
    sides = {name: _batches(path, fields, schema) for name, path in paths.items()}
    if params.split.external_test is not None:
        sides[EXTERNAL] = _external_batches(params.split.external_test, root)
    leakage = check_leakage(sides, _batches(outputs.set_aside, fields, schema), fields=fields, params=params.split)
    write_json(outputs.leakage, {"task": outputs.leakage.parent.name, **leakage})
    for name, path in paths.items():
        report["splits"][name]["sha256"] = verify_parquet(path)
    write_json(outputs.split_report, report)
    return report


def _place_and_write(accepted: Path, schema: pa.Schema, params: TaskParams, root: Path, paths: Mapping[str, Path]) -> dict[str, Any]:
    """Decide where each row goes and write the files of `paths` (see _write); returns the report but for their sha256."""
    fields, labels, texts = tuple(params.ingest.columns.fields), params.prompt.labels, DistinctTexts()
    rows = examine_rows(_batches(accepted, fields, schema), texts, fields=fields, params=params.split)
    external = examine_rows(_external_batches(params.split.external_test, root), texts, fields=fields, params=params.split)
    placement = place_rows(rows, external.text, texts, params=params.split)
    report = _report(rows, placement, _answers(accepted, labels, len(rows.split)), labels, params.split)
    ids = _write(accepted, schema, rows, placement, paths)
    return report | {"split_ids_sha256": split_ids_sha256(ids), "seed": params.split.seed}


# --- reading ----------------------------------------------------------------------------------------------------------


def _checked_schema(accepted: Path, needed: Sequence[str]) -> pa.Schema:
    schema = parquet_schema(accepted)
    missing = [name for name in ("row_id", *needed) if name not in schema.names]
    if missing:
        raise StageInputError(f"{accepted} lacks the columns {missing}; it has {schema.names}. Run the stage validate again.")
    return schema.remove_metadata()


def _batches(path: Path, fields: Sequence[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    origin = ["origin"] if "origin" in schema.names else []
    return iterate_parquet(path, ["row_id", *fields, *origin])


def _external_batches(external: ExternalTest | None, root: Path) -> Iterator[pa.RecordBatch]:
    """The rows of the external test file that have all fields, if there is one."""
    if external is None:
        return
    # A label is not needed to compare texts, so any column stands in for the answer that ingest would want.
    columns = Columns(fields=external.fields, target=next(iter(external.fields.values())))
    with open_source(external.source, columns, root=root) as stream:
        for batch in stream.batches:
            yield batch.select(["row_id", *external.fields]).drop_null()


def _answers(accepted: Path, labels: Sequence[str], count: int) -> npt.NDArray[np.int64]:
    """The index of each row's label in `labels`; -1 for all rows of a task without labels."""
    if not labels:
        return np.full(count, -1)
    index = {label: code for code, label in enumerate(labels)}
    found = (index.get(label, -1) for batch in iterate_parquet(accepted, ["label"]) for label in batch.column("label").to_pylist())
    return np.fromiter(found, dtype="int64", count=count)


# --- writing ----------------------------------------------------------------------------------------------------------


def _report(rows: Rows, placement: Placement, answers: npt.NDArray[np.int64], labels: Sequence[str], params: SplitParams) -> dict[str, Any]:
    """What the report says of the splits before they are written; raises SplitError when one would lack a label."""
    staying = placement.rule == STAYS
    counts = {name: int((staying & (rows.split == code)).sum()) for code, name in enumerate(SPLITS)}
    by_label = {
        name: {label: int((staying & (rows.split == code) & (answers == answer)).sum()) for answer, label in enumerate(labels)}
        for code, name in enumerate(SPLITS)
    }
    check_counts(counts, by_label, len(rows.split))
    return {
        "splits": {name: {"rows": counts[name], "labels": by_label[name]} for name in SPLITS},
        "set_aside": {rule: int((placement.rule == code).sum()) for code, rule in enumerate(RULES)},
        "near_duplicates": placement.near_duplicates,
        "label_shares": label_shares(answers, rows, labels, params),
    }


def _write(accepted: Path, schema: pa.Schema, rows: Rows, placement: Placement, paths: Mapping[str, Path]) -> dict[str, list[str]]:
    """Write each row to its split's file, or with split, rule and reason to the one named ""; returns the row ids of each."""
    wider = pa.schema([*schema, *(pa.field(name, pa.large_string()) for name in ("split", "rule", "reason"))])
    ids: dict[str, list[str]] = {name: [] for name in SPLITS}
    beside = _row_ids(accepted, placement.beside)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(parquet_writer(path, schema if name else wider)) for name, path in paths.items()}
        start = 0
        for batch in iterate_parquet(accepted, schema.names, BATCH_ROWS):
            here = slice(start, start + batch.num_rows)
            start += batch.num_rows
            for code, name in enumerate(SPLITS):
                part = batch.filter(pa.array((placement.rule[here] == STAYS) & (rows.split[here] == code)))
                writers[name].write_batch(part.cast(schema))
                ids[name].extend(part.column("row_id").to_pylist())
            aside = np.flatnonzero(placement.rule[here] != STAYS)
            why = [_why(rows, placement, row, beside) for row in (aside + here.start).tolist()]
            columns = (
                [pa.array(column, pa.large_string()) for column in zip(*why, strict=True)] if why else [pa.array([], pa.large_string())] * 3
            )
            writers[""].write_batch(pa.record_batch([*batch.take(pa.array(aside)).cast(schema).columns, *columns], schema=wider))
    return ids


def _why(rows: Rows, placement: Placement, row: int, beside: Mapping[int, str]) -> tuple[str, str, str]:
    """The split that a row set aside would have gone to, the rule, and a sentence."""
    split, rule = SPLITS[rows.split[row]], RULES[placement.rule[row]]
    if rule == "in_external_test":
        return split, rule, f"The text, or a near-duplicate, is in the external test file, so it must not be in the {split} split."
    other = int(placement.beside[row])
    keeper = SPLITS[rows.split[other]]
    return split, rule, f"A near-duplicate in the {keeper} split stays ({beside[other]}), so it must not be in the {split} split too."


def _row_ids(accepted: Path, wanted: npt.NDArray[np.int64]) -> dict[int, str]:
    """The row ids at the positions `wanted` (-1 is none)."""
    places = np.unique(wanted[wanted >= 0])
    found: dict[int, str] = {}
    start = 0
    for batch in iterate_parquet(accepted, ["row_id"]):
        here = places[(places >= start) & (places < start + batch.num_rows)]
        found.update(zip(here.tolist(), batch.column("row_id").take(pa.array(here - start)).to_pylist(), strict=True))
        start += batch.num_rows
    return found
