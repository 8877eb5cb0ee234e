"""`promptmill sync [TASK]`: deliver the records of runs that MLflow did not take because it did not answer."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from flows.terminal import answer


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "sync", "sync", "deliver to MLflow the runs that it did not take because it did not answer",
        "promptmill sync", "promptmill sync tweet_sentiment",
        epilog="Each is delivered once, however often this is run. `promptmill run TASK` then registers and promotes the task's newest.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK", nargs="?", help="a task (default: all)")


def sync(options: Namespace) -> int:
    """Deliver, oldest first; raises RegistryUnreachable when the server still does not answer, with nothing lost."""
    from pipeline.layout import find_root
    from pipeline.registry.spool import deliver, emptying, spooled

    root = find_root(Path.cwd())
    with emptying(root=root):
        waiting = spooled(root=root, task=options.task)
        for folder in waiting:
            recorded = deliver(root=root, folder=folder)
            answer(f"{folder.parent.name}: run {recorded.run_id} {'was there already' if recorded.reused else 'delivered'}")
    answer(f"{len(waiting)} delivered, the spool is empty." if waiting else "Nothing to deliver: the spool is empty.")
    return 0
