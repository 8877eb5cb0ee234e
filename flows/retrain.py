"""The flow `retrain`: bring all stages of one task up to date, record, register, check, and promote what the gate let pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.states import Completed

from flows.approval import ask
from flows.reference import STAGE as REFERENCE
from flows.reference import reference_is_stale
from flows.source_file import STAGE as INGEST
from flows.source_file import source_changed
from flows.stage_process import StageRun
from flows.tasks import STAGE_SECONDS, check, promote, publish, record, register, spool, stage_task
from flows.terminal import duration, say
from pipeline.errors import ChampionChanged, RegistryUnreachable, StageFailed
from pipeline.layout import PARAMS_FILE, STAGES, Layout, find_root
from pipeline.params import load_task
from pipeline.registry.approval import needs_approval
from pipeline.registry.tracking import gate_evidence

NOT_PROMOTED, SPOOLED, WAITING = "NotPromoted", "Spooled", "WaitingForApproval"
NOTHING_REGISTERED = {"version": None, "run_id": None, "decision": None, "previous_champion": None}
COMPARISONS = 3  # how often a run compares again because another version became champion meanwhile


@flow(name="retrain", flow_run_name="retrain-{task}", persist_result=False)
def retrain(task: str, root: str = ".", stage_seconds: float = STAGE_SECONDS) -> dict[str, Any] | State[dict[str, Any]]:
    """Retrain one task of the checkout at or above `root`; `stage_seconds` is the time limit of each stage.

    The result is {task, version, run_id, decision, previous_champion}. When the gate refuses, or cannot
    decide (`ask`) and nobody is asked, the flow ends Completed with the name NotPromoted and the reasons as message; when a person is asked
    (`promotion.approval`), with the name WaitingForApproval. When another version became champion meanwhile it compares again.
    When MLflow does not answer once the stages are done, the record is spooled and the flow ends Completed with the name Spooled and without
    a version: `promptmill sync` delivers it. Raises StageFailed with a stage's own message, RegistryError or BundleError.
    """
    workspace = find_root(Path(root).resolve())
    for attempt in range(1, COMPARISONS + 1):
        run_stages(workspace, task, stage_seconds=stage_seconds, forced=stale_stages(workspace, task))
        try:
            recorded = record(workspace, task)
        except RegistryUnreachable as error:
            kept = spool(workspace, task)
            return Completed(name=SPOOLED, message=f"{error} The record waits in {kept}.", data={**NOTHING_REGISTERED, "task": task})
        version = register(workspace, task, recorded.run_id, recorded.stage_key)
        check(workspace, task, version)
        publish(workspace, task, version)
        try:
            return _decide(workspace, task, version, recorded.run_id)
        except ChampionChanged as error:
            if attempt == COMPARISONS:
                raise
            say(f"      {error} That is done now.")
    raise AssertionError("the last comparison returns or raises")


def _decide(root: Path, task: str, version: int, run_id: str) -> dict[str, Any] | State[dict[str, Any]]:
    """Do what the gate and `promotion.approval` say: promote, ask a person and end, or end."""
    gate = gate_evidence(Layout(root, task))
    result = {"task": task, "version": version, "run_id": run_id, "decision": gate.decision, "previous_champion": None}
    approval = load_task(root / PARAMS_FILE, task).promotion.approval
    if needs_approval(approval=approval, decision=gate.decision):
        ask(root, task, version)
        return Completed(name=WAITING, message=" ".join(gate.reasons) or "The gate let it pass; promotion.approval is manual.", data=result)
    if gate.decision != "promote":
        return Completed(name=NOT_PROMOTED, message=" ".join(gate.reasons), data=result)
    return {**result, "previous_champion": promote(root, task, version)["previous_champion"]}


def stale_stages(root: Path, task: str) -> list[str]:
    """The stages that must run again although DVC sees no change: it watches neither local source files nor the champion."""
    stale = [INGEST] if source_changed(root, task, load_task(root / PARAMS_FILE, task)) else []
    if stale:
        say("The source file is not the one that was read last, so it is read again.")
    return stale + ([REFERENCE] if reference_is_stale(root, task, forced=bool(stale)) else [])


def run_stages(
    root: Path,
    task: str,
    *,
    stages: Sequence[str] = tuple(stage.name for stage in STAGES),
    stage_seconds: float = STAGE_SECONDS,
    retry_delay_seconds: float = 10.0,
    forced: Sequence[str] = (),
) -> list[StageRun]:
    """Bring `stages` up to date one after the other, each as a Prefect task of its own; call it inside a flow.

    Those in `forced` run although DVC sees no change.
    """
    done: list[StageRun] = []
    for number, stage in enumerate(stages, 1):
        step = stage_task(stage, retry_delay_seconds=retry_delay_seconds, timeout_seconds=stage_seconds, force=stage in forced)
        try:
            done.append(step(root, task, f"[{number}/{len(stages)}] {stage}"))
        except TimeoutError as error:
            raise StageFailed(
                f"stage {stage} of {task}: stopped after {duration(stage_seconds)}, its time limit. Give it longer with --stage-timeout, or less to do."
            ) from error
    return done
