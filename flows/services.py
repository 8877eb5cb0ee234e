"""The servers of one workspace, as processes of their own on loopback: Prefect, MLflow, and one that serves a registered version."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flows.process_group import GRACE_SECONDS, process_group
from flows.settings import last_line, log_file, missing_defaults, state_folder
from pipeline.errors import WorkspaceError
from pipeline.registry.connection import artifacts_folder, tracking_uri

HOST = "127.0.0.1"
PREFECT_PORT = 4200
MLFLOW_PORT = 5000
START_SECONDS = 180.0
SERVE_SECONDS = 600.0  # it loads the base model
# `mlflow models`, without the import of all of MLflow's other commands.
MLFLOW_MODELS = "from mlflow.models.cli import commands; commands(prog_name='mlflow models')"
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Port:
    """A port on loopback that nothing listened on, claimed until `claim` is released or the process ends."""

    number: int
    claim: FileLock


@dataclass(frozen=True)
class Service:
    """A server: how and in which folder to start it, on which port, where it answers, and where its output goes."""

    name: str
    port: Port
    folder: Path
    command: tuple[str, ...]
    environment: Mapping[str, str]
    url: str
    health_url: str
    log: Path
    start_seconds: float = START_SECONDS
    grace_seconds: float = GRACE_SECONDS


@dataclass(frozen=True)
class RunningService:
    """A started server with its process."""

    service: Service
    process: subprocess.Popen[bytes]


def prefect_service(root: Path) -> Service:
    """Prefect's server and page on the workspace's own database, which earlier runs wrote to."""
    port = claim_port(PREFECT_PORT)
    url = f"http://{HOST}:{port.number}"
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= missing_defaults(root, os.environ)
    environment["PREFECT_SERVER_UI_API_URL"] = f"{url}/api"  # by default the page asks port 4200, whatever port serves it
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port.number))
    return Service("Prefect", port, state_folder(root), command, environment, url, f"{url}/api/health", log_file(root, "prefect-server"))


def mlflow_service(root: Path) -> Service:
    """MLflow's server and page on the workspace's own database and artifacts."""
    port = claim_port(MLFLOW_PORT)
    url = f"http://{HOST}:{port.number}"
    state_folder(root).joinpath("mlflow").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight idle workers of 250 MB each otherwise
    store = ("--backend-store-uri", tracking_uri(root=root), "--default-artifact-root", artifacts_folder(root=root).as_uri())
    command = (sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port.number), "--workers", "1", *store)
    return Service("MLflow", port, state_folder(root), command, environment, url, f"{url}/health", log_file(root, "mlflow-server"))


def version_service(root: Path, task: str, version: int, start_seconds: float = SERVE_SECONDS) -> Service:
    """`mlflow models serve` of a registered version, as infra would start it; it answers once it has loaded the version.

    The server is a fresh process, so nothing of the run that made the version can help it to load. It works in the checkout, where the relative path of a base model begins.
    """
    port = claim_port(0)
    url, uri = f"http://{HOST}:{port.number}", tracking_uri(root=root)
    programs = str(Path(sys.executable).parent)  # it starts uvicorn by name
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": os.environ.get("MLFLOW_REGISTRY_URI") or uri,
        "PATH": os.pathsep.join((programs, os.environ.get("PATH", os.defpath))),
    }
    model = ("--model-uri", f"models:/{task}/{version}", "--env-manager", "local")
    command = (sys.executable, "-c", MLFLOW_MODELS, "serve", *model, "--host", HOST, "--port", str(port.number))
    name = f"{task} version {version}"
    log = log_file(root, task, "check")
    return Service(
        name, port, root, command, environment, url, f"{url}/ping", log, start_seconds, grace_seconds=0
    )  # it has nothing to keep


@contextmanager
def running(services: Sequence[Service], *, meanwhile: Callable[[], object] = lambda: None) -> Generator[list[RunningService]]:
    """Start servers together, call `meanwhile`, and yield when all answer; on leaving the block, however it is left, their process groups are gone.

    Raises WorkspaceError with the last line of its log when one ends or does not answer within its `start_seconds`.
    """
    with ExitStack() as stack:
        started: list[RunningService] = []
        for service in services:
            stack.callback(service.port.claim.release)
            log = stack.enter_context(service.log.open("wb"))
            group = process_group(
                service.command,
                folder=service.folder,
                environment=service.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                grace_seconds=service.grace_seconds,
            )
            started.append(RunningService(service, stack.enter_context(group)))
        meanwhile()
        for one in started:
            _wait_until_answering(one)
        yield started


def check_alive(started: Sequence[RunningService]) -> None:
    """Raise WorkspaceError for the first server that has ended."""
    for one in started:
        code = one.process.poll()
        if code is not None:
            raise WorkspaceError(f"The {one.service.name} server ended with exit code {code}: {last_line(one.service.log)}")


def claim_port(preferred: int) -> Port:
    """`preferred` (0: none) when nothing listens there and no other promptmill is about to, else a port the system chooses.

    A server takes seconds to listen. Without the claim, two runs that start together would choose one port, the second server would end,
    and the second run would be answered, and recorded, by the server of the first.
    """
    folder = Path(tempfile.gettempdir()) / f"promptmill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            number = int(probe.getsockname()[1])
        claim = FileLock(folder / f"port-{number}.lock")
        try:
            claim.acquire(blocking=False)
        except Timeout:
            continue
        return Port(number, claim)
    raise WorkspaceError(f"No port is free on {HOST}. End a program that listens there and try again.")


def _wait_until_answering(started: RunningService) -> None:
    deadline = time.monotonic() + started.service.start_seconds
    while not answers(started.service.health_url):
        check_alive([started])
        if time.monotonic() > deadline:
            raise WorkspaceError(
                f"The {started.service.name} server did not answer on {started.service.health_url} within {started.service.start_seconds:g} s. "
                f"See {started.service.log} and try again."
            )
        time.sleep(POLL_SECONDS)


def answers(url: str) -> bool:
    """Whether GET `url` on this machine is answered with 200 within some seconds."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5.0) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
