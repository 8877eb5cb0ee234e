"""`promptmill services up|down|status`: the servers and workers of a checkout as processes on this machine, without containers."""

import argparse
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from flows.service_plan import KINDS, WORKER, Health
from flows.settings import state_folder
from flows.standing_services import records, state, stop, stop_strays, why_ended
from flows.terminal import answer, say, table
from pipeline.layout import find_root
from pipeline.registry.connection import file_lock

FOLDER = "services"
NOT_RUNNING = 1
POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "services", "services", "run PostgreSQL, Prefect, MLflow, an S3 endpoint and workers as processes on this machine",
        "promptmill services up", "promptmill services status", "promptmill services down",
        "promptmill services up --worker gpu --worker gpu --port prefect=4300", ". .promptmill/services/environment.sh   # use them in this shell",
        epilog="They listen on loopback, keep their data below .promptmill/services and go on when this command has ended. "
        "`up` starts what does not run yet; `status` ends with 1 when something that should run does not.",
    )  # fmt: skip
    command.add_argument("action", choices=tuple(ACTIONS), help="start them, end them with all they started, or say how they are")
    command.add_argument(
        "--database", choices=("auto", "postgresql", "sqlite"), help="of Prefect and MLflow (default: PostgreSQL where it is installed)"
    )
    command.add_argument(
        "--artifacts",
        choices=("folder", "s3"),
        help="where MLflow keeps artefacts; the S3 endpoint holds them in memory only (default: folder)",
    )
    command.add_argument(
        "--worker",
        action="append",
        type=_pool,
        metavar="POOL",
        help="a worker for this work pool; may be given several times (default: one for promptmill)",
    )
    command.add_argument(
        "--without", action="append", choices=KINDS, default=[], metavar="NAME", help=f"leave out one of {', '.join(KINDS)}"
    )
    command.add_argument("--port", action="append", type=_port, default=[], metavar="NAME=NUMBER", help="another port (0: any free one)")


def services(options: Namespace) -> int:
    """Do what was asked, one at a time in a checkout."""
    folder = state_folder(find_root(Path.cwd()).resolve()) / FOLDER
    if options.action == "status":
        return status(folder)
    with file_lock(folder / "lock"):
        return ACTIONS[options.action](folder, options)


def up(folder: Path, options: Namespace) -> int:
    """Start what does not run yet, and say where everything is."""
    from flows.bring_up import ENVIRONMENT_FILE, Wish, bring_up
    from flows.postgresql import account

    workers = None if options.worker is None else tuple(options.worker)
    wish = Wish(options.database, options.artifacts, workers, tuple(options.without), dict(options.port))
    say("Starting the services ...")
    plan, started = bring_up(folder, wish, say)
    user = account() if plan.postgresql_port is not None else None
    if user is not None:
        say(f"PostgreSQL refuses to run as root: it runs as {user}, who owns {folder / 'postgresql'}.")
    if plan.s3_url is not None:
        say("The S3 endpoint holds everything in memory: what is stored there is gone when it ends.")
    names = {record.name for record in started}
    rows = [
        (record.name, record.url, "started" if record.name in names else "ran already", record.log) for record in records(folder).values()
    ]
    answer(table(("service", "address", "", "log"), rows))
    answer(f"\nuse them in this shell   . {folder / ENVIRONMENT_FILE}")
    return 0


def down(folder: Path, _options: Namespace) -> int:
    """End the services, the last started first, with every process they started."""
    ended = stop(folder, records(folder))
    strays = stop_strays(folder)
    for name in ended:
        answer(f"{name} ended")
    if strays:
        answer(f"{strays} processes that killed services had left ended")
    if not ended and not strays:
        answer("No service was running.")
    return 0


def status(folder: Path) -> int:
    """Print how each service is; 0 when all that the last `up` chose answer."""
    from flows.bring_up import wanted

    known, healthy = records(folder), Health(folder)
    states = {name: state(record, healthy) for name, record in known.items()}
    rows = [(name, states[name], str(record.pid), record.url, record.started_at, record.log) for name, record in known.items()]
    rows += [(name, "not started", "-", "-", "-", "-") for name in wanted(folder) if name not in known]
    if not rows:
        answer("No service was ever started here: `promptmill services up`.")
        return NOT_RUNNING
    answer(table(("service", "state", "process", "address", "since", "log"), rows))
    for name, found in states.items():
        if found == "ended":
            answer(f"{name} ended: {why_ended(known[name])}")
    return 0 if all(row[1] == "running" for row in rows) else NOT_RUNNING


ACTIONS: dict[str, Any] = {"up": up, "down": down, "status": status}


def _pool(text: str) -> str:
    if not POOL.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a work pool: letters, digits, _ and -")
    return text


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not (name in KINDS or name.startswith(f"{WORKER}-")) or name == WORKER:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(kind for kind in KINDS if kind != WORKER)}, {WORKER}-POOL-NUMBER")
    if not (number.isdecimal() and int(number) < 65_536):
        raise argparse.ArgumentTypeError(f"{number!r} is no port from 0 to 65535")
    return name, int(number)
