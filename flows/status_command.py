"""`promptmill status`: how every task is, in the terminal, as a page in reports/, and on Prefect's page."""

import json
from argparse import Namespace
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.settings import apply_prefect_defaults
from flows.terminal import answer, say

PAGE = Path("reports") / "status.html"
ARTIFACT = "promptmill-status"


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "status", "status", "say how every task is: champion, its age, last and next run, verdict, drift, who is waited for",
        "promptmill status", "promptmill status tweet_sentiment --json", "promptmill status --publish",
        epilog=f"The same is written as a page to {PAGE}. ? stands for what could not be asked, - for what there is none of.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK", nargs="?", help="a task (default: all of params.yaml)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--publish", action="store_true", help=f"also put it on Prefect's page, as the artifact {ARTIFACT}")


def status(options: Namespace) -> int:
    """Print it, write the page, and publish it when asked to."""
    from pipeline.layout import find_root

    root = find_root(Path.cwd())
    apply_prefect_defaults(root)
    from flows.status import collect, in_html, in_markdown, in_terminal, read_runs, task_names
    from pipeline.records import replacing_file

    now = datetime.now(UTC)
    found = collect(root, task_names(root, options.task), read_runs())
    answer(
        json.dumps([asdict(one) for one in found], ensure_ascii=False, indent=2, default=str) if options.json else in_terminal(found, now)
    )
    if options.task is None:
        with replacing_file(root / PAGE) as partial:
            partial.write_text(in_html(found, now), encoding="utf-8")
        say(f"The same as a page: {root / PAGE}")
    if options.publish:
        publish(in_markdown(found, now))
        say(f"Published on Prefect's page as the artifact {ARTIFACT}.")
    return 0


def publish(markdown: str) -> None:
    """Make the artifact on the server in use; raises WorkspaceError where none is configured."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.settings import PREFECT_API_URL

    from pipeline.errors import WorkspaceError

    if not PREFECT_API_URL.value():
        raise WorkspaceError("There is no Prefect server to publish on: set PREFECT_API_URL, or start one with `promptmill services up`.")
    create_markdown_artifact(key=ARTIFACT, markdown=markdown, description="How every task is")
