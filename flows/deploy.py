"""`promptmill deploy`: set up on a Prefect server what the sections `deployment` and the key `fleet` of params.yaml ask for."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "deploy", "deploy", "set up schedules, triggers, notifications and work pools on a Prefect server, as params.yaml says",
        "promptmill deploy --dry-run", "promptmill deploy", "promptmill deploy --checkout /srv/prompts",
        epilog="A second run changes nothing. What promptmill did not make is neither changed nor removed. The server is the one of PREFECT_API_URL.",
    )  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    command.add_argument("--project", metavar="NAME", help="the mark on what is made (default: the repository's name)")
    command.add_argument("--checkout", type=Path, metavar="FOLDER", help="the checkout on the workers' machine (default: this one)")


def deploy(options: Namespace) -> int:
    """Show the differences, and unless it is a dry run make the server what params.yaml says."""
    from flows.deploy_plan import counted, described, plan
    from flows.deployments import project_name, slug, wanted
    from flows.promotion_lock import server_named
    from flows.terminal import answer
    from pipeline.errors import DeployError
    from pipeline.layout import PARAMS_FILE, find_root
    from pipeline.params import load, load_fleet

    root = find_root(Path.cwd())
    tasks, fleet = load(root / PARAMS_FILE), load_fleet(root / PARAMS_FILE)
    if not server_named():
        raise DeployError(
            "No Prefect server is named: deployments need one that stays. Start one (`prefect server start`), and set PREFECT_API_URL to its address, "
            "as in http://127.0.0.1:4200/api."
        )
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

    from flows.deploy_server import Server

    project = slug(options.project) if options.project else project_name(root)
    pages = PREFECT_UI_URL.value() or str(PREFECT_API_URL.value()).removesuffix("/api")
    items = wanted(project=project, tasks=tasks, checkout=options.checkout or root, environment=os.environ, pages=pages, fleet=fleet)
    with get_client(sync_client=True) as client:
        server = Server(client, project)
        changes = plan(items, server.found(items))
        for line in described(changes):
            answer(line)
        if not options.dry_run:
            for change in changes:
                server.apply(change)
    answer(counted(changes, dry_run=options.dry_run))
    return 0
