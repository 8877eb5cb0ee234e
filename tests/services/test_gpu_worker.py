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
            site = Site(base, client_environment(**addresses(base)), "s3://promptmill-dvc/files")
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
    """Two workers that have never run a stage; the checkout knows nothing of tune and score."""
    assert reference
    site.forget_the_two()
    for pool in POOLS.values():
        shutil.rmtree(site.base / f"{pool}-box", ignore_errors=True)
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
    wait_for(lambda: ".safetensors.json" in python(site, KEYS), "a checkpoint on the remote", site)


def test_two_workers_make_what_one_machine_makes_and_the_run_is_recorded(
    site: Site, workers: dict[str, subprocess.Popen[bytes]], reference: tuple[str, str]
) -> None:
    assert len(workers) == 2
    code = site.start("run", sys.executable, "-m", "flows.cli", "run", TASK, folder=site.checkout).wait()
    assert code in (0, 3), site.logs()
    assert results(site) == reference
    for pool in POOLS.values():
        assert f"running on {pool}-box of the work pool {pool}" in site.log("run")
    keys = python(site, KEYS.replace("promptmill-dvc", "promptmill-artifacts"))
    assert "adapter_model.safetensors" in keys
    assert ".safetensors.json" not in python(site, KEYS), "checkpoints of a stage that is done are removed"


def test_a_machine_that_dies_and_comes_back_goes_on_from_the_checkpoint(
    site: Site, workers: dict[str, subprocess.Popen[bytes]], reference: tuple[str, str]
) -> None:
    run = site.flow("killed")
    wait_for_a_checkpoint(site)
    kill_tree(workers["gpu"].pid)
    assert stage_processes(site.base / "gpu-box") == []
    shutil.rmtree(site.base / "gpu-box" / ".promptmill" / "workspaces")  # as on another machine: only the remote has the checkpoint
    site.worker("gpu", site.base / "gpu-box")
    assert run.wait() == 0, site.logs()
    assert "It is handed out again." in site.log("killed")
    assert results(site) == reference
    assert "fetched the checkpoint" in python(
        site,
        "from prefect.client.orchestration import get_client\nwith get_client(sync_client=True) as c:\n  print([l.message for l in c.read_logs(limit=200)])",
    )


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


@pytest.mark.parametrize("which", ["stage", "flow"])
def test_a_cancelled_run_ends_everything(site: Site, workers: dict[str, subprocess.Popen[bytes]], which: str) -> None:
    assert len(workers) == 2
    run = site.flow(f"cancelled-{which}")
    wait_for_a_checkpoint(site)
    assert python(site, CANCEL, which).strip()
    asked = time.monotonic()
    wait_for(lambda: not stage_processes(site.base), "the end of the stage's processes", site)
    sys.stderr.write(f"{which} cancelled: its processes were gone after {time.monotonic() - asked:.1f} s\n")
    assert run.wait() != 0
    assert "cancelled" in site.log(f"cancelled-{which}")
