"""The subcommands on the life of versions: approve, reject, history, doctor, prune."""

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any

KEEP = 20


def add_commands(add: Callable[..., Any]) -> None:
    """Declare the subcommands."""
    command = add(
        "approve", "approve", "approve a version that waits for a person, and make it champion",
        'promptmill approve tweet_sentiment 4 --reason "Read 50 answers, better on refunds"',
        'promptmill approve tweet_sentiment 4 --manifest 3f9c2b17aa01 --reason "..."',
        epilog="Counts for exactly the manifest and the champion that the request names.",
    )  # fmt: skip
    _add_answer(command)
    command.add_argument("--manifest", metavar="SHA256", help="the manifest you looked at, or its first 12 digits: another one is refused")
    command = add(
        "reject", "reject", "refuse a version that waits for a person", 'promptmill reject tweet_sentiment 4 --reason "Worse on refunds"'
    )
    _add_answer(command)

    command = add("history", "history", "tell who was champion when, by whom and why", "promptmill history tweet_sentiment")
    command.add_argument("task", metavar="TASK")
    command.add_argument("--json", action="store_true", help="print JSON, with all metrics")

    command = add(
        "doctor", "doctor", "settle what killed promotions left, and check champion, journal and stored files", "promptmill doctor",
        "promptmill doctor tweet_sentiment",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK", nargs="?", help="default: every task of params.yaml")

    command = add(
        "prune", "prune", "list the versions that nothing needs any more, and with --delete remove them",
        "promptmill prune tweet_sentiment", "promptmill prune tweet_sentiment --keep 5 --delete",
        epilog="Champions of today and before, what something was compared with, and what waits for approval always stay.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK")
    command.add_argument("--keep", type=_count, default=KEEP, metavar="N", help=f"newest versions that stay in any case (default: {KEEP})")
    command.add_argument("--delete", action="store_true", help="remove them; without it nothing is changed")


def _add_answer(command: Any) -> None:
    command.add_argument("task", metavar="TASK")
    command.add_argument("version", type=int, metavar="VERSION", help="a version number")
    command.add_argument("--reason", required=True, metavar="TEXT", help="why; it is kept with the version")
    command.add_argument("--by", metavar="NAME", help="who answers (default: your user name on this machine)")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ArgumentTypeError(f"{text} is no number of versions from 0 on")
    return number


def approve(options: Namespace) -> int:
    """Approve a waiting version and make it champion."""
    from flows.commands import say_champion, workspace
    from flows.events import announce_champion
    from flows.promotion_lock import shared_lock
    from pipeline.registry import approval

    root = workspace()
    done = approval.approve(
        root=root, task=options.task, version=options.version, reason=options.reason, by=options.by, manifest=options.manifest, lock=shared_lock()
    )  # fmt: skip
    announce_champion(root, done, why=f"Approved: {options.reason}")
    return say_champion(done)


def reject(options: Namespace) -> int:
    """Refuse a waiting version."""
    from flows.commands import workspace
    from flows.terminal import answer
    from pipeline.registry import approval

    given = approval.reject(root=workspace(), task=options.task, version=options.version, reason=options.reason, by=options.by)
    answer(f"{options.task} version {options.version} was rejected by {given['by']}.")
    return 0


def history(options: Namespace) -> int:
    """Print the champions of a task, newest first."""
    from flows.commands import workspace
    from flows.terminal import answer, say, table
    from pipeline.registry.history import history as reigns_of

    reigns = reigns_of(root=workspace(), task=options.task)[::-1]
    if options.json:
        answer(json.dumps(reigns, ensure_ascii=False, indent=2))
    elif reigns:
        answer(table(("version", "since", "until", "by", "how", "accuracy", "why"), [_reign_cells(reign) for reign in reigns]))
    else:
        say(f"{options.task} has had no champion yet.")
    return 0


def _reign_cells(reign: dict[str, Any]) -> tuple[str, ...]:
    from flows.terminal import number

    how = "approved" if reign["approval"] else reign["action"]
    since, until = (moment[:19] if moment else "-" for moment in (reign["since"], reign["until"]))
    why = " ".join(str(reign["reason"] or "the gate let it pass").split())
    cells = (str(reign["version"]), since, until, number(reign["by"]), how, number(reign["metrics"].get("tuned/accuracy")), why)
    return tuple(cell if len(cell) <= 80 else f"{cell[:79]}…" for cell in cells)


def doctor(options: Namespace) -> int:
    """Settle and check one task, or all; the exit code is 1 when a person has to do something."""
    from flows.commands import workspace
    from flows.promotion_lock import shared_lock
    from flows.terminal import answer, say
    from pipeline.errors import RegistryError
    from pipeline.layout import PARAMS_FILE
    from pipeline.params import load
    from pipeline.registry.doctor import examine

    root = workspace()
    problems = 0
    for task in [options.task] if options.task else sorted(load(root / PARAMS_FILE)):
        try:
            findings = examine(root=root, task=task, lock=shared_lock())
        except RegistryError as error:
            if options.task:
                raise
            say(str(error))
            continue
        for finding in findings:
            answer(f"{task}: {finding.state}: {finding.text}")
            problems += finding.state == "problem"
    return 1 if problems else 0


def prune(options: Namespace) -> int:
    """List what may go and why the rest stays; remove it when asked."""
    from flows.commands import workspace
    from flows.promotion_lock import shared_lock
    from flows.terminal import answer, say, table
    from pipeline.registry import retention

    found = retention.prune(root=workspace(), task=options.task, keep=options.keep, delete=options.delete, lock=shared_lock())
    gone = [one.version for one in found if not one.reasons]
    verb = "removed" if options.delete else "may go"
    answer(table(("version", "stays because"), [(str(one.version), ", ".join(one.reasons) or f"- ({verb})") for one in found]))
    if gone and not options.delete:
        say(f"{len(gone)} of {len(found)} versions of {options.task} may go; nothing was changed. Remove them with --delete.")
    elif gone:
        say(f"{len(gone)} of {len(found)} versions of {options.task} were removed; their runs stay. `mlflow gc` frees the space.")
    return 0
