"""A stage on a worker of a work pool, seen from the flow: hand it out, wait for it, merge its lock entry, pull its outputs and verify them."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from httpx import TransportError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import Cancelling, Crashed

from flows.dvc_remote import output_sha256, pull, push
from flows.dvc_state import LOCK_FILE
from flows.run_stage import answer_key
from flows.stage_order import FLOW_NAME, StageAnswer, input_paths, make_order
from flows.stage_process import StageRun
from flows.terminal import duration, say
from flows.workspace import changed_stages, stage_address, write_lock
from pipeline.errors import StageFailed, WorkspaceError
from pipeline.params import ExecutionParams
from pipeline.records import replacing_file
from pipeline.registry.tracking import read_lock

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, Worker

T = TypeVar("T")

POLL_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between two looks at the worker
SERVER_SECONDS = 600.0  # how long a server that does not answer is waited for
END_SECONDS = 60.0  # how long a cancelled stage is waited for


@dataclass
class Handed:
    """A stage that was handed out: the flow run, and when it was last seen to wait or run (seconds of the monotonic clock)."""

    run: UUID
    pool: str
    task: str
    stage: str
    handed: float = field(default_factory=time.monotonic)
    begun: float | None = None
    looked: float = 0.0

    @property
    def what(self) -> str:
        """For messages."""
        return f"stage {self.stage} of {self.task} on the work pool {self.pool}"


def run_on_pool(*, root: Path, task: str, stage: str, pool: str, execution: ExecutionParams, force: bool = False) -> StageRun:
    """Bring a stage of the checkout `root` up to date on a worker of `pool`; call it inside a flow. Whatever ends this call cancels what the worker does.
    The seconds of the result are the stage's own on the worker, without waiting for it and without the way of the files.

    A stage whose worker dies is handed out again, `execution.restarts` times. Raises WorkspaceError when it cannot be handed out, or what came back does not fit
    this checkout, StageFailed with the worker's own message.
    """
    started = time.monotonic()
    if not force and not changed_stages(root, task, (stage,)):
        return StageRun("unchanged", time.monotonic() - started)
    order = make_order(root, task, stage, checkpoints=execution.remote_checkpoints and stage == "tune", force=force)
    push(root, input_paths(task, stage))
    with get_client(sync_client=True) as client:
        deployment = _deployment(client, pool, stage)
        attempt, state = 1, None
        while True:
            handed = Handed(_hand_out(deployment, order.parameters(), f"{stage}-{task}"), pool, task, stage)
            state = _follow(client, handed, execution)
            if not state.is_crashed() or attempt > execution.restarts:
                break
            say(f"      {handed.what}: {_sentence(state.message or 'its worker died')} It is handed out again.")
            attempt += 1
        if not state.is_completed():
            raise StageFailed(_failure(handed, state, attempt))
        answer = _answer(client, handed)
    accept(root, task, stage, answer)
    say(f"      handing it to {answer.machine} and back took {duration(time.monotonic() - started - answer.seconds)}")
    return StageRun(answer.outcome, answer.seconds)


def accept(root: Path, task: str, stage: str, answer: StageAnswer) -> None:
    """Merge a worker's lock entry into dvc.lock, pull the outputs and verify their sha256; on an error dvc.lock is as before.

    Raises WorkspaceError when the bytes are not those that the worker wrote, or DVC would run the stage again here.
    """
    lock = root / LOCK_FILE
    before = lock.read_bytes()
    try:
        write_lock(lock, {**read_lock(lock), stage_address(stage, task): answer.entry})
        pull(root, answer.outputs)
        found = output_sha256(root, answer.outputs)
        different = sorted(name for name in {*found, *answer.sha256} if found.get(name) != answer.sha256.get(name))
        if different:
            name = different[0]
            raise WorkspaceError(
                f"{name} is not what the worker {answer.machine} wrote: its sha256 here is {found.get(name)}, there it was {answer.sha256.get(name)} "
                f"({len(different)} of {len(found)} files differ). The DVC remote or the cache was altered: `promptmill data repair {task}`, and see docs/data.md."
            )
        if changed_stages(root, task, (stage,)):
            raise WorkspaceError(
                f"stage {stage} of {task} was run on {answer.machine} with other code, params or inputs than this checkout has (`dvc status "
                f"{stage_address(stage, task)}` says which). Were files changed here meanwhile? Commit, and run again."
            )
    except BaseException:
        with replacing_file(lock) as temporary:
            temporary.write_bytes(before)
        raise


def _deployment(client: SyncPrefectClient, pool: str, stage: str) -> UUID:
    """The id of the pool's deployment; raises WorkspaceError saying what to start. A pool without a worker is said: the stage waits for one."""
    try:
        found = client.read_deployment_by_name(f"{FLOW_NAME}/{pool}")
    except ObjectNotFound:
        raise WorkspaceError(
            f"execution.{stage} names the work pool {pool!r}, and {client.api_url} has no deployment {FLOW_NAME}/{pool}. Start a worker, which makes both: "
            f"`promptmill worker {pool}` in a clone on the machine with the GPU, with the same PREFECT_API_URL."
        ) from None
    if not _listening(_patiently(lambda: client.read_workers_for_work_pool(pool))):
        say(f"      No worker is listening on the work pool {pool}: waiting for one (`promptmill worker {pool}`).")
    return found.id


def _hand_out(deployment: UUID, parameters: dict[str, Any], name: str) -> UUID:
    run: Any = _patiently(lambda: run_deployment(deployment, parameters=parameters, timeout=0, flow_run_name=name))
    return run.id


def _follow(client: SyncPrefectClient, handed: Handed, execution: ExecutionParams) -> Any:
    """The final state of the run. It is cancelled when a time limit passes, or when this wait itself is ended."""
    with _cancelled_with_us(client, handed):
        while True:
            run = _patiently(lambda: client.read_flow_run(handed.run))
            state = run.state
            if state is not None and state.is_final():
                return state
            if state is not None and state.is_running() and handed.begun is None:
                handed.begun = time.monotonic()
                say(f"      running on {_worker_name(run) or 'a worker'} of the work pool {handed.pool}")
            _check_limits(handed, execution)
            _check_own_run(client, handed)
            _bury_if_lost(client, handed, run)
            time.sleep(POLL_SECONDS)


def _check_limits(handed: Handed, execution: ExecutionParams) -> None:
    now = time.monotonic()
    if handed.begun is None and now - handed.handed > execution.start_seconds:
        raise StageFailed(
            f"{handed.what}: no worker took it within {duration(execution.start_seconds)} (execution.start_seconds). Start one with `promptmill worker {handed.pool}`, "
            f"or look at the deployment {FLOW_NAME}/{handed.pool}: the pool may be paused or full."
        )
    if handed.begun is not None and now - handed.begun > execution.stage_seconds:
        raise StageFailed(f"{handed.what}: stopped after {duration(execution.stage_seconds)}, its time limit (execution.stage_seconds).")


def _check_own_run(client: SyncPrefectClient, handed: Handed) -> None:
    """Raise StageFailed when somebody cancels the flow that waits; where no worker runs it, nobody else would tell it."""
    own = flow_run.get_id()
    state = None if own is None else _patiently(lambda: client.read_flow_run(UUID(own))).state
    if state is not None and (state.is_cancelling() or state.is_cancelled()):
        raise StageFailed(f"{handed.what}: the run was cancelled.")


def _bury_if_lost(client: SyncPrefectClient, handed: Handed, run: "FlowRun") -> None:
    """Set a run to Crashed whose worker has stopped to send heartbeats: machine or network are gone, and nobody else will say so."""
    name = _worker_name(run)
    if name is None or time.monotonic() - handed.looked < LOOK_SECONDS:
        return
    handed.looked = time.monotonic()
    workers = {worker.name: worker for worker in _patiently(lambda: client.read_workers_for_work_pool(handed.pool))}
    if name in workers and not _listening([workers[name]]):
        message = f"The worker {name} sends no heartbeat any more."
        _patiently(lambda: client.set_flow_run_state(handed.run, Crashed(message=message), force=True))


def _listening(workers: "list[Worker]") -> bool:
    return any(worker.status == "ONLINE" for worker in workers)


def _worker_name(run: "FlowRun") -> str | None:
    name = run.labels.get("prefect.worker.name")
    return None if name is None else str(name)


@contextmanager
def _cancelled_with_us(client: SyncPrefectClient, handed: Handed) -> Generator[None]:
    """Cancel the run when the block is left by an error, and wait for the worker to say that it has ended."""
    try:
        yield
    except BaseException:
        _patiently(lambda: client.set_flow_run_state(handed.run, Cancelling()), seconds=END_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            state = client.read_flow_run(handed.run).state
            if state is not None and state.is_final():
                raise
            time.sleep(POLL_SECONDS)
        say(f"      {handed.what}: it was asked to end {END_SECONDS:g} s ago and its worker has not said that it did.")
        raise


def _sentence(text: str) -> str:
    return text.strip().rstrip(".") + "."


def _failure(handed: Handed, state: Any, attempts: int) -> str:
    message = str(state.message or "it left no message")
    if state.is_cancelled():
        return f"{handed.what}: somebody cancelled its flow run {handed.run}."
    if state.is_crashed():
        return f"{handed.what}: it died {attempts} times, the last time with: {_sentence(message)} What it printed is on the page of its flow run {handed.run}."
    return message if message.startswith("stage ") else f"{handed.what}: {message}"


def _answer(client: SyncPrefectClient, handed: Handed) -> StageAnswer:
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[handed.run]), key=ArtifactFilterKey(any_=[answer_key(str(handed.run))])
    )
    found = _patiently(lambda: client.read_artifacts(artifact_filter=wanted))
    if not found:
        raise StageFailed(
            f"{handed.what}: the flow run {handed.run} completed without an answer. Its worker may have another version of promptmill."
        )
    return StageAnswer.of_markdown(str(found[-1].data))


def _patiently(call: Callable[[], T], seconds: float = SERVER_SECONDS) -> T:
    """The result of a call to the Prefect server, which may be restarted meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except TransportError:
            if time.monotonic() > deadline:
                raise
        except PrefectHTTPStatusError as error:
            if error.response.status_code < 500 or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
