"""What `promptmill services` runs: the command, the environment and the health check of each service.

Each has its data below `.promptmill/services/<name>`; the databases of the embedded servers (`promptmill run`, `promptmill ui`) are not touched.
"""

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from flows import postgresql
from flows.services import HOST, answers
from flows.settings import missing_defaults
from flows.standing_services import StandingService

POSTGRESQL, S3, PREFECT, MLFLOW, WORKER = "postgresql", "s3", "prefect", "mlflow", "worker"
KINDS = (POSTGRESQL, S3, PREFECT, MLFLOW, WORKER)
PORTS = {POSTGRESQL: 5433, S3: 9000, PREFECT: 4200, MLFLOW: 5000}  # 5432 is often taken by a cluster of the machine's own
WORK_POOL = "promptmill"
ARTIFACTS_BUCKET, DVC_BUCKET = "promptmill-artifacts", "promptmill-dvc"
S3_ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # moto asks nobody for a secret

# What would lead a service to servers and databases other than those of this plan.
_FOREIGN = (
    "PREFECT_API_",
    "PREFECT_SERVER_",
    "PREFECT_HOME",
    "PREFECT_PROFILE",
    "MLFLOW_TRACKING_",
    "MLFLOW_REGISTRY_",
    "MLFLOW_S3_",
    "MLFLOW_ARTIFACT",
    "PG",
)


@dataclass(frozen=True)
class Plan:
    """The ports of one set of services; `s3_port` is None without an S3 endpoint, `postgresql_port` None on SQLite."""

    folder: Path
    prefect_port: int
    mlflow_port: int
    postgresql_port: int | None = None
    s3_port: int | None = None
    artifacts_on_s3: bool = False

    @property
    def prefect_url(self) -> str:
        """Where Prefect's page is; its API is below it."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's page and tracking URI."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def s3_url(self) -> str | None:
        """The S3 endpoint, if there is one."""
        return None if self.s3_port is None else f"http://{HOST}:{self.s3_port}"


def service_names(kinds: list[str], workers: list[str]) -> list[str]:
    """The names of the services of these kinds, in the order in which they start: `worker-<pool>-<number>` for each entry of `workers`."""
    names = [kind for kind in KINDS if kind in kinds and kind != WORKER]
    if WORKER in kinds:
        names += [worker_name(pool, workers[: place + 1].count(pool)) for place, pool in enumerate(workers)]
    return names


def worker_name(pool: str, number: int) -> str:
    """The name of the `number`-th worker of a pool."""
    return f"{WORKER}-{pool}-{number}"


def missing_moto() -> str | None:
    """Why there can be no S3 endpoint; None when there can."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        return "moto is not installed (`pip install 'promptmill[services]'`)"
    return None


def postgresql_service(folder: Path, port: int, user: str | None) -> StandingService:
    """The database server of Prefect and MLflow."""
    home = folder / POSTGRESQL
    url = postgresql.url("postgresql", HOST, port, postgresql.ADMINISTRATION)
    command = postgresql.server_command(home, HOST, port)
    return StandingService(POSTGRESQL, command, _own_environment(), port, url, url, user, postgresql.FAST_SHUTDOWN)


def s3_service(plan: Plan) -> StandingService:
    """moto's S3: everything in memory, gone when it ends."""
    port, url = plan.s3_port or 0, plan.s3_url or ""
    command = (sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(port))
    return StandingService(S3, command, _own_environment(), port, url, f"{url}/moto-api/")


def prefect_service(plan: Plan) -> StandingService:
    """Prefect's server with its background services."""
    home = plan.folder / PREFECT
    home.mkdir(parents=True, exist_ok=True)
    database = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    if plan.postgresql_port is not None:
        database = postgresql.url("postgresql+asyncpg", HOST, plan.postgresql_port, PREFECT)
    environment = _prefect_environment(plan) | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_UI_API_URL": f"{plan.prefect_url}/api",
    }
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(plan.prefect_port))
    return StandingService(PREFECT, command, environment, plan.prefect_port, plan.prefect_url, f"{plan.prefect_url}/api/health")


def mlflow_service(plan: Plan) -> StandingService:
    """MLflow's server; clients send and get artefacts through it, and need no access to where it keeps them."""
    home = plan.folder / MLFLOW
    home.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{home / 'mlflow.db'}"
    if plan.postgresql_port is not None:
        database = postgresql.url("postgresql+psycopg2", HOST, plan.postgresql_port, MLFLOW)  # SQLAlchemy 2.1 would look for psycopg 3
    environment = _own_environment() | _database_client(plan) | s3_client(plan)
    environment |= {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight idle workers of 250 MB each otherwise
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{ARTIFACTS_BUCKET}" if plan.artifacts_on_s3 else (home / "artifacts").as_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = (
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(plan.mlflow_port),
        "--workers",
        "1",
        "--serve-artifacts",
    )
    return StandingService(MLFLOW, command, environment, plan.mlflow_port, plan.mlflow_url, f"{plan.mlflow_url}/health")


def worker_service(plan: Plan, pool: str, number: int, port: int) -> StandingService:
    """A Prefect worker of kind process, which makes its pool when there is none; `port` is that of its health check."""
    name, url = worker_name(pool, number), f"http://{HOST}:{port}"
    environment = _prefect_environment(plan) | clients(plan)
    environment |= {"PREFECT_WORKER_WEBSERVER_HOST": HOST, "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath)))
    start = ("worker", "start", "--pool", pool, "--type", "process", "--name", name, "--with-healthcheck", "--install-policy", "never")
    return StandingService(name, (sys.executable, "-m", "prefect", *start), environment, port, url, f"{url}/health")


def clients(plan: Plan) -> dict[str, str]:
    """The environment in which promptmill, Prefect, MLflow and DVC use these services."""
    local = ",".join(dict.fromkeys([*filter(None, os.environ.get("NO_PROXY", "").split(",")), HOST, "localhost"]))
    addresses = {"PREFECT_API_URL": f"{plan.prefect_url}/api", "MLFLOW_TRACKING_URI": plan.mlflow_url}
    return addresses | s3_client(plan) | {"NO_PROXY": local, "no_proxy": local}


def s3_client(plan: Plan) -> dict[str, str]:
    """What an S3 client needs for the endpoint; nothing without one, so that a person's own account stays in use."""
    return {} if plan.s3_url is None else {**S3_ACCOUNT, "AWS_ENDPOINT_URL": plan.s3_url, "MLFLOW_S3_ENDPOINT_URL": plan.s3_url}


def shell_lines(environment: Mapping[str, str]) -> str:
    """An environment as lines for a shell to read."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())


@dataclass(frozen=True)
class Health:
    """How to ask a service of `folder` by its health URL: a GET, or for PostgreSQL a query with our own password."""

    folder: Path

    def __call__(self, url: str) -> bool:
        """True when the service answers as itself."""
        parts = urlsplit(url)
        if parts.scheme == "postgresql":
            return postgresql.accepts_connections(self.folder / POSTGRESQL, HOST, parts.port or 0)
        return answers(url)


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


def _prefect_environment(plan: Plan) -> dict[str, str]:
    environment = _own_environment() | _database_client(plan)
    environment |= missing_defaults(plan.folder, environment)
    return environment | {"PREFECT_HOME": str(plan.folder / PREFECT), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"}


def _database_client(plan: Plan) -> dict[str, str]:
    return {} if plan.postgresql_port is None else postgresql.client_environment(plan.folder / POSTGRESQL)
