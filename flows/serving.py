"""A registered version behind a server of its own, started as infra would: `mlflow models serve`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from flows.process_group import process_group
from flows.settings import log_file
from pipeline.errors import RegistryError
from pipeline.registry.check_version import ready
from pipeline.registry.connection import tracking_uri

HOST = "127.0.0.1"
SERVE = "from mlflow.models.cli import commands; commands(prog_name='mlflow models')"  # `mlflow models` without the import of all of MLflow's other commands
SERVE_SECONDS = 600.0
POLL_SECONDS = 0.2


@contextmanager
def serving(root: Path, task: str, version: int, seconds: float = SERVE_SECONDS) -> Generator[str]:
    """Serve a version on a free port of loopback for the length of the block; yields the server's address once it has loaded the version.

    The server is a fresh process, so that nothing of the run that made the version can help it to load. Raises RegistryError with the last line that
    it printed when it ends, or has not loaded the version within `seconds`.
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    uri = tracking_uri(root=root)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": os.environ.get("MLFLOW_REGISTRY_URI") or uri}
    programs = str(Path(sys.executable).parent)  # it starts uvicorn by name
    environment["PATH"] = os.pathsep.join((programs, environment.get("PATH", os.defpath)))
    address = ("--host", HOST, "--port", str(port))
    command = (
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--model-uri",
        f"models:/{task}/{version}",
        "--env-manager",
        "local",
        *address,
    )
    log = log_file(root, task, "check")
    with (
        log.open("wb") as stream,
        process_group(
            command, folder=root, environment=environment, stdout=stream, stderr=subprocess.STDOUT, grace_seconds=0
        ) as server,  # it has nothing to keep
    ):
        url = f"http://{HOST}:{port}"
        deadline = time.monotonic() + seconds
        while not ready(url):  # short waits in Python code, so that a time-out or signal is seen at once
            if server.poll() is not None or time.monotonic() > deadline:
                how = f"took longer than {seconds:g} s" if server.poll() is None else f"ended with exit code {server.returncode}"
                raise RegistryError(
                    f"{task} version {version} does not answer in a fresh process: serving it {how}: {_last_line(log)} "
                    f"All it printed is in {log}. Register it again; do not promote it."
                )
            time.sleep(POLL_SECONDS)
        yield url


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing."
