"""A run whose record MLflow did not take is kept and delivered exactly once, by however many processes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.services import mlflow_service, running
from pipeline.errors import RegistryError, RegistryUnreachable
from pipeline.records import read_json
from pipeline.registry.connection import connect
from pipeline.registry.spool import RECORD_FILE, deliver, spool_run, spooled
from pipeline.registry.tracking import STAGE_KEY
from tests.flows.flow_workspace import REPOSITORY
from tests.registry.registry_workspace import TASK, Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Workspace(tmp_path / "w")
    made.root.mkdir()
    made.make(1)
    return made


def keep(workspace: Workspace) -> Path:
    return spool_run(root=workspace.root, task=TASK, params=workspace.params, layout=workspace.layout, lock=workspace.lock)


def sync(root: Path, url: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "MLFLOW_TRACKING_URI": url, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "flows.cli", "sync"]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_records_wait_while_mlflow_is_away_and_are_delivered_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace.root
    service = mlflow_service(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", service.url)
    with pytest.raises(RegistryUnreachable, match="does not answer"):
        workspace.record()
    first = keep(workspace)
    assert keep(workspace) == first
    card = workspace.layout.path("card").read_bytes()
    workspace.make(2)  # the checkout moves on; the first record must not
    second = keep(workspace)
    assert spooled(root=root) == [first, second]
    assert spooled(root=root, task="another") == []
    away = sync(root, service.url)
    assert away.wait(timeout=120) == 1
    assert "does not answer" in away.communicate()[1]
    assert spooled(root=root) == [first, second]
    keys = [read_json(folder / RECORD_FILE)["stage_key"] for folder in (first, second)]
    with running([service]):
        several = [sync(root, service.url) for _ in range(3)]
        ends = [(process.wait(timeout=300), *process.communicate()) for process in several]
        assert [code for code, _, _ in ends] == [0, 0, 0], ends
        assert spooled(root=root) == []
        client = connect(root=root).client
        experiment = client.get_experiment_by_name(TASK).experiment_id
        runs = {run.data.tags[STAGE_KEY]: run for run in client.search_runs([experiment])}
        assert len(client.search_runs([experiment])) == 2
        assert set(runs) == set(keys)
        run = runs[keys[0]]
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"{TASK} {keys[0][:8]}"
        assert Path(client.download_artifacts(run.info.run_id, "card.html")).read_bytes() == card
        assert run.data.metrics["tuned/accuracy"] == 0.625
        assert {dataset.dataset.name for dataset in run.inputs.dataset_inputs} == {"train", "validation", "test"}
        assert workspace.record().reused


def test_an_altered_record_is_not_delivered(workspace: Workspace) -> None:
    folder = keep(workspace)
    victim = next(folder.rglob("card.html"))
    victim.write_text("<html>another</html>", encoding="utf-8")
    with pytest.raises(RegistryError, match=r"card\.html was altered in the spool"):
        deliver(root=workspace.root, folder=folder)
    assert folder.is_dir()


def test_a_local_store_takes_the_record_at_once(workspace: Workspace) -> None:
    folder = keep(workspace)
    recorded = deliver(root=workspace.root, folder=folder)
    assert not recorded.reused
    assert not folder.exists()
    assert workspace.record().run_id == recorded.run_id
