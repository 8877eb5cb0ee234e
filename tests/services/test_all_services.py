"""`promptmill services` as a person uses it: the whole set on PostgreSQL, with artefacts on S3 and two workers, from a command line."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from flows import postgresql
from flows.standing_services import MARK
from tests.flows.flow_workspace import environment, promptmill

pytestmark = [pytest.mark.services, pytest.mark.skipif(postgresql.programs() is None, reason="PostgreSQL is not installed")]

ANY_PORTS = [part for name in ("postgresql", "s3", "prefect", "mlflow") for part in ("--port", f"{name}=0")]
NAMES = ["postgresql", "s3", "prefect", "mlflow", "worker-cpu-1", "worker-gpu-1"]

ARTEFACT = """\
import mlflow
with mlflow.start_run():
    mlflow.log_text("kept", "notes/a.txt")
    uri = mlflow.get_artifact_uri()
print(uri)  # after the block, whose end prints lines of its own
print(mlflow.artifacts.load_text(f"{uri}/notes/a.txt"))
"""

# A flow run that a worker executes: its process leads a session of its own.
DEPLOYED = """\
import sys, time
from pathlib import Path
from prefect import flow

@flow
def wait(marker: str) -> None:
    Path(marker).touch()
    time.sleep(600)

if __name__ == "__main__":
    from prefect.deployments import run_deployment
    wait.from_source(source=str(Path(__file__).parent), entrypoint="deployed.py:wait").deploy(
        name="waiting", work_pool_name="cpu", build=False, push=False, print_next_steps=False)
    run_deployment("wait/waiting", parameters={"marker": sys.argv[1]}, timeout=0)
"""


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """Not pytest's own folder: that is closed to the account that runs PostgreSQL for root."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        root.chmod(0o755)
        (root / "params.yaml").touch()
        yield root
        promptmill("services", "down", folder=root)


def marked(root: Path) -> list[list[str]]:
    found: list[list[str]] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(root)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
        except (psutil.Error, OSError):
            continue
    return found


def client(root: Path, command: Sequence[str]) -> str:
    """Run a command in the environment that `environment.sh` makes."""
    script = '. "$0" && exec "$@"'
    shell = ["sh", "-c", script, str(root / ".promptmill/services/environment.sh"), *command]
    done = subprocess.run(shell, cwd=root, env=environment(), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def record(root: Path, name: str) -> dict[str, object]:
    return json.loads((root / f".promptmill/services/{name}.pid.json").read_text())


def test_all_of_it_from_up_to_down(checkout: Path) -> None:
    up = promptmill(
        "services", "up", "--database", "postgresql", "--artifacts", "s3", "--worker", "cpu", "--worker", "gpu", *ANY_PORTS, folder=checkout
    )
    assert up.returncode == 0, up.stderr
    assert [line.split()[0] for line in up.stdout.splitlines()[1:7]] == NAMES
    assert up.stdout.count(" started ") == 6
    status = promptmill("services", "status", folder=checkout)
    assert (status.returncode, status.stdout.count(" running ")) == (0, 6), status.stdout

    uri, text = client(checkout, [sys.executable, "-c", ARTEFACT]).split()[-2:]
    assert uri.startswith("mlflow-artifacts:/"), "the client needs no access to the store"
    assert text == "kept"
    listing = "import boto3; print([o['Key'] for o in boto3.client('s3').list_objects_v2(Bucket='promptmill-artifacts')['Contents']])"
    assert "notes/a.txt" in client(checkout, [sys.executable, "-c", listing])
    pools = client(checkout, [sys.executable, "-m", "prefect", "work-pool", "ls", "--output", "json"])
    assert {pool["name"]: pool["type"] for pool in json.loads(pools)} == {"cpu": "process", "gpu": "process"}

    again = promptmill("services", "up", folder=checkout)
    assert (again.returncode, again.stdout.count(" ran already ")) == (0, 6), again.stderr

    os.kill(int(str(record(checkout, "mlflow")["pid"])), signal.SIGKILL)
    dead = promptmill("services", "status", folder=checkout)
    assert dead.returncode == 1
    assert "mlflow" in dead.stdout.split("ended:")[0]
    repaired = promptmill("services", "up", folder=checkout)
    assert (repaired.returncode, repaired.stdout.count(" ran already "), repaired.stdout.count(" started ")) == (0, 5, 1), repaired.stderr
    assert (
        client(checkout, [sys.executable, "-c", "import mlflow; print(len(mlflow.search_runs(experiment_ids=['0'])))"]).split()[-1] == "1"
    )

    (checkout / "deployed.py").write_text(DEPLOYED, encoding="utf-8")
    marker = checkout / "flow-run-started"
    client(checkout, [sys.executable, "deployed.py", str(marker)])
    waited = subprocess.run(["timeout", "120", "sh", "-c", f"until [ -e {marker} ]; do sleep 0.2; done"], check=False)
    assert waited.returncode == 0, (checkout / ".promptmill/services/logs/worker-cpu-1.log").read_text()
    assert len(marked(checkout)) > 6, "PostgreSQL's own processes apart, the servers, the workers and the flow run"

    down = promptmill("services", "down", folder=checkout)
    assert (down.returncode, down.stdout.count(" ended\n")) == (0, 6), down.stdout + down.stderr
    assert marked(checkout) == []
    assert promptmill("services", "status", folder=checkout).returncode == 1


def test_a_second_up_finds_everything_on_sqlite_too(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    ports = [part for name in ("prefect", "mlflow") for part in ("--port", f"{name}=0")]
    arguments = ("services", "up", "--database", "sqlite", "--without", "s3", "--without", "worker", *ports)
    try:
        up = promptmill(*arguments, folder=tmp_path)
        assert (up.returncode, up.stdout.count(" started ")) == (0, 2), up.stderr
        assert (tmp_path / ".promptmill/services/mlflow/mlflow.db").is_file()
        assert promptmill("services", "status", folder=tmp_path).returncode == 0
    finally:
        assert promptmill("services", "down", folder=tmp_path).returncode == 0
    assert marked(tmp_path) == []
