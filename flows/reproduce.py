"""The flow `reproduce`: make a registered version again in a workspace of its own, and say line by line whether it is the same."""

from pathlib import Path
from typing import Any

from prefect import State, Task, flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.reproduction import Attempt, begin, compare, finish
from flows.summary import artifact_key
from flows.terminal import say
from pipeline.layout import find_root
from pipeline.registry.evidence import store_reproduction
from pipeline.reproduction import LINES, NOT_REPRODUCED, Line

NAME_NOT_REPRODUCED = "NotReproduced"


@flow(name="reproduce", flow_run_name="reproduce-{name}-{version}", persist_result=False)
def reproduce(name: str, version: int, root: str = ".", keep: bool = False) -> dict[str, Any] | State[dict[str, Any]]:
    """Make version `version` of the task `name` again and compare; the record is kept beside the version.

    The result is the record {task, version, verdict, failed_at, lines, hardware, libraries, workspace}. A version that is not the same ends the flow Completed with the
    name NotReproduced and the line at which it failed. `keep` leaves the workspace for a look.
    """
    workspace = find_root(Path(root).resolve())
    attempt = begin(workspace, name, version)
    try:
        for number, line in enumerate(LINES, 1):
            if comparison(line)(attempt, f"[{number}/{len(LINES)}] {line}").verdict == "FAILED":
                break
    finally:
        record = finish(attempt, keep=keep)
    store_reproduction(root=workspace, task=name, version=version, record=record)
    create_table_artifact(
        key=artifact_key("reproduction", name), table=record["lines"], description=f"{name} version {version}: {record['verdict']}"
    )
    if record["verdict"] == NOT_REPRODUCED:
        return Completed(name=NAME_NOT_REPRODUCED, message=record["lines"][-1]["sentence"], data=record)
    return record


def comparison(line: str) -> Task[[Attempt, str], Line]:
    """The Prefect task that makes one comparison."""

    @task(name=line, task_run_name=line, cache_policy=NO_CACHE, persist_result=False)
    def make(attempt: Attempt, header: str) -> Line:
        say(header)
        found = compare(attempt, line)
        say(f"      {found.verdict}: {found.sentence}")
        get_run_logger().info("%s: %s: %s", line, found.verdict, found.sentence)
        return found

    return make
