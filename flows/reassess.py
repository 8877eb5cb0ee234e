"""The flow `reassess`: read a task's data again, and say whether its champion still does on it what the gate asks. Events tell what changed.

It trains nothing and registers nothing. Events start a retraining where `deployment.triggers` says so.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect import State, flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from flows.base_model import why_other
from flows.clones import link_outside, outside_paths
from flows.events import BASE_MODEL_CHANGED, CHAMPION_BELOW_LIMITS, DATA_CHANGED, DATA_DRIFTED, announce, where_to_read
from flows.process_group import process_group
from flows.reference import STAGE as REFERENCE
from flows.reference import reference_is_stale
from flows.retrain import run_stages
from flows.settings import log_file, state_folder
from flows.source_file import STAGE as INGEST
from flows.stage_process import stage_environment
from flows.summary import artifact_key, gate_rows
from flows.tasks import STAGE_SECONDS
from flows.terminal import say
from pipeline.errors import StageFailed, StageInputError
from pipeline.layout import PARAMS_FILE, Layout, find_root, stage_named
from pipeline.params import TaskParams, load_task
from pipeline.reassessment import STAGES as MEASURING
from pipeline.reassessment import judge
from pipeline.records import checksum_file, read_json, verify_parquet, write_json, write_jsonl
from pipeline.registry.connection import has_store
from pipeline.registry.reference import BUNDLE_FOLDER, fetch_champion
from pipeline.stages import tune_lora
from pipeline.stages.score_champion import why_not

DATA_STAGES = ("ingest", "validate", "split", "profile", REFERENCE, "drift")
READ = ("train", "validation", "test")
NO_CHAMPION, BELOW, UNDECIDED, NOT_COMPARABLE = "NoChampion", "BelowLimits", "Undecided", "NotComparable"
STATE_NAMES = {"below": BELOW, "undecided": UNDECIDED}


@flow(name="reassess", flow_run_name="reassess-{task}", persist_result=False)
def reassess(task: str, root: str = ".", stage_seconds: float = STAGE_SECONDS) -> dict[str, Any] | State[dict[str, Any]]:
    """Reassess the champion of `task` on the data as it is now, in the checkout at or above `root`.

    The result is {task, version, verdict, reasons, checks, n, data_changed, drifted, base_model}; it is kept in `.promptmill/reassessments/<task>.json`. A champion below its limits ends
    the flow Completed with the name BelowLimits; where the rows cannot decide, Undecided; without a champion, NoChampion; when it cannot answer the task as it is now
    (other labels, fields or base model), NotComparable. Raises StageFailed with a stage's own message, RegistryError or BundleError.
    """
    workspace = find_root(Path(root).resolve())
    params = load_task(workspace / PARAMS_FILE, task)
    before = _data_version(workspace, task)
    forced = [INGEST, *([REFERENCE] if reference_is_stale(workspace, task, forced=False) else [])]
    run_stages(workspace, task, stages=DATA_STAGES, stage_seconds=stage_seconds, forced=forced)
    found: dict[str, Any] = {"task": task, "version": None, "verdict": None, "reasons": [], "checks": [], "n": None}
    found |= {"data_changed": _tell_of_data(workspace, task, before), "drifted": _tell_of_drift(workspace, task), "base_model": None}
    found |= measure(workspace, task, params)
    write_json(record_path(workspace, task), found)
    return _ended(found)


def record_path(root: Path, task: str) -> Path:
    """Where the last reassessment of a task is kept."""
    return state_folder(root) / "reassessments" / f"{task}.json"


@task(name="measure the champion", task_run_name="measure the champion", cache_policy=NO_CACHE, persist_result=False)
def measure(root: Path, name: str, params: TaskParams) -> dict[str, Any]:
    """Score the champion on the present test split in a folder of its own, and judge it: {version, verdict, reasons, checks, n, base_model}."""
    folder = state_folder(root) / "reassess" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        champion = fetch_champion(root=root, task=name, destination=folder / "champion") if has_store(root=root) else {"version": None}
        if champion["version"] is None:
            return {"verdict": None, "reasons": ["there is no champion"]}
        version = int(champion["version"])
        manifest = read_json(folder / "champion" / BUNDLE_FOLDER / "manifest.json")
        other = why_other(manifest.get("base_model", {}), params, root)
        if other:
            announce(BASE_MODEL_CHANGED, name, subject=f"{name}: another base model", lines=[f"Version {version}: {other}."])
        reason = other or (why_not(manifest, params) if params.prompt.labels else None)
        if reason:
            return {"version": version, "verdict": "not_comparable", "reasons": [reason], "base_model": other}
        say(f"[measure] {name} version {version} on the present test split")
        judged = _score(root, name, params, folder)
        create_table_artifact(
            key=artifact_key("reassessed", name), table=gate_rows(judged), description=f"{name} version {version}: {judged['verdict']}"
        )
        if judged["verdict"] == "below":
            _tell_below(root, name, version, judged["reasons"])
        return {"version": version, **judged}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _score(root: Path, name: str, params: TaskParams, folder: Path) -> dict[str, Any]:
    """Run the measuring stages on the champion's bundle below `folder`, where DVC knows nothing of them."""
    here, there = Layout(root, name), Layout(folder, name)
    shutil.copyfile(root / PARAMS_FILE, folder / PARAMS_FILE)
    for path in (here.path(split) for split in READ):
        for file in (path, checksum_file(path)):
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    there.path("bundle").parent.mkdir(parents=True, exist_ok=True)
    (folder / "champion" / BUNDLE_FOLDER).rename(there.path("bundle"))
    link_outside(root, folder, outside_paths(params.base_model.source.model_dump(), {}))
    _stand_ins(here, there, params)
    for stage in MEASURING:
        _run(root, name, stage, folder)
    return judge(params, there)


def _stand_ins(here: Layout, there: Layout, params: TaskParams) -> None:
    """What the measuring stages read besides: a LoRA baseline as the checkout has it, no log of a training, and no champion beside the one that is measured."""
    write_jsonl(there.path("train_log"), [])
    nothing = {"version": None, "comparable": False, "reason": "the champion itself is measured"}
    write_json(there.path("champion_report"), {"task": there.path("lora").name, **nothing})
    if params.lora_baseline.enabled:
        there.path("lora").parent.mkdir(parents=True, exist_ok=True)
        there.path("lora").symlink_to(here.path("lora"))
    else:
        stage = stage_named("tune_lora")
        tune_lora.run(params=params, inputs=there.inputs(stage), outputs=there.outputs(stage))


def _run(root: Path, name: str, stage: str, folder: Path) -> None:
    log = log_file(root, name, f"reassess-{stage}")
    command = (sys.executable, "-m", "pipeline", stage, "--task", name)
    environment = stage_environment(live=False)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(root), environment.get("PYTHONPATH", "")))
    )  # the checkout's own code, as DVC runs it
    with (
        log.open("wb") as stream,
        process_group(command, folder=folder, environment=environment, stdout=stream, stderr=subprocess.STDOUT) as process,
    ):
        code = process.wait()
    if code != 0:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = lines[-1].removeprefix("error: ") if lines else "nothing was printed"
        raise StageFailed(f"Reassessing {name}: {last} All that was printed is in {log}.")


def _tell_of_data(root: Path, name: str, before: str | None) -> bool:
    now = _data_version(root, name)
    if before is None or now == before:
        return False
    lines = [f"Data version {str(now)[:8]} (before: {before[:8]})."]
    announce(DATA_CHANGED, name, subject=f"{name}: new data", lines=lines, details={"before": before, "after": now})
    return True


def _tell_of_drift(root: Path, name: str) -> bool:
    record = read_json(Layout(root, name).path("drift"))
    if record.get("verdict") != "FAIL":
        return False
    failed = [f"{check['name']}: {check['sentence']}" for check in record.get("checks", []) if check["verdict"] == "FAIL"]
    announce(DATA_DRIFTED, name, subject=f"{name}: the data drifted", lines=failed)
    return True


def _tell_below(root: Path, name: str, version: int, reasons: list[str]) -> None:
    lines = [*reasons, *where_to_read(root, name, version)]
    subject = f"{name}: champion version {version} is below its limits"
    announce(CHAMPION_BELOW_LIMITS, name, subject=subject, lines=lines, details={"version": version})


def _data_version(root: Path, name: str) -> str | None:
    try:
        return verify_parquet(Layout(root, name).path("raw"))
    except StageInputError:
        return None


def _ended(found: dict[str, Any]) -> dict[str, Any] | State[dict[str, Any]]:
    verdict, message = found["verdict"], " ".join(found["reasons"])
    say(f"      {found['task']}: {verdict or 'no champion'}{': ' + message if message else ''}")
    if verdict == "within":
        return found
    name = NO_CHAMPION if verdict is None else STATE_NAMES.get(verdict, NOT_COMPARABLE)
    return Completed(name=name, message=message, data=found)
