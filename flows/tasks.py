"""The steps of the flows as Prefect tasks. DVC owns what is current, so Prefect caches and stores no result."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from prefect import State, Task, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.events.worker import EventsWorker
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker

from flows import metrics
from flows.dvc_state import LOCK_FILE
from flows.log_format import log_context
from flows.promotion_lock import shared_lock
from flows.remote_stage import run_on_pool
from flows.services import running, version_service
from flows.stage_process import StageDied, StageRun, run_stage
from flows.summary import artifact_key, contract_markdown, gate_rows, verdict_markdown
from flows.terminal import duration, say, screen_of
from pipeline.errors import RegistryError, WorkspaceError
from pipeline.layout import PARAMS_FILE, Layout
from pipeline.params import load_task
from pipeline.records import read_json
from pipeline.registry import promotion, registry, tracking
from pipeline.registry.check_version import ask, check_answers, rows_to_ask, verify_stored
from pipeline.registry.locks import person
from pipeline.registry.reference import champion_version
from pipeline.registry.spool import spool_run

STAGE_SECONDS = 6 * 3600.0
STAGE_RETRIES = 2
CHECK_SECONDS = 900.0
REGISTRY_RETRIES = 2
DRAIN_SECONDS = 10.0

OUTCOMES = {"unchanged": "unchanged, reused", "restored": "taken from DVC's cache", "run": "done"}

_uncached = partial(task, cache_policy=NO_CACHE, persist_result=False)


def stage_task(
    stage: str, *, retry_delay_seconds: float = 10.0, timeout_seconds: float = STAGE_SECONDS, force: bool = False, pool: str | None = None
) -> Task[[Path, str, str], StageRun]:
    """The Prefect task that brings one stage up to date; it is tried again only when its process died without a message.

    With `force` the stage runs although DVC sees no change. With `pool` a worker of that work pool runs it, under the limits of the section execution.
    """

    @_uncached(
        name=stage,
        task_run_name=f"{stage}-{{name}}",
        retries=STAGE_RETRIES,
        retry_delay_seconds=retry_delay_seconds,
        retry_condition_fn=_died,
        timeout_seconds=None if pool else timeout_seconds,
    )
    def bring_up_to_date(root: Path, name: str, header: str) -> StageRun:
        logger = get_run_logger()
        with log_context(task=name, stage=stage):
            say(header)
            try:
                if pool is None:
                    with screen_of(stage) as screen:
                        done = run_stage(root=root, task=name, stage=stage, screen=screen, force=force)
                else:
                    execution = load_task(root / PARAMS_FILE, name).execution
                    done = run_on_pool(root=root, task=name, stage=stage, pool=pool, execution=execution, force=force)
            except StageDied as error:
                say(f"      {error}")
                raise
            line = f"{OUTCOMES[done.outcome]} ({duration(done.seconds)})"
            say(f"      {line}")
            logger.info("%s: %s", stage, line)
        if done.outcome == "run":
            metrics.stage_ran(root, name, stage, done.seconds)
        return done

    return bring_up_to_date


def _died(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), StageDied)


def _step(line: str) -> Callable[[str], None]:
    """Say what a step is about to do, and get the function that says how it went and how long that took."""
    say(line)
    started = time.monotonic()

    def finish(outcome: str) -> None:
        say(f"      {outcome} ({duration(time.monotonic() - started)})")
        get_run_logger().info(outcome)

    return finish


@_uncached(name="record the run", task_run_name="record the run", retries=REGISTRY_RETRIES, retry_delay_seconds=5)
def record(root: Path, name: str) -> tracking.RecordedRun:
    """Record the task's outputs as a run in MLflow, or find the run that holds them."""
    finish = _step("[record] the run, in MLflow")
    params = load_task(root / PARAMS_FILE, name)
    recorded = tracking.record_run(root=root, task=name, params=params, layout=Layout(root, name), lock=root / LOCK_FILE)
    finish(f"run {recorded.run_id} {'was already recorded' if recorded.reused else 'recorded'}")
    return recorded


@_uncached(name="spool the record", task_run_name="spool the record")
def spool(root: Path, name: str) -> str:
    """Keep the record of the run until MLflow answers again; returns its folder."""
    finish = _step("[spool] the record: MLflow does not answer")
    params = load_task(root / PARAMS_FILE, name)
    folder = spool_run(root=root, task=name, params=params, layout=Layout(root, name), lock=root / LOCK_FILE)
    finish(f"kept in {folder.relative_to(root)}")
    return str(folder)


@_uncached(name="register the version", task_run_name="register the version", retries=REGISTRY_RETRIES, retry_delay_seconds=5)
def register(root: Path, name: str, run_id: str, stage_key: str) -> int:
    """Register the tuned prompt as a version with the alias challenger, whatever the gate decided; its tags say what."""
    finish = _step("[register] the tuned prompt")
    version = registry.register_version(root=root, task=name, run_id=run_id, layout=Layout(root, name), stage_key=stage_key)
    finish(f"{name} version {version}, challenger")
    return version


@_uncached(name="check the version", task_run_name="check the version", timeout_seconds=CHECK_SECONDS)
def check(root: Path, name: str, version: int) -> None:
    """Serve the registered version in a fresh process and let it answer rows of the test split; raises RegistryError or BundleError when it does not.

    That guards the champion's alias, so a version that has it already is not served: every load of it is verified anyway.
    """
    finish = _step(f"[check] {name} version {version} answers in a fresh process")
    champion, _ = champion_version(root=root, task=name) or (None, None)
    if champion == version:
        finish("not asked again: it is champion already, so no alias moves")
        return
    rows = rows_to_ask(root=root, task=name)
    verify_stored(root=root, task=name, version=version)
    try:
        with running([version_service(root, name, version)]) as (server,):
            answers = ask(server.service.url, rows)
    except WorkspaceError as error:
        raise RegistryError(f"{error} Do not promote it; register it again.") from error
    check_answers(f"{name} version {version}", rows, answers)
    finish(f"{len(answers)} rows answered: {[answer.get('label', answer.get('answer')) for answer in answers]}")


@_uncached(name="promote", task_run_name="promote")
def promote(root: Path, name: str, version: int) -> dict[str, Any]:
    """Make the version champion unless another became champion since it was compared; returns `pipeline.registry.promotion.promote`'s record."""
    finish = _step(f"[promote] {name} version {version}")
    by = f"the flow retrain, run by {person()}"
    record = promotion.promote(root=root, task=name, version=version, expected="compared", by=by, lock=shared_lock())
    finish("it already was champion" if record["already_champion"] else "it is champion now")
    return record


@_uncached(name="publish the verdict", task_run_name="publish the verdict")
def publish(root: Path, name: str, version: int) -> None:
    """Put the gate's checks, its verdict and what the data contract found on the Prefect page of this run."""
    layout = Layout(root, name)
    gate, metrics = read_json(layout.path("gate")), read_json(layout.path("metrics"))
    create_table_artifact(key=artifact_key("gate", name), table=gate_rows(gate), description=f"Gate of {name} version {version}")
    create_markdown_artifact(key=artifact_key("verdict", name), markdown=verdict_markdown(name, version, gate, metrics))
    create_markdown_artifact(key=artifact_key("data", name), markdown=contract_markdown(name, read_json(layout.path("data_report"))))


def send_what_is_queued() -> None:
    """Let the server have the last log lines and states of this process before it is stopped."""
    APILogWorker.drain_all(timeout=DRAIN_SECONDS)
    EventsWorker.drain_all(timeout=DRAIN_SECONDS)
