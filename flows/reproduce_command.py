"""`promptmill reproduce TASK[@VERSION|@ALIAS]`: the command line of the flow, without its slow imports."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from flows.terminal import answer, table
from pipeline.errors import NotReproduced


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "reproduce", "reproduce", "make a registered version again in a workspace of its own and compare it with what was recorded",
        "promptmill reproduce tweet_sentiment", "promptmill reproduce tweet_sentiment@3 --keep",
        epilog="EXACT: the same bits. WITHIN TOLERANCE: another machine or other libraries, and the answers agree. Anything else names the line "
        "at which it failed, and exits with 5.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK[@VERSION|@ALIAS]", help="without a version: the champion")
    command.add_argument("--keep", action="store_true", help="keep the workspace below .promptmill/reproductions")
    command.add_argument("--json", action="store_true", help="print the record as JSON")


def reproduce(options: Namespace) -> int:
    """Make a version again; raises NotReproduced when it is not the same."""
    from flows.commands import prefect_api
    from flows.flow_runs import noted
    from flows.settings import apply_prefect_defaults
    from pipeline.layout import find_root
    from pipeline.registry import registry
    from pipeline.reproduction import NOT_REPRODUCED

    root = find_root(Path.cwd())
    task, _, selector = options.task.partition("@")
    version = registry.show(root=root, task=task, selector=selector or "champion")["version"]
    apply_prefect_defaults(root)
    with prefect_api(root, options.verbose), noted(root):
        from flows import reproduce as flow

        record: Any = flow.reproduce(task, version, str(root), options.keep)
    if options.json:
        answer(json.dumps(record, ensure_ascii=False, indent=2))
    else:
        answer(
            table(("line", "verdict", "what was found"), [(line["name"], line["verdict"], line["sentence"]) for line in record["lines"]])
        )
        if record["workspace"]:
            answer(f"The workspace is kept: {record['workspace']}")
    if record["verdict"] == NOT_REPRODUCED:
        last = record["lines"][-1]
        raise NotReproduced(f"{task} version {version} was NOT REPRODUCED; it failed at the line `{last['name']}`: {last['sentence']}")
    if not options.json:
        answer(f"{task} version {version}: {record['verdict']}")
    return 0
