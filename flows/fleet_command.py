"""`promptmill retrain-all` and `promptmill base-model upgrade`: many tasks in one command."""

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("task", "outcome", "version", "verdict", "seconds")
GAINED, LOST, NOT_DECIDED = "gained", "lost", "not decided"


def add_commands(add: Any) -> None:
    """Declare the subcommands; `add(name, handler, summary, *examples, epilog)` returns the parser of one."""
    command = add(
        "retrain-all", "retrain_all", "retrain all tasks, or several, each in a workspace of its own",
        "promptmill retrain-all --changed-only", "promptmill retrain-all tweet_sentiment privacy_policy_qa --at-once 2",
        epilog="One task's failure leaves the others alone; the exit code is then 1.",
    )  # fmt: skip
    command.add_argument("tasks", metavar="TASK", nargs="*", help="default: every task of params.yaml")
    command.add_argument("--changed-only", action="store_true", help="leave tasks alone whose data, params and code did not change")
    _add_common(command)
    command = add(
        "base-model", "base_model", "retune every task on another base model, each against its own champion",
        "promptmill base-model upgrade --to hub:Qwen/Qwen2.5-0.5B@main", "promptmill base-model upgrade --to directory:models/new --at-once 2",
        epilog="Names the base model in params.yaml, which is yours to commit or to take back (`git checkout params.yaml`): nothing that is not committed is promoted.",
    )  # fmt: skip
    command.add_argument("action", choices=("upgrade",))
    command.add_argument(
        "--to",
        required=True,
        type=source_of,
        metavar="SOURCE",
        help="hub:ID@REVISION, directory:PATH, gguf:PATH or package_gguf:PACKAGE/PATH",
    )
    _add_common(command)


def _add_common(command: Any) -> None:
    command.add_argument("--at-once", type=_count, default=1, metavar="N", help="how many tasks at a time (default: 1)")
    command.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no number of tasks from 1 on")
    return int(text)


def source_of(text: str) -> dict[str, str]:
    """A base model's source, as params.yaml has it, from one word of a command line."""
    kind, _, rest = text.partition(":")
    name, _, revision = rest.partition("@")
    if kind == "hub" and name and revision:
        return {"kind": kind, "id": name, "revision": revision}
    if kind in ("directory", "gguf") and rest:
        return {"kind": kind, "id": Path(rest).name, "path": rest}
    package, _, path = rest.partition("/")
    if kind == "package_gguf" and package and path:
        return {"kind": kind, "id": Path(path).name, "package": package, "path": path}
    raise ArgumentTypeError(f"{text!r} is no base model: write hub:ID@REVISION, directory:PATH, gguf:PATH or package_gguf:PACKAGE/PATH")


def retrain_all(options: Namespace) -> int:
    """Retrain the tasks and print how each ended."""
    from flows.terminal import answer, table

    rows = _run(options, options.tasks or None, options.changed_only)
    answer(
        json.dumps(rows, ensure_ascii=False, indent=2)
        if options.json
        else table(COLUMNS, [[str(row[name]) for name in COLUMNS] for row in rows])
    )
    return _ended(rows)


def base_model(options: Namespace) -> int:
    """Name another base model in params.yaml, retune every task, and print who gained and who lost."""
    from flows.terminal import answer, say, table
    from pipeline.layout import PARAMS_FILE, find_root
    from pipeline.params import load
    from pipeline.records import replacing_file

    path = find_root(Path.cwd()) / PARAMS_FILE
    text = with_base_model(path, options.to)
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        load(temporary)  # before anything is tuned on a name that params.yaml does not take
    say(f"{path} names {options.to['id']} now. `git checkout {PARAMS_FILE}` takes that back; `git commit` keeps it.")
    rows = _run(options, None, changed_only=False)
    if options.json:
        answer(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        answer(
            table(
                ("task", "outcome", "champion", "on the new base", "difference", "interval", "rows", "who"),
                [gain_cells(row) for row in rows],
            )
        )
    return _ended(rows)


def with_base_model(path: Path, source: Mapping[str, str]) -> str:
    """The text of params.yaml with this base model for every task, wherever one was named; raises ParamsError."""
    from pipeline.params_file import read_yaml, replace_source_in

    document: Any = read_yaml(path)
    text = replace_source_in(path.read_text(encoding="utf-8"), ("defaults", "base_model"), source)
    for task, sections in document["tasks"].items():
        if "source" in (sections.get("base_model") or {}):
            text = replace_source_in(text, ("tasks", task, "base_model"), source)
    return text


def gain_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of who gained: both metrics on the same test rows, their paired difference, and what it shows."""
    from flows.terminal import number

    comparison: Mapping[str, Any] = row["comparison"] or {}
    difference = comparison.get("difference")
    if difference is None or difference["value"] is None:
        return [row["task"], row["outcome"], "-", "-", "-", "-", "-", "no champion to compare with" if row["version"] else "-"]
    metrics = comparison["metrics"]
    interval = f"{number(difference['low'])} to {number(difference['high'])}"
    return [
        *(row["task"], row["outcome"], number(metrics["champion"]["value"]), number(metrics["candidate"]["value"])),
        *(number(difference["value"]), interval, str(comparison["n"]), who_gained(difference)),
    ]


def who_gained(difference: Mapping[str, Any]) -> str:
    """Whether the whole interval of candidate minus champion lies on one side of 0."""
    if difference["low"] > 0:
        return GAINED
    return LOST if difference["high"] < 0 else NOT_DECIDED


def _run(options: Namespace, tasks: Sequence[str] | None, changed_only: bool) -> list[dict[str, Any]]:
    from flows.commands import prefect_api
    from flows.flow_runs import noted
    from flows.settings import apply_prefect_defaults
    from pipeline.layout import find_root

    root = find_root(Path.cwd())
    apply_prefect_defaults(root)
    with prefect_api(root, options.verbose), noted(root):
        from flows.retrain_all import counted
        from flows.retrain_all import retrain_all as flow
        from flows.terminal import say

        rows: Any = flow(None if tasks is None else list(tasks), str(root), options.at_once, changed_only)
        say(counted(rows))
    return rows


def _ended(rows: Sequence[Mapping[str, Any]]) -> int:
    return 1 if any(row["outcome"] in ("Failed", "Crashed", "TimedOut") for row in rows) else 0
