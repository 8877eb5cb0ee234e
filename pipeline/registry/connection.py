"""How MLflow is reached: explicit clients instead of MLflow's global state, its errors in our words, and the lock per task.

Without `MLFLOW_TRACKING_URI` everything lies below `<root>/.promptmill/mlflow`, wherever the process was started.
"""

import logging
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RegistryError, RegistryUnreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE_FOLDER = ".promptmill"
LOCK_SECONDS = 600.0
REACH_SECONDS = 10.0

# They announce, at level INFO, that a database is made, an example checked, a version waited for.
_CHATTY_LOGGERS = ("mlflow.store.db.utils", "alembic", "mlflow.pyfunc", "mlflow.store.model_registry.abstract_store")
# A server that is restarted is waited for, but by short steps: MLflow's own last pauses are longer than a restart takes.
_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "6", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
_PROGRESS_BAR = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
# MLflow 3.17 warns about a type hint of its own classes, and declares its tables in a way that SQLAlchemy 2.1 deprecates.
# Where Prefect's server is in the same process, MLflow maps its tables too, and Prefect 3.8 has column types of a form that is deprecated.
_CHATTY_WARNINGS = (
    ".*Any type hint is inferred as AnyType",
    "The ``noload`` loader strategy is deprecated",
    "Type object .* does not refer to an OperatorClass",
)


@dataclass(frozen=True)
class Connection:
    """An MLflow client with the place it talks to; `local` is false when a server keeps the artifacts."""

    client: "MlflowClient"
    uri: str
    root: Path

    @property
    def local(self) -> bool:
        """Whether this process writes database and artifacts itself."""
        return not _remote(self.uri)


def tracking_uri(*, root: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or the sqlite database below `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_default_database(root)}"


def artifacts_folder(*, root: Path) -> Path:
    """Where runs and versions keep their files when no server does."""
    return (root / STATE_FOLDER).resolve() / "mlflow" / "artifacts"  # a workspace of a fleet has a link to its checkout's


def has_store(*, root: Path) -> bool:
    """Whether there is anything to connect to: a store that the environment names, or the local database."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or _default_database(root).is_file()


def answers(*, root: Path) -> bool:
    """Whether the MLflow server answers; a database that this process opens itself always does."""
    uri = tracking_uri(root=root)
    try:
        if _remote(uri):
            _check_reachable(uri)
    except RegistryUnreachable:
        return False
    return True


def connect(*, root: Path, create: bool = False) -> Connection:
    """A client for the tracking store and the registry. `create`: make the local database when there is none.

    Raises RegistryError when the server does not answer, the database cannot be opened, or there is none yet.
    """
    uri = tracking_uri(root=root)
    if _remote(uri):
        for name, value in _RETRIES.items():
            os.environ.setdefault(name, value)  # MLflow reads them at each request and takes them from nowhere else
        _check_reachable(uri)
    elif not os.environ.get("MLFLOW_TRACKING_URI"):
        _check_database(_default_database(root), create)
    from mlflow import MlflowClient

    with explained(f"Opening the MLflow store {uri}", "Check MLFLOW_TRACKING_URI, or move a broken database out of the way."), quiet():
        client = MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        client.search_registered_models(max_results=1)  # opens the registry's side too, so that its errors appear here
    return Connection(client=client, uri=uri, root=root.resolve())


@contextmanager
def explained(doing: str, advice: str) -> Generator[None]:
    """Map what MLflow, its database or the disk raises to RegistryError: what was being done, the cause, and `advice`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RegistryError(f"{doing} failed: {cause.rstrip('.')}. {advice}") from error


@contextmanager
def reachable(connection: Connection) -> Generator[None]:
    """Tell a server that went away from one that refuses: after a RegistryError of the first kind, raise RegistryUnreachable."""
    try:
        yield
    except RegistryError:
        if not connection.local:
            _check_reachable(connection.uri)
        raise


@contextmanager
def task_lock(*, root: Path, task: str, seconds: float = LOCK_SECONDS) -> Generator[None]:
    """Hold this machine's lock for one task of one workspace; MLflow's aliases have no compare-and-swap of their own.

    Raises RegistryError when another process keeps it for longer than `seconds`.
    """
    with file_lock(root / STATE_FOLDER / "locks" / f"{task}.lock", seconds):
        yield


@contextmanager
def file_lock(path: Path, seconds: float = LOCK_SECONDS) -> Generator[None]:
    """Hold an exclusive lock on `path`; raises RegistryError after `seconds` of waiting."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RegistryError(
            f"{path} has been held by another promptmill process for {seconds:g} s. Wait for that run to end, or end it, and try again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _default_database(root: Path) -> Path:
    return (root / STATE_FOLDER).resolve() / "mlflow" / "mlflow.db"


def _remote(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _check_database(database: Path, create: bool) -> None:
    if create:
        with explained(f"Making {database.parent}", "Check the folder's permissions and the free space."):
            database.parent.mkdir(parents=True, exist_ok=True)
    elif not database.is_file():
        raise RegistryError(f"{database} does not exist, so nothing has been registered here yet. Run `promptmill run TASK` first.")


def _check_reachable(uri: str) -> None:
    """MLflow's own client retries for minutes before it says that nobody listens; any HTTP answer will do here."""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=REACH_SECONDS):
            return
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        raise RegistryUnreachable(
            f"The MLflow server {uri} does not answer ({error}). Start it, correct MLFLOW_TRACKING_URI, or unset it to use the local store."
        ) from error


@contextmanager
def quiet() -> Generator[None]:
    """Keep back what MLflow says about itself, and its progress bars for a few small files, unless they were asked for."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    bar = os.environ.get(_PROGRESS_BAR)
    try:
        os.environ[_PROGRESS_BAR] = bar or "false"
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in _CHATTY_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        if bar is None:
            os.environ.pop(_PROGRESS_BAR, None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
