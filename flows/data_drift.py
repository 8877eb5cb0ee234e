"""`promptmill data drift`: has a task's data moved away from that of the champion, or of another version?"""

import json
import sys
import tempfile
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.terminal import answer, number, say, table
from pipeline.errors import DataDrifted, RegistryError, SourceError

if TYPE_CHECKING:
    from pipeline.data.profiles import Profile
    from pipeline.params import TaskParams

COLUMNS = ("check", "verdict", "value", "interval", "p", "rows", "limit")
STAGES_BEFORE = ("ingest", "validate", "split", "profile")


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "drift", "drift", "compare a task's data with the data that the champion, or another version, was trained on",
        "promptmill data drift tweet_sentiment", "promptmill data drift tweet_sentiment --against 3",
        "promptmill data drift tweet_sentiment --data lately.csv --json",
        epilog="Exit code 4 says that it drifted, so that a schedule can retrain. Nothing is recorded.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK", help="a name under `tasks` in params.yaml")
    command.add_argument("--against", type=_selector, metavar="champion|N", help="default: `reference.against` in params.yaml")
    command.add_argument(
        "--data", type=Path, metavar="FILE.CSV", help="compare these rows instead (UTF-8, a column per field, and `label` if known)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def drift(options: Namespace) -> int:
    """Print every check, and return 0, or 4 when the data drifted."""
    from flows.workspace import check_checkout
    from pipeline.data.drift import drift_report
    from pipeline.data.profiles import read_reference
    from pipeline.layout import find_root
    from pipeline.registry.reference import fetch_reference

    root = find_root(Path.cwd())
    params = check_checkout(root, options.task)
    with tempfile.TemporaryDirectory() as folder:
        fetch_reference(root=root, task=options.task, against=options.against or params.reference.against, destination=Path(folder))
        against, reference = read_reference(Path(folder))
    if reference is None:
        raise RegistryError(f"{options.task}: there is nothing to compare with: {against['reason']}. Name another version with --against.")
    current = _profile_of_file(options.data, params) if options.data else _current_profile(root, options.task)
    report = drift_report(current, reference, against=against, limits=params.drift)
    answer(json.dumps({"task": options.task, **report}, ensure_ascii=False, indent=2) if options.json else _text(options.task, report))
    if report["verdict"] == "FAIL":
        from flows.events import DATA_DRIFTED, announce

        failed = [f"{check['name']}: {check['sentence']}" for check in report["checks"] if check["verdict"] == "FAIL"]
        announce(DATA_DRIFTED, options.task, subject=f"{options.task}: the data drifted", lines=failed)
    return DataDrifted.exit_code if report["verdict"] == "FAIL" else 0


def _selector(text: str) -> str | int:
    if text == "champion":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is neither `champion` nor the number of a version")
    return int(text)


def _current_profile(root: Path, task: str) -> "Profile":
    """The profile of the training split, once the stages up to it are current."""
    from flows.stage_process import run_stage
    from flows.workspace import changed_stages
    from pipeline.data.profiles import read_profile
    from pipeline.layout import Layout

    if changed_stages(root, task, STAGES_BEFORE):
        for stage in STAGES_BEFORE:
            say(f"[{stage}]")
            run_stage(root=root, task=task, stage=stage, screen=sys.stderr.buffer)
    layout = Layout(root, task)
    return read_profile(record=layout.path("data_profile"), arrays=layout.path("profile_arrays"))


def _profile_of_file(path: Path, params: "TaskParams") -> "Profile":
    """The profile of the rows of a CSV file; raises SourceError naming the file, the column or the row."""
    import pyarrow as pa

    from pipeline.records import sha256_json
    from pipeline.row_files import read_csv
    from pipeline.stages.profile import profile_rows

    columns, rows = read_csv(path)
    fields = list(params.ingest.columns.fields)
    missing = [field for field in fields if field not in columns]
    if missing:
        raise SourceError(f"{path} lacks the columns {missing}; it has {columns}. Add or rename them.")
    held = [*fields, *(name for name in ("label",) if name in columns)]
    found = {name: [row[name] or None for row in rows] if name == "label" else [row[name] for row in rows] for name in held}
    return profile_rows([pa.RecordBatch.from_pydict({"row_id": [sha256_json(row) for row in rows], **found})], params)


def _text(task: str, report: Mapping[str, Any]) -> str:
    checks = report["checks"]
    against = f"version {report['against']['version']}"
    failed = [f"  {check['name']}: {check['sentence']}" for check in checks if check["verdict"] in ("FAIL", "INSUFFICIENT")]
    verdict = {
        "FAIL": f"DRIFTED: the data of {task} is not that of {against} any more.",
        "INSUFFICIENT": f"NOT DECIDED: too few rows to compare the data of {task} with that of {against}.",
    }.get(report["verdict"], f"NO DRIFT: the data of {task} is like that of {against}.")
    return "\n".join([table(COLUMNS, [_cells(check) for check in checks]), "", verdict, *failed])


def _cells(check: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = check["low"], check["high"]
    interval = "-" if low is None or high is None else f"{number(low)} to {number(high)}"
    p_value = "-" if check["p_value"] is None else f"{check['p_value']:.2g}"
    rows = f"{check['n_current']} / {number(check['n_reference'])}"
    return (check["name"], check["verdict"], number(check["value"]), interval, p_value, rows, number(check["limit"]))
