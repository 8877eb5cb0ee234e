"""The flow `run-stage`: what a worker of a work pool does with a stage it is given.

It reports by an artifact and not by its result: results lie in files, of which the other machine sees none.
"""

import logging
import os
import platform
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Crashed, Failed

from flows.dvc_remote import output_sha256, push
from flows.flow_runs import noted_run
from flows.remote_checkpoints import RemoteCheckpoints
from flows.stage_order import FLOW_NAME, StageAnswer, StageOrder, entry_outputs, scratch
from flows.stage_process import StageDied, run_stage
from flows.worker_workspace import entry_of, own_checkout, workspace_for
from flows.workspace import stage_address
from pipeline.errors import PromptmillError

WATCH_SECONDS = 1.0


@flow(name=FLOW_NAME, flow_run_name="{stage}-{task}", persist_result=False)
def run_stage_on_worker(
    task: str, stage: str, commit: str, params: dict[str, Any], inputs: list[str], entries: dict[str, Any], checkpoints: bool, force: bool
) -> State[Any] | None:
    """Run one stage at a commit in a workspace of this worker, push what it wrote, and leave its lock entry and hashes as an artifact.

    The parameters are those of `StageOrder`. A stage that fails fails the run with its own message; one whose process was killed crashes it, so that
    the flow that waits hands it out again.
    """
    order = StageOrder(task, stage, commit, params, inputs, entries, checkpoints, force)
    try:
        checkout = own_checkout()
        with noted_run(checkout, str(flow_run.get_id())), ended_with_the_worker():
            answer = carry_out(checkout, order, get_run_logger())
    except StageDied as error:
        return Crashed(message=str(error))
    except PromptmillError as error:
        return Failed(message=str(error))
    create_markdown_artifact(key=answer_key(str(flow_run.get_id())), markdown=answer.markdown(), description=f"{stage} of {task}")
    return None


def carry_out(checkout: Path, order: StageOrder, log: "logging.Logger | logging.LoggerAdapter[Any]") -> StageAnswer:
    """Run the stage in a workspace of `checkout` and push its outputs; raises StageFailed, StageDied or WorkspaceError."""
    with workspace_for(checkout, order) as folder:
        kept = RemoteCheckpoints(folder, order.task, order.stage, log.warning) if order.checkpoints else None
        place = scratch(folder, order.task, order.stage)
        for name in kept.fetch(place) if kept else ():
            log.info("fetched the checkpoint %s from the DVC remote", name)
        with kept.copying(place) if kept else nullcontext():
            screen = cast(BinaryIO, LoggedLines(log))
            done = run_stage(root=folder, task=order.task, stage=order.stage, screen=screen, force=order.force)
        entry = entry_of(folder, stage_address(order.stage, order.task))
        outputs = entry_outputs(entry)
        push(folder, outputs)
        if kept:
            kept.forget()
        return StageAnswer(entry, output_sha256(folder, outputs), done.outcome, done.seconds, platform.node())


def answer_key(run: str) -> str:
    """The key of the artifact that holds the answer of a flow run."""
    return f"stage-{run}"


@contextmanager
def ended_with_the_worker() -> Generator[None]:
    """Ask this process to end when its worker is killed inside the block: nobody else would end the stage, which holds the GPU."""
    worker, ended = os.getppid(), threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            if os.getppid() != worker:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class LoggedLines:
    """A screen for a stage's stderr whose lines become log lines of the run."""

    def __init__(self, log: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        self._log = log
        self._begun = b""

    def write(self, chunk: bytes) -> int:
        """Log every line that is complete."""
        *lines, self._begun = (self._begun + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in filter(bytes.strip, lines):
            self._log.info(line.decode("utf-8", errors="replace").rstrip())
        return len(chunk)

    def flush(self) -> None:
        """Lines are logged when they end."""

    def isatty(self) -> bool:
        """No bars: a line now and then."""
        return False
