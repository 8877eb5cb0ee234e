"""Stage split: accepted rows become training, validation and test rows."""

from typing import Any

from pipeline.data.splitting import split_ids_sha256, split_rows
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import read_parquet, sha256_file, write_json, write_parquet


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write the three splits; returns the split report. Raises SplitError when a split would lack a label."""
    fields = list(params.ingest.columns.fields)
    labels = params.prompt.labels
    rows = read_parquet(inputs.accepted, ["row_id", "label", *fields])
    splits = split_rows(rows, fields=fields, labels=labels, params=params.split)
    written = {"train": outputs.train, "validation": outputs.validation, "test": outputs.test}
    for name, path in written.items():
        write_parquet(path, splits[name])
    report = {
        "splits": {
            name: {
                "rows": len(splits[name]),
                "labels": {label: int((splits[name]["label"] == label).sum()) for label in labels},
                "sha256": sha256_file(path),
            }
            for name, path in written.items()
        },
        "split_ids_sha256": split_ids_sha256(splits),
        "seed": params.split.seed,
    }
    write_json(outputs.split_report, report)
    return report
