"""The record of a run in MLflow: params, metrics, training curve, data hashes and files of one pass through the stages.

Recording is idempotent: a run is identified by its stage key, the hash of what dvc.lock says about the task's stages, and a
finished run with that key is reused. A run counts as finished only once everything is in it.
"""

import json
import math
import platform
import re
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import RegistryError, StageInputError
from pipeline.evaluation.figures import flat_estimates
from pipeline.layout import PARAMS_FILE, STAGES, Layout
from pipeline.lineage import code_diff, code_identity
from pipeline.manifest import manifest_sha256, verify_bundle
from pipeline.params import TaskParams
from pipeline.records import read_json, read_jsonl, sha256_file, sha256_json
from pipeline.registry.connection import Connection, artifacts_folder, connect, explained, reachable, task_lock
from pipeline.registry.data_identity import data_tags

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

STAGE_KEY = "promptmill.stage_key"
RECORDER = "promptmill.recorder"
DATA_PROFILE_SHA256 = "promptmill.data_profile_sha256"
PROFILE_FOLDER = "profile"
GIT_COMMIT, DIRTY, DIFF_SHA256 = "promptmill.git_commit", "promptmill.dirty", "promptmill.diff_sha256"
RUN_NAME_DIGITS = 8  # of the stage key: two runs of one name are one pass through the stages
CODE_DIFF = "code.diff"  # the artifact with the changes that were not committed

# MLflow's limits (mlflow/utils/validation.py); a dataset digest cannot hold a whole sha256, so the source holds it.
MAXIMUM_KEY, MAXIMUM_PARAM, PARAMS_PER_BATCH, METRICS_PER_BATCH, DIGEST_CHARACTERS = 250, 6000, 100, 1000, 36

_FILES = (
    "ingest_report",
    "data_report",
    "split_report",
    "leakage",
    "drift",
    "train_log",
    "virtual_tokens",
    "score_report",
    "metrics",
    "comparison",
    "fairness",
    "probe_report",
    "behaviour",
    "gate",
    "card",
    "model_card",
)
_FOLDERS = {
    "bundle": "bundle",
    "plots": "plots",
    "pictures": "pictures",
    "data_docs": "data_docs",
    "data_profile": PROFILE_FOLDER,
    "profile_arrays": PROFILE_FOLDER,
}
_CONTEXTS = {"train": "training", "validation": "validation", "test": "testing"}
_AGAIN = "Run `dvc repro` for this task again."


@dataclass(frozen=True)
class RecordedRun:
    """A finished MLflow run; `reused` when an earlier recording of the same stage key already existed."""

    run_id: str
    reused: bool
    stage_key: str


@dataclass(frozen=True)
class GateEvidence:
    """What gate.json decided, with the sha256 of the file that says so."""

    decision: str
    reasons: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Content:
    """Everything a run will hold, read and checked before the run is begun."""

    tags: dict[str, str]
    params: dict[str, str]
    figures: dict[str, float]
    curve: list[tuple[str, float, int]]
    splits: Mapping[str, Mapping[str, Any]]
    files: list[tuple[Path, str | None]]
    diff: bytes


def read_lock(lock: Path) -> dict[str, Any]:
    """The entries of dvc.lock, by stage and task (`tune@tweet_sentiment`); raises StageInputError when it is missing or broken."""
    try:
        document: Any = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{lock} does not exist, so nothing says what was made from what. {_AGAIN}") from None
    except (UnicodeDecodeError, YAMLError) as error:
        raise StageInputError(
            f"{lock} is not valid YAML ({' '.join(str(error).split())}). Restore it from git or run `dvc repro`."
        ) from error
    known: Any = cast(dict[str, Any], document).get("stages") if isinstance(document, dict) else None
    if not isinstance(known, dict):
        raise StageInputError(f"{lock} has no mapping `stages`. Restore it from git or run `dvc repro`.")
    return cast(dict[str, Any], known)


def lock_entries(*, lock: Path, task: str) -> dict[str, Any]:
    """What dvc.lock says about each stage of `task`; raises StageInputError naming the stage that is not in it."""
    known = read_lock(lock)
    names = [f"{stage.name}@{task}" for stage in STAGES]
    for name in names:
        if not isinstance(known.get(name), dict):
            raise StageInputError(f"{lock} has no entry {name}: that stage has not been run. {_AGAIN}")
    return {name: known[name] for name in names}


def locked_outputs(entries: Mapping[str, Any], task: str) -> dict[str, str]:
    """Path -> DVC's md5 (with the suffix .dir for a folder) of every output of `task` that lock entries list."""
    stages = [f"{stage.name}@{task}" for stage in STAGES]
    outputs = [out for stage in stages for out in entries.get(stage, {}).get("outs", ())]
    return {str(out["path"]): str(out["md5"]) for out in outputs if "path" in out and "md5" in out}


def stage_key(*, entries: Mapping[str, Any]) -> str:
    """Hex sha256 of lock entries: equal keys mean the same commands, params, inputs and outputs in every stage."""
    return sha256_json(entries)


def gate_evidence(layout: Layout) -> GateEvidence:
    """Read gate.json; raises StageInputError when its decision is none of `promote`, `refuse` and `ask`."""
    path = layout.path("gate")
    gate = read_json(path)
    decision = gate.get("decision")
    if decision not in ("promote", "refuse", "ask"):
        raise StageInputError(f"{path}: `decision` is {decision!r}, expected 'promote', 'refuse' or 'ask'. {_AGAIN}")
    return GateEvidence(decision=decision, reasons=tuple(str(reason) for reason in gate.get("reasons", ())), sha256=sha256_file(path))


def record_run(*, root: Path, task: str, params: TaskParams, layout: Layout, lock: Path) -> RecordedRun:
    """Record the task's current stage outputs as a finished MLflow run of the experiment `task`, or find that run again.

    `lock` is the path of dvc.lock; params.yaml is taken from `root`. When recording fails the run is left FAILED and the next
    call makes a fresh one. Raises StageInputError or BundleError when an output is missing or altered, RegistryError when
    MLflow refuses.
    """
    entries = lock_entries(lock=lock, task=task)
    key = stage_key(entries=entries)
    content = read_content(root, params, layout, lock, locked_outputs(entries, task))
    return record_content(root=root, task=task, key=key, content=content)


def record_content(*, root: Path, task: str, key: str, content: Content) -> RecordedRun:
    """Record what was read before as a finished run, or find the run that has the same stage key.

    Raises RegistryUnreachable when MLflow's server does not answer, at the beginning or on the way, RegistryError when it refuses.
    """
    connection = connect(root=root, create=True)
    with (
        task_lock(root=root, task=task),
        reachable(connection),
        explained(f"Recording the run of {task} in {connection.uri}", "Run the same command again."),
    ):
        experiment = _experiment(connection, task)
        finished = _runs(connection, experiment, key, "FINISHED")
        if finished:
            _settle_code(connection, finished[0], content.tags)
            return RecordedRun(run_id=finished[0], reused=True, stage_key=key)
        _bury_the_dead(connection, experiment, key)
        tags = {STAGE_KEY: key, RECORDER: _recorder(root), **content.tags}
        with _new_run(connection, experiment, tags, f"{task} {key[:RUN_NAME_DIGITS]}") as run_id:
            _write_content(connection, run_id, content)
    return RecordedRun(run_id=run_id, reused=False, stage_key=key)


def flatten_params(params: TaskParams) -> dict[str, str]:
    """Params as MLflow takes them: dotted keys, list items by position, text values within MLflow's lengths."""
    flat = dict(_leaves("", params.model_dump(mode="json", by_alias=True)))
    return {_shortened_key(name): _shortened(_text(value)) for name, value in flat.items()}


def metric_figures(metrics: Mapping[str, Any], fairness: Mapping[str, Any]) -> dict[str, float]:
    """The estimates of metrics.json and the groups' accuracies of fairness.json as `name`, `name_low` and `name_high`.

    A figure that could not be computed (null) has no entry: MLflow knows no null.
    """
    figures: dict[str, float] = {}
    for variant, record in metrics["variants"].items():
        for keys, figure in flat_estimates(record):
            # A label's figures stand beside those of the whole, in a folder of the label's name.
            named = [segment(key) for key in (keys[1:] if keys[0] == "per_class" else keys)]
            _add_estimate(figures, "/".join([segment(variant), *named]), figure)
    for comparison, record in metrics.get("comparisons", {}).items():
        for keys, figure in flat_estimates(record):
            _add_estimate(figures, "/".join(map(segment, (comparison, *keys))), figure)
    for attribute, record in fairness.get("attributes", {}).items():
        for group, figure in record["groups"].items():
            _add_estimate(figures, f"fairness/{segment(attribute)}/{segment(group)}/accuracy", figure.get("accuracy"))
    return {_shortened_key(name): value for name, value in figures.items()}


def comparison_figures(comparison: Mapping[str, Any]) -> dict[str, float]:
    """The figures of comparison.json below `champion/`, with the attempts and the level; none where nothing was compared."""
    if not comparison["comparable"]:
        return {}
    figures = {f"champion/{name}": float(comparison[name]) for name in ("attempts", "level", "p_value") if comparison[name] is not None}
    metric = segment(comparison["asked"]["metric"])
    _add_estimate(figures, f"champion/{metric}", comparison["metrics"]["champion"])
    _add_estimate(figures, f"tuned_minus_champion/{metric}", comparison["difference"])
    if comparison["better"]:
        return figures | {f"champion/better_{name}": float(rows) for name, rows in comparison["better"].items()}
    return figures | {f"champion/{name}": float(comparison["paired"][name]) for name in ("candidate_only", "champion_only")}


def behaviour_figures(behaviour: Mapping[str, Any]) -> dict[str, float]:
    """The figures of behaviour.json below `behaviour/`: rates, shifts, accuracies and preferences with their ends, and what batches change."""
    figures: dict[str, float] = {}
    probes = {name: behaviour[name] for name in ("swaps", "pairs", "robustness", "tests", "bias") if behaviour.get(name)}
    for keys, figure in flat_estimates(probes):
        _add_estimate(figures, "/".join(["behaviour", *map(segment, keys)]), figure)
    batches = behaviour.get("batch_invariance") or {}
    figures |= {f"behaviour/batch_invariance/{name}": float(batches[name]) for name in ("largest_difference", "flips") if name in batches}
    return {_shortened_key(name): value for name, value in figures.items()}


def drift_figures(drift: Mapping[str, Any]) -> dict[str, float]:
    """The figures of drift.json as `drift/<check>`, `..._low`, `..._high` and `..._p`, and `drift/failed`, the number of failed checks."""
    figures = {"drift/failed": float(sum(check["verdict"] == "FAIL" for check in drift["checks"]))}
    for check in drift["checks"]:
        name = f"drift/{segment(check['name'])}"
        _add_estimate(figures, name, check)
        if check["p_value"] is not None:
            figures[f"{name}_p"] = float(check["p_value"])
    return {_shortened_key(name): value for name, value in figures.items()}


def training_curve(log: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """(metric, value, step) of every number that train_log.jsonl holds at a step; with several trials each has a folder of its own."""
    prefixes = {"step": "train", "evaluation": "validation", "system": "system"}
    several = len({event["trial"] for event in log if "trial" in event}) > 1
    points: list[tuple[str, float, int]] = []
    for event in log:
        prefix = prefixes.get(event.get("event", ""))
        if prefix is None:
            continue
        prefix += f"/trial {event['trial']}" if several and "trial" in event else ""
        for name, value in event.items():
            if name not in ("event", "step", "trial", "rows", "best") and isinstance(value, int | float):
                points.append((f"{prefix}/{segment(name)}", float(value), int(event["step"])))
    return points


def segment(name: str) -> str:
    """A label, group or params key as one part of an MLflow key, which allows letters, digits, space and _ - . : only."""
    safe = re.sub(r"[^\w\-. ]", lambda match: f"_x{ord(match[0]):x}_", name)
    return safe if safe.strip(". ") else "_" + safe.replace(".", "_x2e_")


def read_content(root: Path, params: TaskParams, layout: Layout, lock: Path, outputs: Mapping[str, str]) -> Content:
    """Everything that the run of these outputs will hold, checked; raises StageInputError or BundleError naming what is missing or altered."""
    manifest = verify_bundle(layout.path("bundle"))
    gate = gate_evidence(layout)
    metrics, fairness = read_json(layout.path("metrics")), read_json(layout.path("fairness"))
    files: list[tuple[Path, str | None]] = [(layout.path(name), None) for name in _FILES]
    files += [(layout.path(name), folder) for name, folder in _FOLDERS.items()]
    files += [(lock, None), (root / PARAMS_FILE, None)]
    for path, _ in files:
        if not path.exists():
            raise StageInputError(f"{path} does not exist. {_AGAIN}")
    try:
        figures = metric_figures(metrics, fairness) | drift_figures(read_json(layout.path("drift")))
        figures |= comparison_figures(read_json(layout.path("comparison"))) | behaviour_figures(read_json(layout.path("behaviour")))
        curve = training_curve(read_jsonl(layout.path("train_log")))
        splits = read_json(layout.path("split_report"))["splits"]
    except (KeyError, TypeError, AttributeError) as error:
        raise StageInputError(f"A report of {layout.task} lacks what docs/stage-files.md promises ({error!r}). {_AGAIN}") from error
    diff = code_diff(root)
    tags = _tags(manifest, layout, gate) | code_tags(manifest, code_identity(root)) | data_tags(layout, outputs)
    return Content(tags, flatten_params(params), figures, curve, splits, files, diff if tags.get(DIRTY) == "true" else b"")


def _tags(manifest: Mapping[str, Any], layout: Layout, gate: GateEvidence) -> dict[str, str]:
    base_model, training = manifest.get("base_model") or {}, manifest.get("training") or {}
    about = {"promptmill.base_model": base_model.get("id"), "promptmill.method": training.get("method")}
    return {
        "promptmill.manifest_sha256": manifest_sha256(layout.path("bundle")),
        "promptmill.gate_decision": gate.decision,
        "promptmill.gate_sha256": gate.sha256,
        "promptmill.data_docs": f"{_FOLDERS['data_docs']}/index.html",  # where to begin among the run's artifacts
        DATA_PROFILE_SHA256: sha256_file(layout.path("data_profile")),
        "mlflow.source.name": f"promptmill run {layout.task}",
        "mlflow.source.type": "LOCAL",
        "promptmill.task": layout.task,
        **{name: _text(value) for name, value in about.items() if value is not None},
    }


def code_tags(manifest: Mapping[str, Any], checkout: Mapping[str, Any]) -> dict[str, str]:
    """The commit that makes the run again, and whether files differ from it: of the checkout as it is recorded.

    Not as it was when the prompt was tuned: DVC has just compared all code, params and data of every stage with what ran, so a commit of what was
    run makes the run again although the tuning began before it. Outside of git it is what the manifest says.
    """
    code: Mapping[str, Any] = checkout if checkout["commit"] else manifest.get("code") or {}
    known = {
        GIT_COMMIT: code.get("commit"),
        "mlflow.source.git.commit": code.get("commit"),
        DIRTY: code.get("dirty"),
        DIFF_SHA256: code.get("diff_sha256"),
    }
    return {name: _text(value) for name, value in known.items() if value is not None}


def lock_of_run(*, lock: Path, task: str) -> dict[str, Any]:
    """The entries of `task` in a dvc.lock that may be older than this code: whatever stages there were then."""
    return {name: entry for name, entry in read_lock(lock).items() if name.endswith(f"@{task}")}


def _settle_code(connection: Connection, run_id: str, tags: Mapping[str, str]) -> None:
    """What was recorded with uncommitted changes and is committed now, unchanged, is known by its commit from now on."""
    recorded = connection.client.get_run(run_id).data.tags
    if recorded.get(DIRTY) == "true" and tags.get(DIRTY) == "false":
        for name in (GIT_COMMIT, "mlflow.source.git.commit", DIRTY):
            connection.client.set_tag(run_id, name, tags[name])


def _experiment(connection: Connection, task: str) -> str:
    found = connection.client.get_experiment_by_name(task)
    if found is None:
        # A store without a server would put artifacts below the working directory.
        location = artifacts_folder(root=connection.root).joinpath(task).as_uri() if connection.local else None
        return connection.client.create_experiment(task, artifact_location=location)
    if found.lifecycle_stage != "active":
        raise RegistryError(
            f"The MLflow experiment {task!r} was deleted. Restore it: `mlflow experiments restore --experiment-id {found.experiment_id}`."
        )
    return str(found.experiment_id)


def _runs(connection: Connection, experiment: str, key: str, status: str, extra: str = "") -> list[str]:
    wanted = f"tags.`{STAGE_KEY}` = '{key}' and attributes.status = '{status}'{extra}"
    found = connection.client.search_runs([experiment], wanted, order_by=["attributes.start_time ASC"])
    return [run.info.run_id for run in found]


def _recorder(root: Path) -> str:
    """Names this workspace on this machine without telling the server what either is called."""
    return sha256_json([platform.node(), str(root.resolve())])[:16]


def _bury_the_dead(connection: Connection, experiment: str, key: str) -> None:
    """End the runs that a killed recorder of this workspace left running; the caller holds the lock, so none is alive."""
    for run_id in _runs(connection, experiment, key, "RUNNING", f" and tags.`{RECORDER}` = '{_recorder(connection.root)}'"):
        connection.client.set_terminated(run_id, "KILLED")


@contextmanager
def _new_run(connection: Connection, experiment: str, tags: dict[str, str], name: str) -> Generator[str]:
    from mlflow.exceptions import MlflowException

    run_id: str = connection.client.create_run(experiment, tags=tags, run_name=name).info.run_id
    try:
        yield run_id
    except BaseException:
        with suppress(MlflowException):  # gone with the server: the next recording ends it as KILLED
            connection.client.set_terminated(run_id, "FAILED")
        raise
    connection.client.set_terminated(run_id, "FINISHED")


def _write_content(connection: Connection, run_id: str, content: Content) -> None:
    from mlflow.entities import Metric, Param

    client = connection.client
    now = int(time.time() * 1000)
    points = [*((name, value, 0) for name, value in content.figures.items()), *content.curve]
    params = list(content.params.items())
    for first in range(0, len(params), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=[Param(name, value) for name, value in params[first : first + PARAMS_PER_BATCH]])
    for first in range(0, len(points), METRICS_PER_BATCH):
        client.log_batch(
            run_id, metrics=[Metric(name, value, now, step) for name, value, step in points[first : first + METRICS_PER_BATCH]]
        )
    client.log_inputs(run_id, datasets=_datasets(content.splits))
    if content.diff:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CODE_DIFF).write_bytes(content.diff)
            client.log_artifact(run_id, str(Path(folder) / CODE_DIFF))
    for path, folder in content.files:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), artifact_path=folder)
        else:
            client.log_artifact(run_id, str(path), artifact_path=folder)


def _datasets(splits: Mapping[str, Mapping[str, Any]]) -> list["DatasetInput"]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs: list[DatasetInput] = []
    for name, split in splits.items():
        sha256 = str(split["sha256"])
        source = json.dumps({"file": f"{name}.parquet", "sha256": sha256})
        profile = json.dumps({"num_rows": split["rows"]})
        dataset = Dataset(name=name, digest=sha256[:DIGEST_CHARACTERS], source_type="local", source=source, profile=profile)
        inputs.append(DatasetInput(dataset, tags=[InputTag("mlflow.data.context", _CONTEXTS.get(name, name))]))
    return inputs


def _add_estimate(figures: dict[str, float], name: str, estimate: Mapping[str, Any] | None) -> None:
    for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
        value = None if estimate is None else estimate[key]
        if value is not None and math.isfinite(value):
            figures[name + end] = float(value)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in cast(dict[Any, Any], value).items()]
    elif isinstance(value, list):
        items = [(str(position), item) for position, item in enumerate(cast(list[Any], value))]
    if not items:
        yield prefix, value
    for key, item in items:
        yield from _leaves(f"{prefix}.{segment(key)}" if prefix else segment(key), item)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shortened(value: str) -> str:
    """Params longer than MLflow allows keep their beginning and the hash of the whole."""
    if len(value) <= MAXIMUM_PARAM:
        return value
    end = f"... (sha256 {sha256_json(value)})"
    return value[: MAXIMUM_PARAM - len(end)] + end


def _shortened_key(name: str) -> str:
    return name if len(name) <= MAXIMUM_KEY else f"{name[: MAXIMUM_KEY - 17]}-{sha256_json(name)[:16]}"
