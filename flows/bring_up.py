"""Bringing the services of a checkout up, in the order in which they need each other, once however often it is asked for."""

import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows import postgresql, service_plan
from flows.service_plan import DVC_BUCKET, MLFLOW, PORTS, POSTGRESQL, PREFECT, S3, WORKER, Health, Plan
from flows.services import HOST, Port
from flows.standing_services import (
    UP_SECONDS,
    Record,
    StandingService,
    alive,
    choose_port,
    records,
    start,
    stop,
    stop_strays,
    wait_until_healthy,
)
from pipeline.errors import WorkspaceError
from pipeline.records import read_json, write_json

SETTINGS_FILE = "services.json"
ENVIRONMENT_FILE = "environment.sh"
AUTO, SQLITE, FOLDER = "auto", "sqlite", "folder"


@dataclass(frozen=True)
class Wish:
    """What a person asks for; None and empty stand for what was chosen before, and else for the default.

    `database`: postgresql, sqlite or auto. `artifacts`: where MLflow keeps them, folder or s3. `workers`: a pool for each worker.
    """

    database: str | None = None
    artifacts: str | None = None
    workers: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    ports: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Choice:
    """What is to run, as `services.json` keeps it."""

    database: str
    artifacts: str
    workers: list[str]
    services: list[str]
    ports: dict[str, int]


def bring_up(folder: Path, wish: Wish, say: Callable[[str], None], *, seconds: float = UP_SECONDS) -> tuple[Plan, list[Record]]:
    """Start what does not run yet and return when every service answers, with the records of those that this call started.

    Raises WorkspaceError when one cannot start; what this call had started is then ended again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    choice = choose(folder, wish, say)
    if strays := stop_strays_only(folder):
        say(f"Ended {strays} processes of services that were killed before.")
    started: list[Record] = []
    with ExitStack() as claims:
        try:
            plan = _bring_up(folder, choice, started, claims, seconds)
        except BaseException:
            stop(folder, [record.name for record in started])
            raise
    ports = {**choice.ports, **{name: record.port for name, record in records(folder).items()}}
    write_json(folder / SETTINGS_FILE, {**asdict(choice), "ports": ports})
    environment = folder / ENVIRONMENT_FILE
    environment.write_text(service_plan.shell_lines(service_plan.clients(plan)), encoding="utf-8")
    return plan, started


def stop_strays_only(folder: Path) -> int:
    """End what carries this folder's mark while none of its services runs; with some running, what they started cannot be told from strays."""
    return 0 if any(alive(record) for record in records(folder).values()) else stop_strays(folder)


def wanted(folder: Path) -> list[str]:
    """The names of the services that the last `up` chose; empty when there was none."""
    return list(_settings(folder).get("services", ()))


def choose(folder: Path, wish: Wish, say: Callable[[str], None]) -> Choice:
    """What is to run: the wish, where it is silent the choice before, else the defaults, less what this machine lacks, which is said.

    Raises WorkspaceError when the wish contradicts what runs, or asks for what this machine lacks.
    """
    before = _settings(folder)
    database = _database(folder, wish.database or before.get("database") or AUTO, say)
    if before.get("database", database) != database:
        say(f"The databases of {before['database']} are kept, but not used: Prefect and MLflow begin with empty ones on {database}.")
    artifacts = wish.artifacts or before.get("artifacts") or FOLDER
    workers = list(before.get("workers", [service_plan.WORK_POOL]) if wish.workers is None else wish.workers)
    kinds = [kind for kind in service_plan.KINDS if kind not in wish.without and (kind != POSTGRESQL or database == POSTGRESQL)]
    missing = service_plan.missing_moto()
    if S3 in kinds and missing:
        if artifacts == S3:
            raise WorkspaceError(f"Artefacts on S3 were asked for, but {missing}.")
        say(f"No S3 endpoint: {missing}.")
        kinds.remove(S3)
    if artifacts == S3 and S3 not in kinds:
        raise WorkspaceError(
            "MLflow's artefacts are to lie on the S3 endpoint, which is left out: `--artifacts folder`, or leave out neither."
        )
    if POSTGRESQL in wish.without and database == POSTGRESQL:
        raise WorkspaceError("Prefect's and MLflow's databases are on PostgreSQL, which is left out: `--database sqlite`.")
    choice = Choice(
        database, artifacts, workers, service_plan.service_names(kinds, workers), {**PORTS, **before.get("ports", {}), **wish.ports}
    )
    _check_running(folder, before, choice)
    return choice


def _database(folder: Path, asked: str, say: Callable[[str], None]) -> str:
    if asked == SQLITE:
        return SQLITE
    missing = postgresql.why_not(folder / POSTGRESQL)
    if missing and asked == POSTGRESQL:
        raise WorkspaceError(
            f"PostgreSQL was asked for, now or when the services were first started, but {missing}. Or choose `--database sqlite`."
        )
    if missing:
        say(f"No PostgreSQL: {missing}. Prefect and MLflow get SQLite databases instead, which serve one machine and few workers.")
    return SQLITE if missing else POSTGRESQL


def _check_running(folder: Path, before: dict[str, Any], choice: Choice) -> None:
    """A server that runs keeps its database, artefacts and port until it is stopped."""
    running = {name: record for name, record in records(folder).items() if alive(record)}
    changed = [
        f"{what} {before[what]} (asked for: {asked})"
        for what, asked, users in (("database", choice.database, {PREFECT, MLFLOW}), ("artifacts", choice.artifacts, {MLFLOW}))
        if before.get(what, asked) != asked and users & running.keys()
    ]
    changed += [
        f"{name} on port {record.port} (asked for: {choice.ports[name]})"
        for name, record in running.items()
        if choice.ports.get(name, 0) not in (0, record.port)
    ]
    if changed:
        raise WorkspaceError(f"The services run with {', '.join(changed)}. Stop them first: `promptmill services down`.")


def _bring_up(folder: Path, choice: Choice, started: list[Record], claims: ExitStack, seconds: float) -> Plan:
    healthy = Health(folder)

    def port(name: str) -> int:
        found = choose_port(folder, name, choice.ports.get(name, 0))
        if isinstance(found, Port):
            claims.callback(found.claim.release)
            return found.number
        return found

    def ensure(services: Sequence[StandingService]) -> None:
        known = records(folder)
        fresh = [service for service in services if service.name not in known or not alive(known[service.name])]
        started.extend(start(folder, service) for service in fresh)
        wait_until_healthy([records(folder)[service.name] for service in services], healthy, seconds)

    dead = [name for name, record in records(folder).items() if not alive(record)]
    stop(folder, dead)  # what they have left may keep their ports
    names = choice.services
    ports = {name: port(name) for name in (POSTGRESQL, S3, PREFECT, MLFLOW) if name in names}
    if POSTGRESQL in ports:
        ensure([_prepared_postgresql(folder, ports[POSTGRESQL])])
        postgresql.make_databases(folder / POSTGRESQL, HOST, ports[POSTGRESQL])
    plan = Plan(
        folder=folder, prefect_port=ports.get(PREFECT, choice.ports[PREFECT]), mlflow_port=ports.get(MLFLOW, choice.ports[MLFLOW]),
        postgresql_port=ports.get(POSTGRESQL), s3_port=ports.get(S3), artifacts_on_s3=choice.artifacts == S3,
    )  # fmt: skip
    servers = {S3: service_plan.s3_service, PREFECT: service_plan.prefect_service, MLFLOW: service_plan.mlflow_service}
    ensure([make(plan) for name, make in servers.items() if name in names])
    if plan.s3_url:
        for bucket in (service_plan.ARTIFACTS_BUCKET, DVC_BUCKET):
            _make_bucket(plan.s3_url, bucket)
    workers = [name for name in names if name.startswith(f"{WORKER}-")]
    ensure([service_plan.worker_service(plan, *_pool_and_number(name), port(name)) for name in workers])
    return plan


def _prepared_postgresql(folder: Path, port: int) -> StandingService:
    user = postgresql.account()
    postgresql.make_cluster(folder / POSTGRESQL, user)
    return service_plan.postgresql_service(folder, port, user)


def _make_bucket(endpoint: str, bucket: str) -> None:
    """moto looks at no signature, and making a bucket that exists is no error in its region."""
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
        pass


def _pool_and_number(name: str) -> tuple[str, int]:
    pool, _, number = name.removeprefix(f"{WORKER}-").rpartition("-")
    return pool, int(number)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_FILE
    return read_json(path) if path.exists() else {}
