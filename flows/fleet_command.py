"""`promptmill retrain-all` and `promptmill base-model upgrade`: many tasks in one command."""

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("task", "outcome", "version", "verdict", "seconds")
GAIN_COLUMNS = ("task", "outcome", "gate", "champion", "on the new base", "difference", "interval", "rows", "who")
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
        "base-model", "base_model", "retune tasks on another base model, each against its own champion",
        "promptmill base-model upgrade --to hub:Qwen/Qwen2.5-0.5B@main", "promptmill base-model upgrade tweet_sentiment --to directory:models/new --write",
        epilog="The versions that are made stay challengers, and params.yaml stays as it is. With --write the base model is named in params.yaml first, which is yours to commit or "
        "to take back (`git checkout params.yaml`), and the gate decides: what is not committed is promoted only where promotion.allow_uncommitted says so.",
    )  # fmt: skip
    command.add_argument("action", choices=("upgrade",))
    command.add_argument("tasks", metavar="TASK", nargs="*", help="default: every task of params.yaml")
    command.add_argument(
        "--to",
        required=True,
        type=source_of,
        metavar="SOURCE",
        help="hub:ID@REVISION, directory:PATH, gguf:PATH or package_gguf:PACKAGE/PATH",
    )
    command.add_argument("--write", action="store_true", help="name the base model in params.yaml, instead of trying it only")
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

    rows = _run(options, options.tasks or None, changed_only=options.changed_only)
    answer(
        json.dumps(rows, ensure_ascii=False, indent=2)
        if options.json
        else table(COLUMNS, [[str(row[name]) for name in COLUMNS] for row in rows])
    )
    return _ended(rows)


def base_model(options: Namespace) -> int:
    """Retune the tasks on another base model, and print who gained and who lost."""
    from flows.terminal import answer, table

    tasks = options.tasks or None
    if options.write:
        _write(options.to, tasks)
    rows = _run(options, tasks, changed_only=False, base_model=None if options.write else options.to)
    answer(json.dumps(rows, ensure_ascii=False, indent=2) if options.json else table(GAIN_COLUMNS, [gain_cells(row) for row in rows]))
    return _ended(rows)


def _write(source: Mapping[str, str], tasks: Sequence[str] | None) -> None:
    from flows.base_model import with_base_model
    from flows.terminal import say
    from pipeline.layout import PARAMS_FILE, find_root
    from pipeline.params import load_tasks
    from pipeline.records import replacing_file

    path = find_root(Path.cwd()) / PARAMS_FILE
    load_tasks(path, tasks)
    text = with_base_model(path, source, tasks)
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        load_tasks(temporary)  # before anything is tuned on a name that params.yaml does not take
    say(f"{path} names {source['id']} now. `git checkout {PARAMS_FILE}` takes that back; `git commit` keeps it.")


def gain_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of who gained: the gate's verdict, both metrics on the same test rows, their paired difference, and what it shows."""
    from flows.terminal import number

    first = [row["task"], row["outcome"], row["verdict"] or "-"]
    comparison: Mapping[str, Any] = row["comparison"] or {}
    difference = comparison.get("difference")
    if difference is None or difference["value"] is None:
        return [*first, "-", "-", "-", "-", "-", "no champion to compare with" if row["version"] else "-"]
    metrics = comparison["metrics"]
    interval = f"{number(difference['low'])} to {number(difference['high'])}"
    return [
        *(*first, number(metrics["champion"]["value"]), number(metrics["candidate"]["value"])),
        *(number(difference["value"]), interval, str(comparison["n"]), who_gained(difference)),
    ]


def who_gained(difference: Mapping[str, Any]) -> str:
    """Whether the whole interval of candidate minus champion lies on one side of 0."""
    if difference["low"] > 0:
        return GAINED
    return LOST if difference["high"] < 0 else NOT_DECIDED


def _run(
    options: Namespace, tasks: Sequence[str] | None, *, changed_only: bool, base_model: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    from flows.commands import prefect_api
    from flows.flow_runs import noted
    from flows.settings import apply_prefect_defaults
    from pipeline.layout import PARAMS_FILE, find_root
    from pipeline.params import load_tasks

    root = find_root(Path.cwd())
    load_tasks(root / PARAMS_FILE, tasks)  # before a server is started for nothing
    apply_prefect_defaults(root)
    with prefect_api(root, options.verbose), noted(root):
        from flows.retrain_all import counted
        from flows.retrain_all import retrain_all as flow
        from flows.terminal import say

        rows: Any = flow(
            None if tasks is None else list(tasks),
            str(root),
            at_once=options.at_once,
            changed_only=changed_only,
            base_model=None if base_model is None else dict(base_model),
        )
        say(counted(rows))
    return rows


def _ended(rows: Sequence[Mapping[str, Any]]) -> int:
    return 1 if any(row["outcome"] in ("Failed", "Crashed", "TimedOut") for row in rows) else 0
