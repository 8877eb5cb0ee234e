import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.errors import BundleError, RegistryError
from pipeline.manifest import manifest_sha256, verify_bundle
from pipeline.registry import promotion, pyfunc, registry
from pipeline.registry.connection import connect
from tests.registry.registry_workspace import DAMAGES, TASK, Workspace, damage


@pytest.fixture
def engine_that_must_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.engine.predicting", None)  # importing it raises ImportError


def test_a_version_carries_its_evidence_and_the_bundle_and_nothing_that_runs_code(workspace: Workspace) -> None:
    run = workspace.record()
    version = workspace.register()
    shown = registry.show(root=workspace.root, task=TASK, selector="challenger")
    assert (version, shown["version"], shown["aliases"]) == (1, 1, ["challenger"])
    assert (shown["run_id"], shown["stage_key"], shown["gate_decision"]) == (run.run_id, run.stage_key, "promote")
    assert shown["manifest_sha256"] == manifest_sha256(workspace.layout.path("bundle"))
    assert shown["metrics"]["tuned/accuracy"] == 0.625
    assert (shown["promoted_at"], shown["dirty"]) == (None, False)
    assert registry.show(root=workspace.root, task=TASK, selector="1") == registry.show(root=workspace.root, task=TASK, selector=1) == shown

    stored = workspace.stored_bundle(version)
    verify_bundle(stored)
    model = stored.parents[1]
    files = [path for path in model.rglob("*") if path.is_file()]
    assert {path.name for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin", ".py", ".joblib")} == set()
    bundle_bytes = sum(path.stat().st_size for path in workspace.layout.path("bundle").iterdir())
    assert sum(path.stat().st_size for path in files) < bundle_bytes + 20_000  # the base model has 500 MB
    description = yaml.safe_load((model / "MLmodel").read_text(encoding="utf-8"))
    assert description["flavors"]["python_function"]["loader_module"] == "pipeline.registry.pyfunc"
    assert "code" not in {key for key, value in description["flavors"]["python_function"].items() if value}
    assert "promptmill" in (model / "requirements.txt").read_text(encoding="utf-8").split()
    assert "cloudpickle" not in (model / "requirements.txt").read_text(encoding="utf-8")
    assert "p.negative" in description["signature"]["outputs"]


def test_the_same_stages_give_the_same_version_and_changed_ones_a_new_one(workspace: Workspace) -> None:
    assert (workspace.register(), workspace.register()) == (1, 1)
    workspace.make(2)
    assert workspace.register() == 2
    assert [entry["version"] for entry in registry.list_versions(root=workspace.root, task=TASK)] == [2, 1]
    workspace.make(1)
    assert workspace.register() == 1
    assert registry.show(root=workspace.root, task=TASK, selector="challenger")["version"] == 1


def test_a_damaged_version_is_not_handed_out_again(workspace: Workspace) -> None:
    assert workspace.register() == 1
    damage(workspace.stored_bundle(1), "one bit flipped")
    assert workspace.register() == 2


def test_a_version_needs_the_finished_run_of_its_stages(workspace: Workspace) -> None:
    run = workspace.record()
    with pytest.raises(RegistryError, match=rf"Run {run.run_id} is FINISHED with stage key {run.stage_key}, expected .* 0000"):
        registry.register_version(root=workspace.root, task=TASK, run_id=run.run_id, layout=workspace.layout, stage_key="0000")
    with pytest.raises(RegistryError, match="There is no run ffff"):
        registry.register_version(root=workspace.root, task=TASK, run_id="f" * 32, layout=workspace.layout, stage_key=run.stage_key)


def test_an_upload_that_arrives_damaged_becomes_no_version(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    upload = MlflowClient.log_model_artifacts

    def corrupting(self: MlflowClient, model_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        upload(self, model_id, local_dir, artifact_path)
        damage(workspace.artifacts / TASK / "models" / model_id / "artifacts" / "data" / TASK, "one bit flipped")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", corrupting)
        with pytest.raises(BundleError, match=r"adapter_model\.safetensors has sha256"):
            workspace.register()
    client = connect(root=workspace.root).client
    assert list(client.search_registered_models()) == []
    experiment = client.get_experiment_by_name(TASK)
    assert experiment is not None
    assert [model.status.value for model in client.search_logged_models([experiment.experiment_id])] == ["FAILED"]
    assert workspace.register() == 1


@pytest.mark.usefixtures("engine_that_must_not_load")
def test_a_damaged_version_is_refused_before_every_use(workspace: Workspace, tmp_path: Path) -> None:
    version = workspace.register()
    stored = workspace.stored_bundle(version)
    intact = registry.download_bundle(root=workspace.root, task=TASK, version=version, destination=tmp_path / "intact")
    assert manifest_sha256(intact) == manifest_sha256(workspace.layout.path("bundle"))
    for how in DAMAGES:
        damage(stored, how)
        with pytest.raises(BundleError, match=r"sha256|bytes|listed"):
            registry.download_bundle(root=workspace.root, task=TASK, version=version, destination=tmp_path / "damaged")
        with pytest.raises(BundleError, match=r"sha256|bytes|listed"):
            promotion.promote(root=workspace.root, task=TASK, version=version)
        with pytest.raises(BundleError, match=r"sha256|bytes|listed"):
            pyfunc._load_pyfunc(str(stored))
        shutil.rmtree(stored)
        shutil.copytree(intact, stored)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "damaged"))) == []
    assert promotion.promote(root=workspace.root, task=TASK, version=version)["version"] == version


def test_a_version_whose_files_are_gone_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    version = workspace.register()
    shutil.rmtree(workspace.stored_bundle(version).parents[1])
    with pytest.raises((RegistryError, BundleError)):
        registry.download_bundle(root=workspace.root, task=TASK, version=version, destination=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_download_overwrites_nothing(workspace: Workspace, tmp_path: Path) -> None:
    version = workspace.register()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RegistryError, match="full is not an empty folder"):
        registry.download_bundle(root=workspace.root, task=TASK, version=version, destination=tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert registry.download_bundle(root=workspace.root, task=TASK, version=version, destination=tmp_path / "empty") == tmp_path / "empty"
    verify_bundle(tmp_path / "empty")


def test_unknown_names_say_which_command_helps(workspace: Workspace, tmp_path: Path) -> None:
    for call in (registry.list_versions, lambda *, root, task: registry.show(root=root, task=task, selector="champion")):
        with pytest.raises(RegistryError, match=rf"Nothing is registered under '{TASK}' .*promptmill run {TASK}"):
            call(root=workspace.root, task=TASK)
    workspace.register()
    with pytest.raises(
        RegistryError, match=rf"has no alias 'champion'; its aliases: challenger \(version 1\)\. Run `promptmill run {TASK}`"
    ):
        registry.show(root=workspace.root, task=TASK, selector="champion")
    with pytest.raises(RegistryError, match=r"has no version 7 .*promptmill list"):
        registry.download_bundle(root=workspace.root, task=TASK, version=7, destination=tmp_path / "bundle")


def test_somebody_elses_version_is_not_touched(workspace: Workspace) -> None:
    workspace.register()
    client = connect(root=workspace.root).client
    client.create_model_version(TASK, source=str(workspace.artifacts))
    with pytest.raises(RegistryError, match="promptmill did not register it"):
        registry.show(root=workspace.root, task=TASK, selector=2)
    assert registry.list_versions(root=workspace.root, task=TASK)[0]["manifest_sha256"] is None
