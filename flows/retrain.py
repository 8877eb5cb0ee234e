"""The flow `retrain`: bring all stages of one task up to date, record, register, check, and promote what the gate let pass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.context import TagsContext
from prefect.states import Completed

from flows.approval import ask
from flows.base_model import STAGES_ON_IT, base_model_changed
from flows.events import REFUSED, announce, announce_champion, where_to_read
from flows.handled import handled_version
from flows.log_format import format_libraries, log_context
from flows.metrics import observed_run
from flows.reference import STAGE as REFERENCE
from flows.reference import reference_is_stale
from flows.source_file import STAGE as INGEST
from flows.source_file import source_changed
from flows.stage_process import StageRun
from flows.status import write_metrics
from flows.tasks import STAGE_SECONDS, check, promote, publish, record, register, spool, stage_task
from flows.terminal import duration, say
from pipeline.errors import ChampionChanged, RegistryUnreachable, StageFailed, StagesWait
from pipeline.layout import PARAMS_FILE, STAGES, Layout, find_root, stages_after
from pipeline.params import load_task
from pipeline.registry.approval import needs_approval
from pipeline.registry.connection import answers, tracking_uri
from pipeline.registry.tracking import gate_evidence
from pipeline.registry.uncommitted import reason_against

NOT_PROMOTED, SPOOLED, WAITING, UNCHANGED, TRIED = "NotPromoted", "Spooled", "WaitingForApproval", "Unchanged", "Tried"
NOTHING_REGISTERED = {"version": None, "run_id": None, "decision": None, "previous_champion": None}
COMPARISONS = 3  # how often a run compares again because another version became champion meanwhile


@flow(name="retrain", flow_run_name="retrain-{task}", persist_result=False)
def retrain(
    task: str,
    root: str = ".",
    stage_seconds: float = STAGE_SECONDS,
    refresh: bool = False,
    unless_unchanged: bool = False,
    trial: bool = False,
) -> dict[str, Any] | State[dict[str, Any]]:
    """Retrain one task of the checkout at or above `root`; `stage_seconds` is the time limit of each stage.

    `refresh` reads the source again first, whatever it is. With `unless_unchanged` the flow ends Completed with the name Unchanged when neither data nor params nor code
    differ from those of a version that needs nothing more. A `trial` ends Completed with the name Tried: the version stays challenger whatever the gate says, and nobody is asked or told.

    The result is {task, version, run_id, decision, previous_champion}. When the gate refuses, or cannot
    decide (`ask`) and nobody is asked, or uncommitted changes stand against it, the flow ends Completed with the name NotPromoted and the reasons as message; when a person is asked
    (`promotion.approval`), with the name WaitingForApproval. When another version became champion meanwhile it compares again.
    When MLflow does not answer once the stages are done, the record is spooled and the flow ends Completed with the name Spooled and without
    a version: `promptmill sync` delivers it. When it does not answer the stage `reference`, all stages that do not depend on that one are
    brought up to date, and StagesWait is raised. Raises StageFailed with a stage's own message, RegistryError or BundleError.
    """
    format_libraries()
    workspace = find_root(Path(root).resolve())
    # Prefect asks the server before each tagged task whether its tags are limited, which takes seconds; the flow run keeps the tags, its tasks need none.
    with log_context(task=task), TagsContext(current_tags=set()):
        with observed_run(workspace, task):
            state = _bring_up_to_date(workspace, task, stage_seconds, refresh=refresh, unless_unchanged=unless_unchanged, trial=trial)
        write_metrics(workspace, task)
    return state


def _bring_up_to_date(
    workspace: Path, task: str, stage_seconds: float, *, refresh: bool, unless_unchanged: bool, trial: bool
) -> dict[str, Any] | State[dict[str, Any]]:
    if refresh:
        run_stages(workspace, task, stages=[INGEST], stage_seconds=stage_seconds, forced=[INGEST])
    if unless_unchanged and not changed_outside(workspace, task):
        version = handled_version(workspace, task)
        if version is not None:
            return _unchanged(task, version)
    for attempt in range(1, COMPARISONS + 1):
        pools = load_task(workspace / PARAMS_FILE, task).execution.pools()
        run_stages(workspace, task, stage_seconds=stage_seconds, forced=stale_stages(workspace, task), pools=pools)
        try:
            recorded = record(workspace, task)
        except RegistryUnreachable as error:
            kept = spool(workspace, task)
            return Completed(name=SPOOLED, message=f"{error} The record waits in {kept}.", data={**NOTHING_REGISTERED, "task": task})
        version = register(workspace, task, recorded.run_id, recorded.stage_key)
        try:
            with log_context(version=version):
                check(workspace, task, version)
                publish(workspace, task, version)
                return decide(workspace, task, version, recorded.run_id, trial=trial)
        except ChampionChanged as error:
            if attempt == COMPARISONS:
                raise
            say(f"      {error} That is done now.")
    raise AssertionError("the last comparison returns or raises")


def decide(root: Path, task: str, version: int, run_id: str, *, trial: bool = False) -> dict[str, Any] | State[dict[str, Any]]:
    """Do what the gate and `promotion.approval` say: promote, ask a person and end, or end."""
    gate = gate_evidence(Layout(root, task))
    result = {"task": task, "version": version, "run_id": run_id, "decision": gate.decision, "previous_champion": None}
    if trial:
        said = f"Tried only, so it stays challenger; the gate's verdict is {gate.decision}."
        return Completed(name=TRIED, message=" ".join([said, *gate.reasons]), data=result)
    uncommitted = None if gate.decision == "refuse" else reason_against(root=root, task=task, version=version)
    if uncommitted:
        return Completed(name=NOT_PROMOTED, message=uncommitted, data=result)
    approval = load_task(root / PARAMS_FILE, task).promotion.approval
    if needs_approval(approval=approval, decision=gate.decision):
        ask(root, task, version)
        return Completed(name=WAITING, message=" ".join(gate.reasons) or "The gate let it pass; promotion.approval is manual.", data=result)
    if gate.decision != "promote":
        lines = [*gate.reasons, *where_to_read(root, task, version, run_id)]
        announce(REFUSED, task, subject=f"{task} version {version} was not promoted", lines=lines, details={"version": version})
        return Completed(name=NOT_PROMOTED, message=" ".join(gate.reasons), data=result)
    promoted = promote(root, task, version)
    announce_champion(root, promoted, why="The gate let it pass.", run_id=run_id)
    return {**result, "previous_champion": promoted["previous_champion"]}


def _unchanged(task: str, version: dict[str, Any]) -> State[dict[str, Any]]:
    """The end of a run that has nothing to do, and says so."""
    said = f"Neither data nor params nor code of {task} changed since version {version['version']}, so nothing was retrained."
    say(said)
    result = {
        **NOTHING_REGISTERED,
        "task": task,
        "version": version["version"],
        "run_id": version["run_id"],
        "decision": version["gate_decision"],
    }
    return Completed(name=UNCHANGED, message=said, data=result)


def changed_outside(root: Path, task: str) -> bool:
    """Whether the local source file or the base model's files are others than those of the last run, which DVC does not see."""
    params = load_task(root / PARAMS_FILE, task)
    return source_changed(root, task, params) or base_model_changed(root, task, params)


def stale_stages(root: Path, task: str) -> list[str]:
    """The stages that must run again although DVC sees no change: it watches neither local source files, nor a base model's files, nor the champion."""
    params = load_task(root / PARAMS_FILE, task)
    stale = [INGEST] if source_changed(root, task, params) else []
    if stale:
        say("The source file is not the one that was read last, so it is read again.")
    if base_model_changed(root, task, params):
        say("The base model's weights are not those of the last run, so the stages that load it run again.")
        stale += STAGES_ON_IT
    return stale + ([REFERENCE] if reference_is_stale(root, task, forced=bool(stale)) else [])


def run_stages(
    root: Path,
    task: str,
    *,
    stages: Sequence[str] = tuple(stage.name for stage in STAGES),
    stage_seconds: float = STAGE_SECONDS,
    retry_delay_seconds: float = 10.0,
    forced: Sequence[str] = (),
    pools: Mapping[str, str] | None = None,
) -> list[StageRun]:
    """Bring `stages` up to date one after the other, each as a Prefect task of its own; call it inside a flow.

    Those in `forced` run although DVC sees no change; those in `pools` on a worker of that work pool. Raises StageFailed, and StagesWait once all is
    done that needs no MLflow.
    """
    pools = pools or {}
    done: list[StageRun] = []
    waiting: list[str] = []
    for number, stage in enumerate(stages, 1):
        if stage in waiting:
            continue
        step = stage_task(
            stage, retry_delay_seconds=retry_delay_seconds, timeout_seconds=stage_seconds, force=stage in forced, pool=pools.get(stage)
        )
        try:
            done.append(step(root, task, f"[{number}/{len(stages)}] {stage}"))
        except TimeoutError as error:
            raise StageFailed(
                f"stage {stage} of {task}: stopped after {duration(stage_seconds)}, its time limit. Give it longer with --stage-timeout, or less to do."
            ) from error
        except StageFailed:
            if stage != REFERENCE or answers(root=root):
                raise
            waiting = [stage, *(later for later in stages_after(stage) if later in stages)]
            say(f"      MLflow at {tracking_uri(root=root)} does not answer: {', '.join(waiting)} wait, the others go on.")
    if waiting:
        raise StagesWait(
            f"MLflow at {tracking_uri(root=root)} does not answer, and it is asked what this run is compared with. The other stages are done and kept; "
            f"{', '.join(waiting)} wait. When it answers: `promptmill run {task}`."
        )
    return done
