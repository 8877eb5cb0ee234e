"""Which data a tuned prompt was made from, as tags of its run and of its versions."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.errors import StageInputError
from pipeline.layout import Layout
from pipeline.records import read_json, verify_parquet

PREFIX = "promptmill.data."
SPLITS = ("train", "validation", "test")
TABLES = ("raw", "accepted", *SPLITS)


def data_tags(layout: Layout, outputs: Mapping[str, str]) -> dict[str, str]:
    """Tags for a run: DVC's md5, our sha256 and the rows of each table, the hash of which row is in which split, the contract's result.

    `outputs` are those of dvc.lock (path -> md5). Raises StageInputError when a table is altered or a report does not speak of it.
    """
    ingest, data, split = (read_json(layout.path(name)) for name in ("ingest_report", "data_report", "split_report"))
    try:
        rows = {"raw": ingest["rows"], "accepted": data["accepted"], **{name: split["splits"][name]["rows"] for name in SPLITS}}
        reported = {"raw": ingest["raw_sha256"], **{name: split["splits"][name]["sha256"] for name in SPLITS}}
        tags = {
            "source": ingest["source"],
            "source_sha256": ingest["source_sha256"],
            "split_ids_sha256": split["split_ids_sha256"],
            "contract": contract_result(data),
        }
    except (KeyError, TypeError) as error:
        raise StageInputError(
            f"A data report of {layout.task} lacks what docs/stage-files.md promises ({error!r}). Run `dvc repro` for this task again."
        ) from error
    for name in TABLES:
        sha256 = verify_parquet(layout.path(name))
        if sha256 != reported.get(name, sha256):
            raise StageInputError(
                f"{layout.path(name)} has sha256 {sha256}, its report says {reported[name]}. Run `dvc repro` for this task again."
            )
        tags |= {f"{name}_md5": _md5(layout, name, outputs), f"{name}_sha256": sha256, f"{name}_rows": str(rows[name])}
    return {f"{PREFIX}{name}": str(value) for name, value in tags.items()}


def data_of(tags: Mapping[str, str]) -> dict[str, str]:
    """What `data_tags` said, from the tags of a run or version, without the prefix."""
    return {name.removeprefix(PREFIX): value for name, value in sorted(tags.items()) if name.startswith(PREFIX)}


def contract_result(report: Mapping[str, Any]) -> str:
    """The data report's expectations in a line: `passed (24 of 24)`, `passed (22 of 24; not met: 1 info, 1 warning)`, `failed (...)`."""
    unmet = Counter(str(expectation["severity"]) for expectation in report["expectations"] if not expectation["success"])
    total = len(report["expectations"])
    listed = ", ".join(f"{count} {severity}" for severity, count in sorted(unmet.items()))
    return f"{'failed' if unmet['critical'] else 'passed'} ({total - unmet.total()} of {total}{f'; not met: {listed}' if listed else ''})"


def _md5(layout: Layout, name: str, outputs: Mapping[str, str]) -> str:
    path = layout.path(name).relative_to(layout.root).as_posix()
    if path not in outputs:
        raise StageInputError(f"dvc.lock lists no output {path}, so DVC does not hold it. Run `dvc repro` for this task again.")
    return outputs[path]
