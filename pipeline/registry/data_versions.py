"""The runs of a task by the data they were made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RegistryError
from pipeline.registry.connection import Connection, connect, explained, has_store
from pipeline.registry.data_identity import PREFIX, data_of
from pipeline.registry.registry import list_versions, show

if TYPE_CHECKING:
    from mlflow.entities import Run

PAGE = 1000


@dataclass(frozen=True)
class RecordedData:
    """The data of one finished run: its data tags without their prefix, and the prompt versions made in it with their aliases."""

    run_id: str
    recorded_at: str
    tags: Mapping[str, str]
    versions: Mapping[int, list[str]]


def recorded_data(*, root: Path, task: str) -> list[RecordedData]:
    """The finished runs of `task` that say which data they were made from, oldest first; none when nothing was ever recorded.

    Raises RegistryError when the store cannot be read.
    """
    if not has_store(root=root):
        return []
    connection = connect(root=root)
    with explained(f"Reading the runs of {task} in {connection.uri}", "Try again."):
        experiment = connection.client.get_experiment_by_name(task)
        runs = _finished_runs(connection, experiment.experiment_id) if experiment else []
        registered = bool(connection.client.search_registered_models(f"name = '{task}'"))
    versions = list_versions(root=root, task=task) if registered else []
    return [
        RecordedData(
            run_id=run.info.run_id,
            recorded_at=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
            tags=data_of(run.data.tags),
            versions={version["version"]: version["aliases"] for version in reversed(versions) if version["run_id"] == run.info.run_id},
        )
        for run in runs
        if f"{PREFIX}raw_md5" in run.data.tags
    ]


def data_of_version(*, root: Path, task: str, selector: str) -> Mapping[str, str]:
    """The data tags, without their prefix, of a version by number or alias; raises RegistryError when it was registered without them."""
    version = show(root=root, task=task, selector=selector)
    if "raw_md5" not in version["data"]:
        raise RegistryError(
            f"{task} version {version['version']} was registered without a record of its data. `promptmill data log {task}` lists the data versions."
        )
    return version["data"]


def _finished_runs(connection: Connection, experiment: str) -> list["Run"]:
    found: list[Run] = []
    token: str | None = None
    while True:
        page = connection.client.search_runs(
            [experiment], "attributes.status = 'FINISHED'", max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found
