"""A fleet that `promptmill deploy` set up, run by a worker of its pool."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.settings import PREFECT_API_URL
from ruamel.yaml import YAML

from flows import cli
from flows.fleet_limit import limit_name
from pipeline.registry.registry import list_versions
from tests.flows.data_workspace import commit
from tests.flows.deployed import clear
from tests.flows.fleet_checkout import make_fleet
from tests.flows.flow_workspace import environment

POOL = {"name": "fleets", "type": "process", "limit": 1}


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    with get_client(sync_client=True) as opened:
        yield opened
        clear(opened)


def use_pool(root: Path) -> None:
    path = root / "params.yaml"
    document: Any = YAML(typ="safe").load(path)
    document["defaults"]["deployment"]["pool"] = document["fleet"]["pool"] = POOL
    with path.open("w", encoding="utf-8") as stream:
        YAML(typ="safe").dump(document, stream)
    commit(root, "a pool with a limit")


@pytest.mark.slow
def test_a_worker_retrains_the_fleet_that_was_deployed(
    tmp_path: Path, tiny_bundle: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_fleet(tmp_path / "fleet", tiny_bundle, ["anna"])
    use_pool(root)
    monkeypatch.chdir(root)
    assert cli.main(["deploy", "--project", "demo"]) == 0
    deployment = client.read_deployment_by_name("retrain-all/fleet")
    run = client.create_flow_run_from_deployment(deployment.id)
    settings = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL["name"], "--run-once", "--install-policy", "never"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment(), **settings}, capture_output=True, text=True, check=False, timeout=900
    )
    said = done.stdout + done.stderr
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_completed(), said
    assert [version["aliases"] for version in list_versions(root=root, task="anna")] == [["challenger", "champion"]]
    below = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id])))
    assert [(one.name, "promptmill-task:anna" in one.tags) for one in below] == [("retrain-anna", True)]
    (artifact,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["fleet"])))
    assert "Promoted" in str(artifact.data)
    assert client.read_global_concurrency_limit_by_name(limit_name(POOL["name"])).active_slots == 0
