"""What the subcommands of `promptmill` do; each returns its exit code. `predict` has a module of its own."""

import json
import os
import time
from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from flows.events import ROLLED_BACK, announce_champion, tag_of
from flows.flow_runs import abandoned, close_abandoned, noted
from flows.promotion_lock import EMBEDDED_VARIABLE, shared_lock
from flows.services import Service, check_alive, mlflow_service, prefect_service, running
from flows.settings import apply_prefect_defaults, keep_runs_off_the_console, reach_loopback_directly
from flows.summary import VERDICTS, gate_table, where_to_look
from flows.terminal import answer, number, say, table
from flows.workspace import check_checkout
from pipeline.__main__ import VERBOSE_VARIABLE
from pipeline.errors import NeedsApproval, NotPromoted, RecordSpooled, RegistryError, WorkspaceError
from pipeline.layout import PARAMS_FILE, STAGES, Layout, find_root
from pipeline.records import read_json
from pipeline.registry.connection import tracking_uri


def run(options: Namespace) -> int:
    """Bring the task up to date, or say what already is; the exit code says whether the gate let it pass."""
    root = find_root(Path.cwd())
    params = check_checkout(root, options.task)
    from flows.base_model import base_model_changed
    from flows.handled import handled_version
    from flows.source_file import source_changed

    stale = source_changed(root, options.task, params) or base_model_changed(root, options.task, params)
    handled = None if stale else handled_version(root, options.task)
    if handled is None:
        handled = _retrain(root, options)
    else:
        if abandoned(root):  # killed when all was done but the telling
            apply_prefect_defaults(root)
            with prefect_api(root, options.verbose):
                pass
        say(f"Nothing changed: reused all {len(STAGES)} stages ({', '.join(stage.name for stage in STAGES)}),")
        say(f"run {handled['run_id']} and version {handled['version']}.")
    return report(root, options.task, handled, tuple(params.ingest.columns.fields))


def _retrain(root: Path, options: Namespace) -> dict[str, Any]:
    if options.verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")
    apply_prefect_defaults(root)
    with prefect_api(root, options.verbose), noted(root):
        from prefect import tags

        from flows.retrain import retrain

        with tags(tag_of(options.task)):
            result: Any = retrain(options.task, str(root), options.stage_timeout)
    if result["version"] is None:
        raise RecordSpooled(
            f"MLflow at {tracking_uri(root=root)} does not answer. All stages are done and kept, and the record of the run waits in .promptmill/spool. "
            f"When MLflow answers: `promptmill sync`, then `promptmill run {options.task}`, which registers and promotes."
        )
    from pipeline.registry.registry import show

    return show(root=root, task=options.task, selector=result["version"])


@contextmanager
def prefect_api(root: Path, verbose: bool) -> Generator[None]:
    """The Prefect server of the user's settings, or one of our own for the length of the block; flow runs that were killed are closed.

    Ours gets a session of its own: the one Prefect would start by itself dies of the same Ctrl-C as the run, before it can be
    told that the run ended, and the run then waits for it for minutes.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if not verbose:
        keep_runs_off_the_console()
    if PREFECT_API_URL.value():
        _close_killed_runs(root)
        yield
        return
    reach_loopback_directly()
    say("Starting a Prefect server for this run ...")
    imported = partial(import_module, "flows.retrain")  # which takes as long as the server's start
    with running([prefect_service(root)], meanwhile=imported) as (server,):
        say(f"Watch it at {server.service.url}")
        os.environ[EMBEDDED_VARIABLE] = "1"
        with temporary_settings({PREFECT_API_URL: f"{server.service.url}/api"}):
            _close_killed_runs(root)
            try:
                yield
            finally:
                from flows.tasks import send_what_is_queued

                os.environ.pop(EMBEDDED_VARIABLE)
                send_what_is_queued()


def _close_killed_runs(root: Path) -> None:
    closed = close_abandoned(root)
    if closed:
        say(f"Closed {closed} flow {'run' if closed == 1 else 'runs'} as Crashed: killed before.")


def report(root: Path, task: str, version: dict[str, Any], fields: tuple[str, ...]) -> int:
    """Print the gate and what became of the version; returns the exit code of `promptmill run`."""
    from pipeline.registry.approval import is_waiting

    gate = read_json(Layout(root, task).path("gate"))
    answer(f"\n{gate_table(gate)}\n")
    if is_waiting(version):
        return _report_waiting(root, task, version, fields)
    refused = _why_not(root, task, version, gate["reasons"])
    if refused:
        answer(f"NOT PROMOTED: {refused}")
    elif "champion" in version["aliases"]:
        answer(f"PROMOTED: {task} version {version['version']} is champion.")
    else:
        answer(
            f"{task} version {version['version']} was champion and is not any more; `promptmill promote {task} {version['version']}` makes it so again."
        )
    answer(f"{where_to_look(root, task, fields)}")
    return NotPromoted.exit_code if refused else 0


def _why_not(root: Path, task: str, version: dict[str, Any], reasons: list[str]) -> str | None:
    """Why a version that waits for nobody is not champion and never was, or None when it is or was."""
    from pipeline.registry.uncommitted import reason_against

    answered, name = version["approval"] or {}, f"{task} version {version['version']}"
    if answered.get("approved") is False:
        return f"{name} was rejected by {answered['by']}: {answered['reason']}"
    if version["promoted_at"]:
        return None
    if version["gate_decision"] != "promote":
        return "\n".join([f"{name} {VERDICTS[version['gate_decision']]}:", *(f"  {reason}" for reason in reasons)])
    return None if "champion" in version["aliases"] else reason_against(root=root, task=task, version=version["version"])


def _report_waiting(root: Path, task: str, version: dict[str, Any], fields: tuple[str, ...]) -> int:
    answer(f"WAITING: {task} version {version['version']} needs a person's approval before it can become champion:")
    answer("\n".join(f"  {reason}" for reason in version["gate_reasons"]) or "  the gate let it pass")
    answer(f"approve it   promptmill approve {task} {version['version']} --reason ...")
    answer(f"{where_to_look(root, task, fields)}")
    return NeedsApproval.exit_code


def promote(options: Namespace) -> int:
    """Make a version champion."""
    from pipeline.registry import promotion, registry

    root = workspace()
    version = registry.show(root=root, task=options.task, selector=options.version)["version"]
    done = promotion.promote(root=root, task=options.task, version=version, reason=options.reason, lock=shared_lock())
    announce_champion(root, done, why=options.reason or "Promoted by hand.")
    return say_champion(done)


def rollback(options: Namespace) -> int:
    """Make an earlier champion the champion again."""
    from pipeline.registry import promotion

    root = workspace()
    done = promotion.rollback(root=root, task=options.task, to=options.to, reason=options.reason, lock=shared_lock())
    announce_champion(root, done, why=options.reason or "Rolled back by hand.", event=ROLLED_BACK)
    return say_champion(done)


def say_champion(record: dict[str, Any]) -> int:
    """Say who is champion after a promotion, by the record of it."""
    before = record["previous_champion"]
    if record["already_champion"]:
        answer(f"{record['task']} version {record['version']} already is champion.")
    else:
        answer(
            f"{record['task']} version {record['version']} is champion now (before: {'none' if before is None else f'version {before}'})."
        )
    return 0


def list_versions(options: Namespace) -> int:
    """Print the versions of one task, or of every task of params.yaml."""
    from pipeline.params import load
    from pipeline.registry import registry

    root = workspace()
    tasks = [options.task] if options.task else sorted(load(root / PARAMS_FILE))
    versions: list[dict[str, Any]] = []
    for task in tasks:
        try:
            versions += registry.list_versions(root=root, task=task)
        except RegistryError as error:
            if options.task:
                raise
            say(str(error))
    if options.json:
        answer(json.dumps(versions, ensure_ascii=False, indent=2))
    elif versions:
        header = ("task", "version", "aliases", "gate", "created", "promoted", "run")
        answer(table(header, [_version_cells(version) for version in versions]))
    return 0


def _version_cells(version: dict[str, Any]) -> tuple[str, ...]:
    aliases = ", ".join(version["aliases"]) or "-"
    return (
        *(version["task"], str(version["version"]), aliases, number(version["gate_decision"])),
        *(number(version["created_at"]), number(version["promoted_at"]), number(version["run_id"])),
    )


def show(options: Namespace) -> int:
    """Print one version with the metrics and params of its run."""
    from pipeline.registry import registry

    task, _, selector = options.task.partition("@")
    version = registry.show(root=workspace(), task=task, selector=selector or "champion")
    if options.json:
        answer(json.dumps(version, ensure_ascii=False, indent=2))
        return 0
    for name, value in version.items():
        if isinstance(value, dict):
            answer(f"{name}:")
            answer("\n".join(f"  {key}: {number(item)}" for key, item in sorted(value.items())))
        else:
            answer(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else number(value)}")
    return 0


def ui(_options: Namespace) -> int:
    """Serve the Prefect and MLflow pages of this workspace until Ctrl-C."""
    root = find_root(Path.cwd())
    say("Starting the pages ...")
    remote = tracking_uri(root=root) if tracking_uri(root=root).startswith(("http://", "https://")) else None
    services: list[Service] = [prefect_service(root), *([] if remote else [mlflow_service(root)])]
    try:
        with running(services) as started:
            for one in started:
                answer(f"{one.service.name:<8} {one.service.url}")
            if remote:
                answer(f"{'MLflow':<8} {remote}")
            say("Press Ctrl-C to stop.")
            while True:
                check_alive(started)
                time.sleep(0.5)
    except KeyboardInterrupt:
        say("Stopped.")
    return 0


def workspace() -> Path:
    """The checkout around the current folder; without one, the current folder when MLFLOW_TRACKING_URI says where the registry is."""
    try:
        return find_root(Path.cwd())
    except WorkspaceError:
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return Path.cwd()
        raise


def predict(options: Namespace) -> int:
    """Label texts with a registered version."""
    from flows.predict import predict_texts

    return predict_texts(workspace(), options)
