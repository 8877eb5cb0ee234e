"""One data stage in a process of its own: `python -m benchmarks.data_stage STAGE FOLDER` prints its seconds and peak memory as JSON.

FOLDER is a workspace. Rows come from its `rows.csv`, or from the demo's source where there is none. Besides the stages there are
`near_duplicates`, which clusters the accepted texts and nothing else, and `contract`, which judges the raw rows by Great Expectations and by
plain pandas.
"""

import argparse
import importlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.layout import Layout, find_root, stage_named
from pipeline.params import TaskParams, load_task
from pipeline.records import iterate_parquet, parquet_schema

TASK = "tweet_sentiment"
STAGES = ("ingest", "validate", "split")


def stage_params(folder: Path) -> TaskParams:
    """The demo's params over all rows of the folder, with a contract that blocks nothing for being small."""
    params = load_task(find_root(Path(__file__).resolve().parent) / "params.yaml", TASK)
    values = params.model_dump(by_alias=True)
    values["ingest"]["sample_rows"] = None
    if (folder / "rows.csv").exists():
        values["ingest"]["source"] = {"kind": "file", "path": "rows.csv"}
    values["validate"] |= {"minimum_rows": 1, "minimum_accepted_share": 0.0}
    return TaskParams.model_validate(values)


def run_stage(name: str, folder: Path) -> None:
    """The stage, as DVC would run it."""
    stage, layout = stage_named(name), Layout(folder, TASK)
    module = importlib.import_module(f"pipeline.stages.{name}")
    module.run(params=stage_params(folder), inputs=layout.inputs(stage), outputs=layout.outputs(stage))


def cluster_accepted(folder: Path) -> dict[str, Any]:
    """Seconds of clustering alone, without reading the texts."""
    from pipeline.data.deduplication import DistinctTexts, bare_texts
    from pipeline.data.near_duplicates import cluster_texts

    split, texts = stage_params(folder).split, DistinctTexts()
    for batch in iterate_parquet(Layout(folder, TASK).path("accepted"), ["text"]):
        texts.add(bare_texts(batch, ["text"], split.ignored))
    distinct, _ = texts.in_order()
    began, worked = time.perf_counter(), time.process_time()
    found = cluster_texts(distinct, params=split.near_duplicates, seed=split.seed)
    taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
    return {**taken, "texts": len(distinct), "compared_pairs": found.compared}


def judge_twice(folder: Path) -> dict[str, Any]:
    """Seconds that Great Expectations and plain pandas take for the same checks of the same rows; they must agree on each."""
    began = time.perf_counter()
    contract = importlib.import_module("pipeline.data.contract")  # the module that imports it
    imported = time.perf_counter() - began
    from pipeline.data.expectations import figures, raw_suite
    from pipeline.data.measures import measure
    from pipeline.data.overview import contract_overview, contract_report
    from pipeline.data.quarantine import PASSES, apply_row_rules
    from pipeline.stages.validate import _plan

    params, raw = stage_params(folder), Layout(folder, TASK).path("raw")
    schema = parquet_schema(raw)
    plan = _plan(params, schema, raw)
    rows = measure(iterate_parquet(raw), plan, schema)
    rules = apply_row_rules(rows, plan, params.validate_)
    suite = raw_suite(rows, rules == PASSES, plan, params.validate_)
    report = contract_report(rows, rules, figures(rows[rules == PASSES], plan), plan, params.validate_)
    with TemporaryDirectory() as docs:
        began = time.perf_counter()
        verdicts = contract.judge([suite], docs_folder=Path(docs) / "docs", overview=contract_overview(report, TASK))
        judged = time.perf_counter() - began
    began = time.perf_counter()
    plain = [PLAIN[check.expectation](suite.frame, check.arguments) for check in suite.checks]
    return {
        "rows": len(rows),
        "checks": len(plain),
        "great_expectations_seconds": judged,
        "import_seconds": imported,
        "pandas_seconds": time.perf_counter() - began,
        "agree": [bool(verdict.success) for verdict in verdicts] == [bool(success) for success in plain],
    }


def _within(values: Any, arguments: Mapping[str, Any]) -> Any:
    return (values >= arguments.get("min_value", float("-inf"))) & (values <= arguments.get("max_value", float("inf")))


# What the expectations of the raw suite ask, in pandas.
PLAIN: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "ExpectTableRowCountToBeBetween": lambda frame, given: _within(len(frame), given),
    "ExpectColumnValuesToNotBeNull": lambda frame, given: frame[given["column"]].notna().all(),
    "ExpectColumnValuesToBeUnique": lambda frame, given: frame[given["column"]].is_unique,
    "ExpectColumnValuesToBeInSet": lambda frame, given: frame[given["column"]].dropna().isin(given["value_set"]).all(),
    "ExpectColumnValuesToBeBetween": lambda frame, given: _within(frame[given["column"]].dropna(), given).all(),
    "ExpectColumnMeanToBeBetween": lambda frame, given: _within(frame[given["column"]].mean(), given),
}


def peak_memory() -> int:
    """Bytes of this process's resident memory at its highest (Linux)."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise SystemExit("/proc/self/status has no line VmHWM; peak memory is measured on Linux only.")
    return int(found.group(1)) * 1024


def main() -> None:
    """Run one stage and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "near_duplicates", "contract"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    began, worked = time.perf_counter(), time.process_time()
    found: dict[str, Any] = {}
    if options.stage in STAGES:
        run_stage(options.stage, options.folder)
    else:
        found = {"near_duplicates": cluster_accepted, "contract": judge_twice}[options.stage](options.folder)
    taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
    print(json.dumps({**taken, "peak_bytes": peak_memory(), **found}))


if __name__ == "__main__":
    main()
