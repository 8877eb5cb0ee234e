"""Registered versions of tuned prompts: made from a verified bundle, and verified again after every download.

MLflow checks no file it stores, so what identifies a version is the sha256 of its bundle's manifest, kept as a tag of the version.
A version refers to its base model by id and hash; no file of the base model is ever in it.
"""

import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BundleError, RegistryError
from pipeline.layout import Layout
from pipeline.manifest import manifest_sha256, verify_bundle
from pipeline.records import read_json
from pipeline.registry.connection import Connection, connect, explained, quiet, task_lock
from pipeline.registry.data_identity import PREFIX, data_of
from pipeline.registry.model_files import verify_model_files, write_model_files
from pipeline.registry.signatures import sign_when_asked, verify_when_required
from pipeline.registry.templates import link_template, register_template
from pipeline.registry.tracking import DIFF_SHA256, DIRTY, GIT_COMMIT, STAGE_KEY, GateEvidence, gate_evidence

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHALLENGER, CHAMPION = "challenger", "champion"
MANIFEST_SHA256, GATE_SHA256, GATE_DECISION = "promptmill.manifest_sha256", "promptmill.gate_sha256", "promptmill.gate_decision"
MODEL_FILES_SHA256 = "promptmill.model_files_sha256"
COMPARED_WITH, APPROVAL_REQUEST, APPROVAL = "promptmill.compared_with", "promptmill.approval_request", "promptmill.approval"
GATE_REASONS, RUN_ID, PROMOTED_AT = "promptmill.gate_reasons", "promptmill.run_id", "promptmill.promoted_at"
TEMPLATE = "promptmill.template"
LOADER_MODULE = "pipeline.registry.pyfunc"

_LOGGED_NAME = "tuned_prompt"  # a logged model's name, unlike a task's, may hold no dot
_REASONS_CHARACTERS = 4000


def register_version(*, root: Path, task: str, run_id: str, layout: Layout, stage_key: str) -> int:
    """Register the task's bundle as a version of the registered model `task`, alias `challenger`; returns its number.

    A version of the same stage key whose stored bundle still verifies is used again. The new version's files are downloaded and
    verified before the version exists. Raises BundleError when the bundle is altered, RegistryError when MLflow refuses.
    """
    verify_bundle(layout.path("bundle"))
    gate = gate_evidence(layout)
    connection = connect(root=root)
    with task_lock(root=root, task=task), explained(f"Registering a version of {task} in {connection.uri}", "Run the same command again."):
        _check_run(connection, run_id, stage_key)
        version = _reusable_version(connection, layout, stage_key)
        if version is None:
            version = _new_version(connection, layout, gate, run_id, stage_key)
        else:
            _settle_code(connection, task, version, run_id)
        connection.client.set_registered_model_alias(task, CHALLENGER, str(version))
    return version


def download_bundle(*, root: Path, task: str, version: int, destination: Path) -> Path:
    """Download a version's bundle to `destination`, which must be absent or an empty folder, and verify it; returns `destination`.

    Every load goes through here. Raises RegistryError for an unknown version, BundleError when a file is missing, added or altered
    or the bundle is not the one that was registered; `destination` is then left as it was.
    """
    connection = connect(root=root)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise RegistryError(f"{destination} is not an empty folder, so no bundle is downloaded into it. Name another one or empty it.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with explained(
        f"Downloading {task} version {version} from {connection.uri}", "Check that the store still holds its files and try again."
    ):
        found = find_version(connection, task, version)
        with _fetched(connection, found, destination.parent) as bundle:
            bundle.replace(destination)
    return destination


def list_versions(*, root: Path, task: str) -> list[dict[str, Any]]:
    """Every version of `task`, newest first, with the keys of `show` up to `data`."""
    connection = connect(root=root)
    with explained(f"Listing the versions of {task} in {connection.uri}", "Try again."):
        aliases = aliases_of(connection, task)
        return [_summary(version, aliases) for version in reversed(versions_of(connection, task))]


def show(*, root: Path, task: str, selector: str | int) -> dict[str, Any]:
    """One version, by number or alias, with the metrics, params and code commit of its run.

    Keys: task, version, aliases, gate_decision, gate_reasons, manifest_sha256, gate_sha256, stage_key, run_id, created_at, promoted_at
    (times as ISO 8601 in UTC, or None), compared_with (the champion its gate compared it with, `none`, or None for unknown),
    approval_request and approval (see `pipeline.registry.approval`), data (what `data_identity.data_tags` says, without its prefix); then metrics, params, source,
    git_commit, dirty.
    """
    connection = connect(root=root)
    with explained(f"Reading {task} {selector} in {connection.uri}", "Try again."):
        aliases = aliases_of(connection, task)
        found = find_version(connection, task, resolve(task, selector, aliases))
        run = connection.client.get_run(found.run_id).data if found.run_id else None
        return {
            **_summary(found, aliases),
            "metrics": dict(run.metrics) if run else {},
            "params": dict(run.params) if run else {},
            "source": found.source,
            "git_commit": run.tags.get("promptmill.git_commit") if run else None,
            "dirty": run.tags.get("promptmill.dirty") == "true" if run else None,
        }


def resolve(task: str, selector: str | int, aliases: Mapping[str, int]) -> int:
    """The version number meant by a number or an alias; raises RegistryError naming the aliases there are."""
    if isinstance(selector, int) or selector.isdecimal():
        return int(selector)
    if selector not in aliases:
        known = ", ".join(f"{alias} (version {version})" for alias, version in sorted(aliases.items())) or "none"
        raise RegistryError(
            f"{task} has no alias {selector!r}; its aliases: {known}. Run `promptmill run {task}` first, or name a version."
        )
    return aliases[selector]


def aliases_of(connection: Connection, task: str) -> dict[str, int]:
    """Alias -> version number; raises RegistryError when nothing was ever registered under this name."""
    return {alias: int(version) for alias, version in registered_model(connection, task).aliases.items()}


def registered_model(connection: Connection, task: str) -> "RegisteredModel":
    """The registered model `task`; raises RegistryError when nothing was ever registered under this name."""
    with _unknown_is(f"Nothing is registered under {task!r} in {connection.uri}. Run `promptmill run {task}` first, or correct the name."):
        return connection.client.get_registered_model(task)


def find_version(connection: Connection, task: str, version: int) -> "ModelVersion":
    """One version that promptmill registered; raises RegistryError when there is none of that number or it is somebody else's."""
    with _unknown_is(f"{task} has no version {version} in {connection.uri}. `promptmill list {task}` prints the ones there are."):
        found = connection.client.get_model_version(task, str(version))
    if MANIFEST_SHA256 not in found.tags:
        raise RegistryError(
            f"{task} version {version} has no tag {MANIFEST_SHA256}, so promptmill did not register it. Name another version."
        )
    return found


def _check_run(connection: Connection, run_id: str, stage_key: str) -> None:
    with _unknown_is(f"There is no run {run_id} in {connection.uri}. Record the run first: `promptmill run TASK`."):
        run = connection.client.get_run(run_id)
    recorded = run.data.tags.get(STAGE_KEY)
    if recorded != stage_key or run.info.status != "FINISHED":
        raise RegistryError(
            f"Run {run_id} is {run.info.status} with stage key {recorded}, expected FINISHED with {stage_key}. Record the run again: `promptmill run TASK`."
        )


def _reusable_version(connection: Connection, layout: Layout, stage_key: str) -> int | None:
    """The newest version made from the same stages whose stored files are still intact; a damaged one must not be handed out again."""
    expected = manifest_sha256(layout.path("bundle"))
    for version in reversed(versions_of(connection, layout.task)):
        if version.tags.get(STAGE_KEY) == stage_key and version.tags.get(MANIFEST_SHA256) == expected and _is_intact(connection, version):
            return int(version.version)
    return None


def _settle_code(connection: Connection, task: str, version: int, run_id: str) -> None:
    """Let a version that is used again have its run's commit: what was uncommitted when it was made may be committed by now."""
    of_run: dict[str, str] = connection.client.get_run(run_id).data.tags
    for name in (GIT_COMMIT, DIRTY):
        if name in of_run:
            connection.client.set_model_version_tag(task, str(version), name, of_run[name])


def _is_intact(connection: Connection, version: "ModelVersion") -> bool:
    try:
        with tempfile.TemporaryDirectory() as folder, _fetched(connection, version, Path(folder)):
            return True
    except BundleError:
        return False


def _new_version(connection: Connection, layout: Layout, gate: GateEvidence, run_id: str, stage_key: str) -> int:
    client = connection.client
    of_run: dict[str, str] = client.get_run(run_id).data.tags
    tags = {
        **{name: value for name, value in of_run.items() if name.startswith(PREFIX) or name in (GIT_COMMIT, DIRTY, DIFF_SHA256)},
        STAGE_KEY: stage_key,
        MANIFEST_SHA256: manifest_sha256(layout.path("bundle")),
        GATE_SHA256: gate.sha256,
        GATE_DECISION: gate.decision,
        GATE_REASONS: "\n".join(gate.reasons)[:_REASONS_CHARACTERS],
        RUN_ID: run_id,
        COMPARED_WITH: _compared_with(layout),
    }
    logged, tags[MODEL_FILES_SHA256] = _log_model(connection, layout, run_id, tags[MANIFEST_SHA256])
    template = register_template(connection, task=layout.task, template=read_json(layout.path("bundle") / "template.json")["template"])
    link_template(connection, template, run_id=run_id, model_id=logged.model_id)
    tags[TEMPLATE] = template.uri
    if not client.search_registered_models(f"name = '{layout.task}'"):
        client.create_registered_model(layout.task)
    # Not `models:/<id>`: MLflow would look that up in the store of its global tracking URI, and make one in the working directory.
    with quiet():
        made = client.create_model_version(
            layout.task, source=logged.artifact_location, run_id=run_id, tags=tags, model_id=logged.model_id, await_creation_for=300
        )
    return int(made.version)


def _compared_with(layout: Layout) -> str:
    """The champion that the stages compared with, as a number, or `none` when there was none."""
    from pipeline.registry.reference import CHAMPION_FILE  # which itself reads versions through this module

    version = read_json(layout.path("champion") / CHAMPION_FILE).get("version")
    return "none" if version is None else str(version)


def _log_model(connection: Connection, layout: Layout, run_id: str, manifest_sha: str) -> tuple["LoggedModel", str]:
    """Upload the bundle as an MLflow model, then download and verify it; a model that fails on the way is marked FAILED.

    Returns the model and the sha256 of the list of its files.
    """
    from mlflow.entities import LoggedModelOutput

    client = connection.client
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=_LOGGED_NAME, source_run_id=run_id, tags={MANIFEST_SHA256: manifest_sha})
    try:
        with tempfile.TemporaryDirectory() as folder:
            saved = _save_model(Path(folder), layout, run_id, logged, manifest_sha)
            files_sha = write_model_files(saved)
            client.log_model_artifacts(logged.model_id, str(saved))
            with _downloaded(connection, logged.artifact_location, layout.task, manifest_sha, files_sha, Path(folder)):
                client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    return logged, files_sha


def _save_model(folder: Path, layout: Layout, run_id: str, logged: "LoggedModel", manifest_sha: str) -> Path:
    """Write the MLflow model folder: MLmodel, signature, example, requirements, and the bundle as `data/<task>`."""
    with quiet():
        import mlflow.pyfunc
        from mlflow.models import Model

    manifest = verify_bundle(layout.path("bundle"))
    saved, bundle = folder / "model", folder / layout.task
    shutil.copytree(layout.path("bundle"), bundle)
    sign_when_asked(bundle)
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        metadata={MANIFEST_SHA256: manifest_sha},
    )
    with quiet():
        mlflow.pyfunc.save_model(
            str(saved),
            loader_module=LOADER_MODULE,
            data_path=str(bundle),
            mlflow_model=model,
            signature=_signature(manifest),
            input_example=_example(manifest["fields"]),
            pip_requirements=["promptmill"],  # given, because MLflow would otherwise load the model to find out
            uv_project_path=str(folder),  # holds no uv project; MLflow would otherwise take one from the working directory
        )
    return saved


def _example(fields: list[str]) -> "pd.DataFrame":
    """One row as the model takes it; MLflow compares the column index in a way that pandas 3 deprecates unless it holds objects."""
    import pandas as pd

    return pd.DataFrame([[f"The {field} to classify." for field in fields]], columns=pd.Index(fields, dtype=object))


def _signature(manifest: Mapping[str, Any]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    written = manifest.get("kind") == "generation"
    for key in ("fields",) if written else ("fields", "labels"):
        if not manifest.get(key):
            raise BundleError(
                f"The manifest of the bundle names no {key}, so its version could have no signature. Rebuild it with `dvc repro`."
            )
    answer = "answer" if written else "label"
    probabilities = [ColSpec(DataType.double, f"p.{label}") for label in manifest["labels"]]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, field) for field in manifest["fields"]]),
        outputs=Schema([ColSpec(DataType.string, answer), *probabilities]),
        params=ParamSchema([ParamSpec("batch_size", DataType.long, 64)]),
    )


@contextmanager
def _fetched(connection: Connection, version: "ModelVersion", parent: Path) -> Generator[Path]:
    location = connection.client.get_model_version_download_uri(version.name, str(version.version))
    files_sha = version.tags.get(MODEL_FILES_SHA256)
    with _downloaded(connection, location, version.name, version.tags[MANIFEST_SHA256], files_sha, parent) as bundle:
        yield bundle


@contextmanager
def _downloaded(
    connection: Connection, location: str, task: str, manifest_sha: str, files_sha: str | None, parent: Path
) -> Generator[Path]:
    """A verified copy of the bundle at `location`, in a folder that is removed at the end.

    `files_sha` is None for a version of a promptmill that did not list the files around the bundle yet.
    """
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix=".download.", dir=parent) as folder:
        # What was damaged is the copy that will be used: a check of the store would say nothing about the transfer.
        with quiet():
            copy = Path(download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=connection.uri))
        bundle = copy / "data" / task
        verify_bundle(bundle)
        found = manifest_sha256(bundle)
        if found != manifest_sha:
            raise BundleError(
                f"The bundle of {task} at {location} has a manifest of sha256 {found}, registered was {manifest_sha}: it was altered in the store. "
                f"Register it again: `promptmill run {task}`."
            )
        if files_sha is not None:
            verify_model_files(copy, files_sha)
        verify_when_required(bundle, root=connection.root, task=task)
        yield bundle


def versions_of(connection: Connection, task: str) -> list["ModelVersion"]:
    """All versions of `task`, oldest first, with their tags."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = connection.client.search_model_versions(f"name = '{task}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def _summary(version: "ModelVersion", aliases: Mapping[str, int]) -> dict[str, Any]:
    number = int(version.version)
    return {
        "task": version.name,
        "version": number,
        "aliases": sorted(alias for alias, target in aliases.items() if target == number),
        "gate_decision": version.tags.get(GATE_DECISION),
        "gate_reasons": [reason for reason in version.tags.get(GATE_REASONS, "").split("\n") if reason],
        "manifest_sha256": version.tags.get(MANIFEST_SHA256),
        "gate_sha256": version.tags.get(GATE_SHA256),
        "stage_key": version.tags.get(STAGE_KEY),
        "run_id": version.run_id,
        "created_at": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        "promoted_at": version.tags.get(PROMOTED_AT),
        "compared_with": version.tags.get(COMPARED_WITH),
        "approval_request": _json_tag(version, APPROVAL_REQUEST),
        "approval": _json_tag(version, APPROVAL),
        "data": data_of(version.tags),
    }


def _json_tag(version: "ModelVersion", name: str) -> dict[str, Any] | None:
    return json.loads(version.tags[name]) if name in version.tags else None


@contextmanager
def _unknown_is(message: str) -> Generator[None]:
    """Replace MLflow's answer that something does not exist by `message`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(message) from None
        raise
