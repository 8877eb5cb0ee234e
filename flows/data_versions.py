"""`promptmill data add | refresh | log | repair`: the command lines. What they do, and every slow import, is behind them."""

from argparse import Namespace
from pathlib import Path
from typing import Any


def add_commands(add: Any) -> None:
    """Declare the subcommands; `add(name, handler, summary, *examples, epilog)` returns the parser of one."""
    command = add(
        "add", "add", "make a file the source of a task's rows, version it, and say what changes",
        "promptmill data add tweet_sentiment tweets.csv", "promptmill data add tweet_sentiment tweets.tsv.gz --encoding cp1252",
        epilog="The file is read first; one that cannot be read changes nothing. It is copied to data/sources/TASK and params.yaml names it.",
    )  # fmt: skip
    _add_task(command)
    command.add_argument("file", type=Path, metavar="FILE", help="CSV, TSV, JSON lines, Parquet or Arrow, by its suffix; .gz or .zst too")
    command.add_argument("--encoding", help="of a text file (default: utf-8)")
    command.add_argument("--delimiter", metavar="CHARACTER", help="between the cells of a CSV file (default: a comma)")
    command = add(
        "refresh", "refresh", "read a task's source again and say what changed",
        "promptmill data refresh tweet_sentiment",
        epilog="For sources that change without a change of params.yaml: a file that was replaced, a table of a database, an updated package.",
    )  # fmt: skip
    _add_task(command)
    command = add(
        "log", "log", "list the versions of a task's data with the runs and prompt versions made from each, or compare two",
        "promptmill data log tweet_sentiment", "promptmill data log tweet_sentiment --diff 1f3a9c20 here",
        "promptmill data log tweet_sentiment --diff @1 @champion --json",
        epilog="A data version is named by the first digits of its sha256, by @ and a prompt version or alias, or `here` for the checkout's.",
    )  # fmt: skip
    _add_task(command)
    command.add_argument("--diff", nargs=2, metavar=("A", "B"), help="show what changed from A to B")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = add(
        "repair", "repair", "remove altered copies of a task's data, so that the next run makes them again",
        "promptmill data repair tweet_sentiment",
        epilog="Checks what dvc.lock lists for the task, in DVC's cache and in the checkout.",
    )  # fmt: skip
    _add_task(command)


def add(options: Namespace) -> int:
    """Make a file the task's source."""
    from flows.data_changes import add_file

    return add_file(options.task, options.file, encoding=options.encoding, delimiter=options.delimiter)


def refresh(options: Namespace) -> int:
    """Read the task's source again."""
    from flows import data_changes

    return data_changes.refresh(options.task)


def log(options: Namespace) -> int:
    """Print the data versions, or the difference between two."""
    from flows import data_log

    if options.diff:
        return data_log.diff(options.task, *options.diff, as_json=options.json)
    return data_log.log(options.task, as_json=options.json)


def repair(options: Namespace) -> int:
    """Remove altered copies of the task's files from DVC's cache and from the checkout."""
    from flows.dvc_cache import repair_task

    return repair_task(options.task)


def _add_task(command: Any) -> None:
    command.add_argument("task", metavar="TASK", help="a name under `tasks` in params.yaml")
