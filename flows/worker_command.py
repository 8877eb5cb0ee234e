"""`promptmill worker`: take stages of a work pool, in workspaces made from the checkout it is started in."""

import os
import platform
import sys
from argparse import Namespace
from typing import Any


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "worker", "worker", "run stages for flows elsewhere: listen on a Prefect work pool until Ctrl-C",
        "promptmill worker gpu", "promptmill worker gpu --name gpu-box-1", "promptmill worker gpu --limit 2 --healthcheck",
        epilog="Started in a clone on the machine with the GPU. A task whose params say `execution: {tune: POOL}` has its prompt tuned here.",
    )  # fmt: skip
    command.add_argument("pool", metavar="POOL", help="the work pool; it is made when there is none")
    command.add_argument("--name", help="this worker's name (default: machine and checkout)")
    command.add_argument("--limit", type=int, default=1, metavar="N", help="stages at once (default: 1, which has the GPU to itself)")
    command.add_argument("--healthcheck", action="store_true", help="answer on PREFECT_WORKER_WEBSERVER_PORT whether the worker is well")


def worker(options: Namespace) -> int:
    """Register the pool's deployment, close what an earlier worker of this checkout left open, and become the Prefect worker."""
    from flows.flow_runs import close_abandoned
    from flows.promotion_lock import server_named
    from flows.settings import apply_prefect_defaults
    from flows.terminal import say
    from flows.worker_workspace import CHECKOUT_VARIABLE, own_checkout
    from pipeline.errors import WorkspaceError

    root = own_checkout()
    if not server_named():
        raise WorkspaceError(
            "No Prefect server is named, and a worker and the flows it works for must ask the same one. Set PREFECT_API_URL, as in http://127.0.0.1:4200/api."
        )
    apply_prefect_defaults(root)
    from flows.worker_deployment import register

    register(options.pool)
    closed = close_abandoned(root)
    if closed:
        say(f"Closed {closed} flow {'run' if closed == 1 else 'runs'} as Crashed: killed before.")
    name = options.name or f"{platform.node()}-{root.name}"
    say(f"Listening on the work pool {options.pool} as {name}; workspaces are made from {root}.")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", options.pool, "--type", "process", "--name", name]
    command += ["--install-policy", "never", "--limit", str(options.limit), *(["--with-healthcheck"] if options.healthcheck else [])]
    os.execve(sys.executable, command, {**os.environ, CHECKOUT_VARIABLE: str(root)})
