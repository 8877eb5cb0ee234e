"""Stages on workers: a flow's checkout, two workers on two pools with clones of their own, Prefect on PostgreSQL, DVC remote and MLflow's artefacts on S3."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import postgresql
from pipeline.layout import Layout
from pipeline.records import read_json
from tests.flows.flow_workspace import promptmill
from tests.services.worker_site import POOLS, Site, client_environment, kill_tree, stage_processes, tensor_sha256, wait_for
from tests.stages.conftest import TASK

pytestmark = [pytest.mark.services, pytest.mark.skipif(postgresql.programs() is None, reason="PostgreSQL is not installed")]

ANY_PORTS = [part for name in ("postgresql", "s3", "prefect", "mlflow") for part in ("--port", f"{name}=0")]
UP = ("services", "up", "--database", "postgresql", "--artifacts", "s3", "--without", "worker", *ANY_PORTS)
STEPS = 300
CANCEL = """\
import sys
from prefect.client.orchestration import get_client
from prefect.states import Cancelling
with get_client(sync_client=True) as client:
    for run in client.read_flow_runs():
        if run.state.is_running() and run.name.startswith("tune-") == (sys.argv[1] == "stage"):
            client.set_flow_run_state(run.id, Cancelling())
            print(run.id)
"""
RUN_DEPLOYED = """\
import json, sys
from prefect.deployments import run_deployment
print(run_deployment(sys.argv[1], timeout=float(sys.argv[2]), parameters=json.loads(sys.argv[3]), poll_interval=1).state.name)
"""
LOGS = """\
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import LogSort
with get_client(sync_client=True) as client:
    print([line.message for line in client.read_logs(limit=200, sort=LogSort.TIMESTAMP_DESC)])
"""
FLOW_POOL = "promptmill"
ARTIFACT = """\
import sys
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
with get_client(sync_client=True) as client:
    print(client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[sys.argv[1]])))[-1].data)
"""
UNFINISHED = """\
import json
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print(json.dumps([run.name for run in client.read_flow_runs() if run.name.startswith(("tune-", "retrain-")) and not run.state.is_final()]))
"""
FORGET = """\
import boto3
store = boto3.client("s3")
for found in store.list_objects_v2(Bucket="promptmill-dvc").get("Contents", []):
    if "/promptmill-checkpoints/" in found["Key"]:
        store.delete_object(Bucket="promptmill-dvc", Key=found["Key"])
"""
KEYS = "import boto3; print([o['Key'] for o in boto3.client('s3').list_objects_v2(Bucket='promptmill-dvc').get('Contents', [])])"


@pytest.fixture(scope="module")
def site(repo_root: Path) -> Iterator[Site]:
    """Not pytest's own folder: that is closed to the account that runs PostgreSQL for root."""
    with tempfile.TemporaryDirectory() as made:
        base = Path(made)
        base.chmod(0o755)
        (base / "params.yaml").touch()
        site: Site | None = None
        try:
            up = promptmill(*UP, folder=base)
            assert up.returncode == 0, up.stderr
            site = Site(
                base, client_environment(PROMPTMILL_METRICS_FOLDER=str(base / "figures"), **addresses(base)), "s3://promptmill-dvc/files"
            )
            site.make_checkout(repo_root, execution={}, maximum_steps=STEPS, evaluate_every=STEPS // 2, checkpoint_every=5)
            yield site
        finally:
            if site is not None:
                site.close()
            promptmill("services", "down", folder=base)


def addresses(base: Path) -> dict[str, str]:
    """What environment.sh of the services says."""
    script = '. "$0" && exec "$@"'
    show = (sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))")
    command = ["sh", "-c", script, str(base / ".promptmill/services/environment.sh"), *show]
    after = json.loads(subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout)
    return {name: value for name, value in after.items() if name not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")}


@pytest.fixture
def workers(site: Site, reference: tuple[str, str]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two workers that have never run a stage; the checkout knows nothing of tune and score, and the remote of no checkpoint."""
    assert len(reference) == 2
    site.forget_the_two()
    python(site, FORGET)
    started = {pool: site.worker(pool, site.clone(f"{pool}-box")) for pool in POOLS.values()}
    yield started
    site.close()


@pytest.fixture(scope="module")
def reference(site: Site) -> tuple[str, str]:
    """sha256 of the tensor and of the predictions that the checkout made itself."""
    return results(site)


def results(site: Site) -> tuple[str, str]:
    predictions = Layout(site.checkout, TASK).path("predictions")
    return tensor_sha256(site.checkout), predictions.with_name(f"{predictions.name}.sha256").read_text(encoding="utf-8")


def python(site: Site, code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=dict(site.environment), capture_output=True, text=True, check=True)
    return done.stdout


def wait_for_a_checkpoint(site: Site) -> None:
    """Wait until the remote has one; a flow that has ended meanwhile is not waited for."""

    def seen() -> bool:
        assert all(process.poll() is None for process in site.started), site.logs()
        return ".safetensors.json" in python(site, KEYS)

    wait_for(seen, "a checkpoint on the remote", site)


def deploy(site: Site) -> None:
    """Set up the flow on the server, and start a worker for it: where the worker is started is no matter, the deployment names the checkout."""
    deployed = promptmill("deploy", folder=site.checkout, **site.environment)
    assert deployed.returncode == 0, deployed.stderr
    site.start("worker-flows", sys.executable, "-m", "prefect", "worker", "start", "--pool", FLOW_POOL, folder=site.base)


def test_a_deployed_run_makes_on_workers_what_one_machine_makes_and_is_recorded(
    site: Site, workers: dict[str, subprocess.Popen[bytes]], reference: tuple[str, str]
) -> None:
    """Three workers: one has the flow, as `promptmill deploy` set it up, and two the stages that it hands out."""
    assert len(workers) == 2
    deploy(site)
    assert python(site, RUN_DEPLOYED, f"retrain/{TASK}", "1500", "{}").splitlines()[-1] == "Completed", site.logs()
    assert results(site) == reference
    see_the_champion(site)
    for pool in POOLS.values():
        assert f"running on {pool}-box of the work pool {pool}" in site.log("worker-flows")
    keys = python(site, KEYS.replace("promptmill-dvc", "promptmill-artifacts"))
    assert "adapter_model.safetensors" in keys
    assert ".safetensors.json" not in python(site, KEYS), "checkpoints of a stage that is done are removed"
    figures = {stage: (site.base / "figures" / f"promptmill-{TASK}-{stage}.prom").read_text(encoding="utf-8") for stage in POOLS}
    assert all(f'promptmill_stage_seconds{{stage="{stage}",task="{TASK}"}}' in figures[stage] for stage in POOLS)
    assert f'promptmill_tune_examples_per_second{{task="{TASK}"}}' in figures["tune"]


def see_the_champion(site: Site) -> None:
    """See that the version of a deployed run is champion, in the terminal and on Prefect's page."""
    said = promptmill("status", "--json", "--publish", folder=site.checkout, **site.environment)
    assert said.returncode == 0, said.stderr
    (row,) = json.loads(said.stdout)
    assert (row["champion"], row["newest"], row["decision"], row["waiting"], row["notes"]) == (1, 1, "promote", [], [])
    assert row["last_run"]["state"] == "Completed"
    published = python(site, ARTIFACT, "promptmill-status")
    assert f"| {TASK} | version 1" in published
    assert "| Completed" in published


def test_a_stage_whose_machine_dies_goes_on_from_its_checkpoint(
    site: Site, workers: dict[str, subprocess.Popen[bytes]], reference: tuple[str, str]
) -> None:
    run = site.flow("killed")
    wait_for_a_checkpoint(site)
    kill_tree(workers["gpu"].pid)
    assert stage_processes(site.base / "gpu-box") == []
    shutil.rmtree(site.base / "gpu-box" / ".promptmill" / "workspaces")  # only the remote has the checkpoint
    site.worker("gpu", site.base / "gpu-box")
    assert run.wait() == 0, site.logs()
    assert "It is handed out again." in site.log("killed")
    assert results(site) == reference
    assert "fetched the checkpoint" in python(site, LOGS)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["machine", "worker"])
def test_another_machine_takes_over_from_one_that_stays_dark(
    site: Site, workers: dict[str, subprocess.Popen[bytes]], reference: tuple[str, str], dies: str
) -> None:
    """A machine with all that it runs, or a worker alone, whose stage then ends by itself."""
    run = site.flow(f"taken-over-{dies}")
    wait_for_a_checkpoint(site)
    if dies == "machine":
        kill_tree(workers["gpu"].pid)
    else:
        workers["gpu"].kill()
    wait_for(lambda: not stage_processes(site.base / "gpu-box"), "the end of the stage's processes", site, seconds=30.0)
    site.worker("gpu", site.clone("second-gpu-box"))
    assert run.wait() == 0, site.logs()
    said = site.log(f"taken-over-{dies}")
    assert "It is handed out again." in said
    assert dies == "worker" or "The worker gpu-box sends no heartbeat any more." in said
    assert "running on second-gpu-box of the work pool gpu" in said
    assert results(site) == reference
    assert "fetched the checkpoint" in python(site, LOGS)


@pytest.mark.slow
def test_a_fleet_hands_its_stages_to_workers(site: Site, workers: dict[str, subprocess.Popen[bytes]], reference: tuple[str, str]) -> None:
    assert len(workers) == 2
    done = promptmill("retrain-all", folder=site.checkout, **site.environment)
    assert done.returncode == 0, done.stderr + site.logs()
    for pool in POOLS.values():
        assert f"running on {pool}-box of the work pool {pool}" in done.stderr
    assert results(site) == reference


@pytest.mark.slow
def test_a_server_that_is_restarted_is_waited_for(
    site: Site, workers: dict[str, subprocess.Popen[bytes]], reference: tuple[str, str]
) -> None:
    assert len(workers) == 2
    run = site.flow("restarted")
    wait_for_a_checkpoint(site)
    os.kill(int(read_json(site.base / ".promptmill/services/prefect.pid.json")["pid"]), signal.SIGKILL)
    up = promptmill("services", "up", folder=site.base)
    assert up.returncode == 0, up.stderr
    assert run.wait() == 0, site.logs()
    assert results(site) == reference


@pytest.mark.slow
@pytest.mark.parametrize("which", ["stage", "flow", "Ctrl-C"])
def test_a_cancelled_run_ends_everything(site: Site, workers: dict[str, subprocess.Popen[bytes]], which: str) -> None:
    """Somebody cancels the stage's run on the server, or the flow's, or presses Ctrl-C where the flow runs."""
    assert len(workers) == 2
    run = site.flow(f"cancelled-{which}")
    wait_for_a_checkpoint(site)
    if which == "Ctrl-C":
        run.send_signal(signal.SIGINT)
    else:
        assert python(site, CANCEL, which).strip()
    see_the_end(site, which)
    assert run.wait() != 0
    assert which == "Ctrl-C" or "cancelled" in site.log(f"cancelled-{which}")


@pytest.mark.slow
def test_a_cancelled_run_of_a_deployment_ends_everything(site: Site, workers: dict[str, subprocess.Popen[bytes]]) -> None:
    assert len(workers) == 2
    deploy(site)
    python(site, RUN_DEPLOYED, f"retrain/{TASK}", "0", json.dumps({"unless_unchanged": False}))
    wait_for_a_checkpoint(site)
    assert python(site, CANCEL, "flow").strip()
    see_the_end(site, "deployed flow")


def see_the_end(site: Site, what: str) -> None:
    """See that no process of a stage is left and that the server knows that all has ended, and say how long that took."""
    asked = time.monotonic()
    wait_for(lambda: not stage_processes(site.base), "the end of the stage's processes", site)
    sys.stderr.write(f"{what}: the stage's processes were gone after {time.monotonic() - asked:.1f} s\n")
    wait_for(lambda: not unfinished(site), "a final state of the runs", site)


def unfinished(site: Site) -> list[str]:
    return json.loads(python(site, UNFINISHED))
