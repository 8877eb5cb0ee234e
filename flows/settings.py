"""Defaults for an embedded Prefect, as environment variables: Prefect reads them once, when it is first imported."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.registry.connection import STATE_FOLDER

LOGS_FOLDER = "logs"
LOOPBACK = ("127.0.0.1", "localhost")


def state_folder(root: Path) -> Path:
    """Where promptmill keeps what is neither git's nor DVC's: Prefect's and MLflow's databases and the logs."""
    return root / STATE_FOLDER


def log_file(root: Path, *names: str) -> Path:
    """The log file `<root>/.promptmill/logs/<names>.log`; its folder is made.

    Raises WorkspaceError when the folder cannot be made.
    """
    path = state_folder(root).joinpath(LOGS_FOLDER, *names).with_name(f"{names[-1]}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"{path.parent} cannot be made ({error.strerror}). Free some space or correct its permissions.") from None
    return path


def prefect_defaults(root: Path) -> dict[str, str]:
    """What an embedded Prefect needs; each holds only where the user's environment says nothing else."""
    return {
        "PREFECT_HOME": str(state_folder(root) / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default of 20 s is too short on a busy machine
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default unpickles files that anybody may have swapped
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # the API still gets everything from INFO
    }


def last_line(log: Path) -> str:
    """The last line of what a process printed, and where the rest is."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].rstrip('.') if lines else 'it printed nothing'}. All it printed is in {log}."


def missing_defaults(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The entries of `prefect_defaults` that `environment` leaves open."""
    return {name: value for name, value in prefect_defaults(root).items() if name not in environment}


def apply_prefect_defaults(root: Path) -> None:
    """Set the open defaults in this process's environment. Call it before anything imports prefect."""
    os.environ.update(missing_defaults(root, os.environ))
    Path(os.environ["PREFECT_HOME"]).expanduser().mkdir(parents=True, exist_ok=True)


def reach_loopback_directly() -> None:
    """Keep requests to this machine away from a proxy that the environment names; the servers here listen on loopback."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])


def keep_runs_off_the_console() -> None:
    """Send the log lines of flow and task runs to Prefect's API alone; the terminal gets promptmill's own lines.

    Prefect would show every failure there with two tracebacks. Call it after prefect is imported.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
