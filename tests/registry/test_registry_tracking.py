import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.errors import BundleError, RegistryError, StageInputError
from pipeline.layout import STAGES
from pipeline.manifest import manifest_sha256
from pipeline.params import load_task
from pipeline.records import sha256_file, write_json
from pipeline.registry import connection, tracking
from pipeline.registry.connection import connect
from tests.registry.registry_workspace import TASK, Workspace, estimate

ROOT = Path(__file__).parents[2]


def runs(workspace: Workspace) -> list[tuple[str, str]]:
    client = connect(root=workspace.root).client
    experiment = client.get_experiment_by_name(TASK)
    assert experiment is not None
    return sorted((run.info.run_id, run.info.status) for run in client.search_runs([experiment.experiment_id]))


def test_a_recorded_run_holds_params_figures_curve_tags_and_files(workspace: Workspace) -> None:
    workspace.make(1, steps=700)  # more points than MLflow takes in one batch
    recorded = workspace.record()
    assert not recorded.reused
    client = connect(root=workspace.root).client
    run = client.get_run(recorded.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["tune.learning_rate"] == str(workspace.params.tune.learning_rate)
    assert run.data.params["prompt.verbalizers.neutral"] == " neutral"
    assert run.data.params["gate.value_thresholds.0.metric"] == "accuracy"
    expected = {
        "tuned/accuracy": 0.625,
        "tuned/accuracy_low": 0.525,
        "tuned/accuracy_high": 0.725,
        "hard_prompt/positive/recall": 0.25,
        "tuned_minus_hard_prompt/macro_f1": 0.25,
        "fairness/airline/united/accuracy": 0.75,
        "fairness/airline/jet_x2f_blue_x21_/accuracy_low": 0.4,
        "validation/accuracy": 0.6,
        "train/loss": 2.0 - 0.699,
    }
    assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected)
    assert "tuned/log_loss" not in run.data.metrics  # null is no figure
    history = client.get_metric_history(recorded.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 2.0 - step / 1000) for step in range(700)]
    assert run.data.tags["promptmill.gate_sha256"] == sha256_file(workspace.layout.path("gate"))
    assert run.data.tags["promptmill.manifest_sha256"] == manifest_sha256(workspace.layout.path("bundle"))
    assert run.data.tags["promptmill.gate_decision"] == "promote"
    assert run.data.tags["promptmill.git_commit"].startswith("c0ffee")
    assert run.data.tags["promptmill.dirty"] == "false"
    datasets = {entry.dataset.name: json.loads(entry.dataset.source)["sha256"] for entry in run.inputs.dataset_inputs}
    assert datasets == {name: sha256_file(workspace.layout.path(name)) for name in ("train", "validation", "test")}
    (stored,) = [path for path in (workspace.artifacts / TASK).iterdir() if path.name == recorded.run_id]
    names = {path.relative_to(stored / "artifacts").as_posix() for path in stored.rglob("*") if path.is_file()}
    assert names >= {"gate.json", "metrics.json", "fairness.json", "data.json", "card.html", "MODEL_CARD.md", "dvc.lock", "params.yaml"}
    assert run.data.tags["promptmill.data_docs"] == "data_docs/index.html"
    assert names >= {
        "data_docs/index.html",
        "plots/confusion_matrix.csv",
        "bundle/manifest.json",
        "bundle/adapter_model.safetensors",
        "train_log.jsonl",
    }
    assert list((workspace.root.parent / "elsewhere").iterdir()) == []


def test_the_same_stages_are_recorded_once_and_changed_ones_again(workspace: Workspace) -> None:
    first, second = workspace.record(), workspace.record()
    assert (second.run_id, second.reused) == (first.run_id, True)
    workspace.make(2)
    third = workspace.record()
    assert not third.reused
    assert third.stage_key != first.stage_key
    assert len(runs(workspace)) == 2


def test_a_recording_that_fails_leaves_a_failed_run_and_is_made_afresh(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", full)
        with pytest.raises(RegistryError, match=r"Recording the run of tweet_sentiment .* failed: .*No space left on device.*again"):
            workspace.record()
    ((failed, status),) = runs(workspace)
    assert status == "FAILED"
    fresh = workspace.record()
    assert not fresh.reused
    assert dict(runs(workspace)) == {failed: "FAILED", fresh.run_id: "FINISHED"}


KILLED_HALF_WAY = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from pipeline.layout import Layout
from pipeline.params import load_task
from pipeline.registry import tracking
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.log_artifacts = die
root = Path(sys.argv[1])
tracking.record_run(root=root, task=sys.argv[2], params=load_task(root / "params.yaml", sys.argv[2]), layout=Layout(root, sys.argv[2]), lock=root / "dvc.lock")
"""


def test_a_killed_recording_is_not_reused_and_does_not_stay_running(workspace: Workspace) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, str(workspace.root), TASK], cwd=ROOT, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    ((killed, status),) = runs(workspace)
    assert status == "RUNNING"
    fresh = workspace.record()
    assert not fresh.reused
    assert dict(runs(workspace)) == {killed: "KILLED", fresh.run_id: "FINISHED"}


def test_an_altered_bundle_or_a_missing_report_begins_no_run(workspace: Workspace) -> None:
    workspace.record()
    workspace.make(2)
    card = workspace.layout.path("card").read_text(encoding="utf-8")
    workspace.layout.path("card").unlink()
    with pytest.raises(StageInputError, match=r"card\.html does not exist"):
        workspace.record()
    workspace.layout.path("card").write_text(card, encoding="utf-8")
    (workspace.layout.path("bundle") / "template.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"template\.json"):
        workspace.record()
    assert len(runs(workspace)) == 1


@pytest.mark.parametrize("decision", ["PROMOTE", None, "approve"])
def test_a_gate_decision_of_another_spelling_is_refused(workspace: Workspace, decision: str | None) -> None:
    workspace.layout.path("gate").write_text(json.dumps({"decision": decision}), encoding="utf-8")
    with pytest.raises(StageInputError, match=repr(decision)):
        workspace.record()


def test_the_stage_key_depends_on_every_stage_of_the_task_and_on_nothing_else(workspace: Workspace) -> None:
    document = yaml.safe_load(workspace.lock.read_text(encoding="utf-8"))

    def key() -> str:
        workspace.lock.write_text(yaml.safe_dump(document), encoding="utf-8")
        return tracking.stage_key(entries=tracking.lock_entries(lock=workspace.lock, task=TASK))

    seen = {key()}
    document["stages"]["tune@another_task"]["cmd"] = "changed"
    assert {key()} == seen
    for stage in STAGES:
        document["stages"][f"{stage.name}@{TASK}"]["cmd"] = "changed"
        seen.add(key())
    assert len(seen) == len(STAGES) + 1 == 18
    del document["stages"][f"score@{TASK}"]
    with pytest.raises(StageInputError, match=f"no entry score@{TASK}"):
        key()


def test_keys_and_values_stay_within_the_limits_of_mlflow(workspace: Workspace) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param

    text = (
        (workspace.root / "params.yaml").read_text(encoding="utf-8").replace("  description: Sorts", f"  description: {'x' * 7000} Sorts")
    )
    (workspace.root / "params.yaml").write_text(text, encoding="utf-8")
    flat = tracking.flatten_params(load_task(workspace.root / "params.yaml", TASK))
    assert len(flat["report.description"]) == 6000
    for name, value in flat.items():
        _validate_param(name, value)
    labels = ["a/b", "..", ".", " ", "", "é", "100%", "x" * 300, "tab\t", "//"]
    per_class = {label: {"precision": estimate(0.5), "recall": estimate(0.5), "f1": estimate(0.5)} for label in labels}
    figures = tracking.metric_figures({"variants": {"tuned": {"per_class": per_class}}}, {})
    assert len(figures) == len(labels) * 9
    for name in figures:
        _validate_metric_name(name)


def test_a_deleted_experiment_is_named_with_the_way_back(workspace: Workspace) -> None:
    workspace.record()
    client = connect(root=workspace.root).client
    client.delete_experiment(client.get_experiment_by_name(TASK).experiment_id)  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(RegistryError, match="mlflow experiments restore"):
        workspace.record()


def test_a_broken_database_an_absent_one_and_a_dead_server_say_what_to_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    database = workspace.root / ".promptmill" / "mlflow" / "mlflow.db"
    database.write_bytes(b"this is not a database" * 100)
    with pytest.raises(RegistryError, match=r"Opening the MLflow store sqlite:///.*mlflow\.db failed: .*Check MLFLOW_TRACKING_URI"):
        connect(root=workspace.root)
    database.unlink()
    with pytest.raises(RegistryError, match=r"mlflow\.db does not exist.*promptmill run TASK"):
        connect(root=workspace.root)
    assert not database.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9 does not answer .*MLFLOW_TRACKING_URI"):
        connect(root=workspace.root)


def test_a_store_given_by_the_environment_keeps_its_files_below_the_root_too(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = workspace.root / ".promptmill" / "mlflow" / "mlflow.db"
    database.rename(tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    recorded = workspace.record()
    assert (workspace.artifacts / TASK / recorded.run_id / "artifacts" / "gate.json").is_file()
    assert not database.exists()


def test_a_held_lock_is_reported_with_its_file(workspace: Workspace) -> None:
    with (
        connection.task_lock(root=workspace.root, task=TASK),
        pytest.raises(RegistryError, match=r"tweet_sentiment\.lock has been held"),
        connection.task_lock(root=workspace.root, task=TASK, seconds=0.05),
    ):
        pass


def test_behaviour_figures_have_the_names_of_their_probes_and_no_entry_for_what_was_not_asked() -> None:
    rate = {"value": 0.04, "low": 0.02, "high": 0.08, "n": 200}
    none = {"value": None, "low": None, "high": None, "n": 0, "why": "no row was changed"}
    record = {
        "labels": ["bad", "good"],
        "swaps": {
            "pronouns": {"searched": 90, "flip_rate": rate, "shift": {"good": rate, "bad": none}, "predicted": {"bad": 3, "good": 5}}
        },
        "pairs": {},
        "robustness": None,
        "tests": {"a link, at the end": {"kind": "invariance", "failure_rate": rate}},
        "batch_invariance": {"rows": 16, "largest_difference": 2e-6, "flips": 0},
        "bias": {"crows": {"skipped": "an encoder gives texts no likelihood"}},
    }
    figures = tracking.behaviour_figures(record)
    assert {name for name in figures if not name.endswith(("_low", "_high"))} == {
        "behaviour/swaps/pronouns/flip_rate",
        "behaviour/swaps/pronouns/shift/good",
        next(name for name in figures if name.startswith("behaviour/tests/") and name.endswith("/failure_rate")),
        "behaviour/batch_invariance/largest_difference",
        "behaviour/batch_invariance/flips",
    }
    assert figures["behaviour/swaps/pronouns/flip_rate_high"] == 0.08
    assert figures["behaviour/batch_invariance/largest_difference"] == 2e-6
    assert tracking.behaviour_figures({"swaps": {}, "batch_invariance": None}) == {}


def test_behaviour_figures_are_metrics_of_the_run(workspace: Workspace) -> None:
    rate = {"value": 0.04, "low": 0.02, "high": 0.08, "n": 200}
    write_json(workspace.layout.path("behaviour"), {"task": TASK, "swaps": {"pronouns": {"flip_rate": rate}}})
    metrics = connect(root=workspace.root).client.get_run(workspace.record().run_id).data.metrics
    assert {name: value for name, value in metrics.items() if name.startswith("behaviour/")} == {
        "behaviour/swaps/pronouns/flip_rate": 0.04,
        "behaviour/swaps/pronouns/flip_rate_low": 0.02,
        "behaviour/swaps/pronouns/flip_rate_high": 0.08,
    }
