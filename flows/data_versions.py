"""`promptmill data add | refresh | log | repair`: the command lines. What they do, and every slow import, is behind them."""

from argparse import Namespace
from typing import Any


def add_commands(add: Any) -> None:
    """Declare the subcommands; `add(name, handler, summary, *examples, epilog)` returns the parser of one."""
    command = add(
        "repair", "repair", "remove altered copies of a task's data, so that the next run makes them again",
        "promptmill data repair tweet_sentiment",
        epilog="Checks what dvc.lock lists for the task, in DVC's cache and in the checkout.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK", help="a name under `tasks` in params.yaml")


def repair(options: Namespace) -> int:
    """Remove altered copies of the task's files from DVC's cache and from the checkout."""
    from flows.dvc_cache import repair_task

    return repair_task(options.task)
