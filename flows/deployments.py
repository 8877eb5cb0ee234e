"""What `promptmill deploy` wants to find on a Prefect server, worked out from params.yaml: plain records that can be compared and shown.

What promptmill made is known by its mark: the tags of deployments, automations and the variable, the description of a work pool, the name of a block.
Objects that carry another project's mark, or none, are somebody else's.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.events import OCCASIONS, TRIGGERS, resource_of, tag_of
from flows.fleet_limit import limit_name as fleet_limit_name
from flows.promotion_lock import limit_name
from pipeline.errors import DeployError
from pipeline.params import DeploymentParams, FleetParams, Notification, Occasion, TaskParams, WorkPool

# In the order in which they are made: automations name deployments and blocks, deployments name work pools.
KINDS = ("work pool", "limit", "block", "deployment", "automation", "variable")

MARK = "promptmill"
RETRAIN, REASSESS = "retrain", "reassess"
ENTRYPOINTS = {RETRAIN: "flows.retrain.retrain", REASSESS: "flows.reassess.reassess"}
FLEET_ENTRYPOINT, FLEET = "flows.retrain_all.retrain_all", "retrain-all/fleet"
FLEET_TAG = f"{MARK}-fleet"
FAILED_EVENTS = ("prefect.flow-run.Crashed", "prefect.flow-run.Failed", "prefect.flow-run.TimedOut")
CUSTOM_WEBHOOK, APPRISE = "custom-webhook", "slack-webhook"

_FLEET_TAG_ID = f"prefect.tag.{FLEET_TAG}"
_ANY_RUN = ["prefect.flow-run.*"]
_FAILED_SUBJECT = "{{ flow_run.name }}: {{ flow_run.state.name }}"
_FAILED_BODY = "{{ flow_run.state.message }}\nRun: %s/runs/flow-run/{{ flow_run.id }}"
_SUBJECT = "{{ event.payload.subject }}"
_BODY = "{{ event.payload.text }}{%% if flow_run %%}\nRun: %s/runs/flow-run/{{ flow_run.id }}{%% endif %%}"


@dataclass(frozen=True)
class Item:
    """One object on the server: its kind (of KINDS), its name, and the fields that promptmill decides about."""

    kind: str
    name: str
    fields: Mapping[str, Any]


def wanted(
    *,
    project: str,
    tasks: Mapping[str, TaskParams],
    checkout: Path,
    environment: Mapping[str, str],
    pages: str,
    fleet: FleetParams | None = None,
) -> list[Item]:
    """Every object that the tasks' sections `deployment`, and the `fleet` if there is one, ask for; workers execute in `checkout`, `environment` holds the secrets of notifications,
    and `pages` is the address of Prefect's pages, for the links in messages: the server itself need not know it.

    Raises DeployError when two tasks say different things about one work pool, or a variable that a notification names is not set.
    """
    pools = _agreed_pools(tasks, fleet)
    items = [*_pools(project, pools), *_limits(tasks, pools), *_blocks(project, tasks, environment)]
    for task, params in sorted(tasks.items()):
        items += _deployments(project, task, params.deployment, checkout)
    if fleet is not None:
        items.append(_fleet_deployment(project, fleet, checkout))
    items += _retrainings(project, tasks)
    items += _notifications(project, tasks, pages.rstrip("/"), fleet)
    items += _watches(project, tasks, fleet)
    return [*items, _variable(project, tasks, fleet)]


def project_name(root: Path) -> str:
    """The name under which a checkout's objects are marked: the repository's on its remote `origin`, else the folder's; a-z, 0-9 and dashes."""
    done = subprocess.run(["git", "-C", str(root), "remote", "get-url", "origin"], capture_output=True, text=True, check=False)
    name = done.stdout.strip().rstrip("/").removesuffix(".git").rpartition("/")[2].rpartition(":")[2] if done.returncode == 0 else ""
    return slug(name or root.resolve().name)


def slug(text: str) -> str:
    """Small letters, digits and single dashes, as every kind of name on the server allows."""
    kept = "".join(character if character.isascii() and character.isalnum() else "-" for character in text.lower())
    return "-".join(part for part in kept.split("-") if part) or MARK


def tags_of(project: str) -> list[str]:
    """The tags by which a project's objects are known."""
    return [MARK, f"{MARK}-project:{project}"]


def pool_description(project: str) -> str:
    """The description by which a project's work pools are known."""
    return f"Made by promptmill deploy for the project {project}."


def block_prefix(project: str) -> str:
    """What the names of a project's blocks begin with."""
    return f"{MARK}-{project}-"


def digest(value: Any) -> str:
    """A short name of a value that is compared and never shown."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def block_address(project: str, notification: Notification) -> str:
    """`type/name` of the block that sends a notification."""
    if notification.block is not None:
        return notification.block
    if notification.webhook_variable is not None:
        return f"{CUSTOM_WEBHOOK}/{block_prefix(project)}{slug(notification.webhook_variable)}"
    return f"{APPRISE}/{block_prefix(project)}{slug(str(notification.email_variable))}"


def _agreed_pools(tasks: Mapping[str, TaskParams], fleet: FleetParams | None) -> dict[str, WorkPool]:
    """The work pools by name; raises DeployError where one is described in two ways."""
    named = [(f"tasks.{task}.deployment.pool", params.deployment.pool) for task, params in sorted(tasks.items())]
    if fleet is not None:
        named.append(("fleet.pool", fleet.pool))
    pools: dict[str, tuple[str, WorkPool]] = {}
    for who, pool in named:
        first, known = pools.setdefault(pool.name, (who, pool))
        if known != pool:
            raise DeployError(
                f"{first} and {who} say different things about the work pool {pool.name!r}: {known.model_dump()} and {pool.model_dump()}. "
                "Say the same (tasks: once, in defaults.deployment.pool), or name two pools."
            )
    return {name: pool for name, (_, pool) in pools.items()}


def _pools(project: str, pools: Mapping[str, WorkPool]) -> Iterator[Item]:
    for name, pool in pools.items():
        yield Item("work pool", name, {"type": pool.type, "limit": pool.limit, "description": pool_description(project)})


def _limits(tasks: Mapping[str, TaskParams], pools: Mapping[str, WorkPool]) -> Iterator[Item]:
    """The lock of promotions of each task (making it here lets the first two promotions meet an existing one), and how many tasks of fleets a pool has at once.

    A pool without a limit gets one that is switched off, so that a limit of earlier params does not go on.
    """
    for task in sorted(tasks):
        yield Item("limit", limit_name(task), {"limit": 1, "active": True})
    for name, pool in pools.items():
        yield Item("limit", fleet_limit_name(name), {"limit": pool.limit or 1, "active": pool.limit is not None})


def _blocks(project: str, tasks: Mapping[str, TaskParams], environment: Mapping[str, str]) -> Iterator[Item]:
    made: set[str] = set()
    for notification in (one for params in tasks.values() for one in params.deployment.notifications):
        variable = notification.webhook_variable or notification.email_variable
        address = block_address(project, notification)
        if variable is None or address in made:
            continue
        url = environment.get(variable)
        if not url:
            raise DeployError(
                f"The environment variable {variable}, which deployment.notifications names, is not set. Set it to the address, and deploy again."
            )
        made.add(address)
        yield Item("block", address, {"data": _block_data(notification, url)})


def _block_data(notification: Notification, url: str) -> dict[str, Any]:
    """The content of a block, the secret address in it in a field that Prefect encrypts and hides."""
    if notification.webhook_variable is not None:
        return {"url": "{{address}}", "method": "POST", "json_data": {"text": "{{subject}}\n{{body}}"}, "secrets": {"address": url}}
    return {"url": url}


def _deployments(project: str, task: str, params: DeploymentParams, checkout: Path) -> Iterator[Item]:
    common = _place(params, checkout) | {"tags": [*tags_of(project), tag_of(task)]}
    plans = (
        (RETRAIN, params.retrain_cron, params.collision, {"task": task, "refresh": params.refresh, "unless_unchanged": True}),
        (REASSESS, params.reassess_cron, "cancel_new", {"task": task}),
    )
    for flow, cron, collision, parameters in plans:
        own = {"entrypoint": ENTRYPOINTS[flow], "parameters": parameters, "collision": collision.upper()}
        yield Item("deployment", f"{flow}/{task}", {**own, **common, "schedule": _schedule(cron, params.timezone)})


def _fleet_deployment(project: str, fleet: FleetParams, checkout: Path) -> Item:
    """One run at a time: a second one would find the same tasks at work."""
    own: dict[str, Any] = {
        "entrypoint": FLEET_ENTRYPOINT,
        "parameters": {"at_once": fleet.at_once, "changed_only": fleet.changed_only, "refresh": True},
        "schedule": _schedule(fleet.cron, fleet.timezone),
        "collision": "CANCEL_NEW",
        "tags": [*tags_of(project), FLEET_TAG],
    }
    return Item("deployment", FLEET, {**own, **_place(fleet, checkout)})


def _place(params: DeploymentParams | FleetParams, checkout: Path) -> dict[str, Any]:
    """Where the runs of a deployment execute, one at a time."""
    variables = dict(params.job_variables)
    if params.pool.type == "process":
        variables.setdefault("working_dir", str(checkout))
    return {"pool": params.pool.name, "paused": params.paused, "job_variables": variables, "concurrency_limit": 1}


def _schedule(cron: str | None, timezone: str) -> dict[str, str] | None:
    return {"cron": cron, "timezone": timezone} if cron else None


def _retrainings(project: str, tasks: Mapping[str, TaskParams]) -> Iterator[Item]:
    for task, params in sorted(tasks.items()):
        if not params.deployment.triggers:
            continue
        trigger = _reactive([TRIGGERS[name] for name in params.deployment.triggers], match=[resource_of(task)])
        action = {"type": "run-deployment", "deployment": f"{RETRAIN}/{task}"}
        yield _automation(project, f"retrain {task} when something changed", trigger, action, enabled=not params.deployment.paused)


def _notifications(project: str, tasks: Mapping[str, TaskParams], pages: str, fleet: FleetParams | None) -> Iterator[Item]:
    """One automation for each block and kind of message, over all tasks that ask for it: a server with fifty tasks has few of them."""
    asked: dict[tuple[str, Occasion], list[str]] = {}
    for task, params in sorted(tasks.items()):
        for notification in params.deployment.notifications:
            for occasion in dict.fromkeys(notification.on):
                asked.setdefault((block_address(project, notification), occasion), []).append(task)
    for (address, occasion), of_tasks in asked.items():
        action = {"type": "send-notification", "block": address, "subject": _SUBJECT, "body": _BODY % pages}
        if occasion == "failed":
            action |= {"subject": _FAILED_SUBJECT, "body": _FAILED_BODY % pages}
            runs = [*(_tag_id(task) for task in sorted(set(of_tasks))), *([_FLEET_TAG_ID] if fleet else [])]
            trigger = _reactive(FAILED_EVENTS, match=_ANY_RUN, related=runs)
        else:
            trigger = _reactive([OCCASIONS[occasion]], match=[resource_of(task) for task in sorted(set(of_tasks))])
        yield _automation(project, f"tell {address} of {occasion}", trigger, action)


def _watches(project: str, tasks: Mapping[str, TaskParams], fleet: FleetParams | None) -> Iterator[Item]:
    """Automations that crash dead runs, one for each length of time that tasks or the fleet ask for."""
    asked = [(_tag_id(task), params.deployment.stuck) for task, params in sorted(tasks.items())]
    if fleet is not None:
        asked.append((_FLEET_TAG_ID, fleet.stuck))
    plans = (
        ("silent", "silent_minutes", ["prefect.flow-run.heartbeat"], "The run sent no heartbeat for {} minutes: its process is gone."),
        ("pending", "pending_minutes", ["prefect.flow-run.Pending"], "The run was handed to a worker and did not start within {} minutes."),
    )
    for name, field, after, message in plans:
        waits: dict[int, list[str]] = {}
        for tag_id, stuck in asked:
            minutes = getattr(stuck, field)
            if minutes is not None:
                waits.setdefault(minutes, []).append(tag_id)
        for minutes, of_runs in sorted(waits.items()):
            trigger = {
                **_reactive(_ANY_RUN, match=_ANY_RUN, related=of_runs),
                "posture": "Proactive",
                "after": after,
                "for_each": ["prefect.resource.id"],
                "within": 60.0 * minutes,
            }
            action = {"type": "change-flow-run-state", "state": "CRASHED", "name": "Crashed", "message": message.format(minutes)}
            yield _automation(project, f"crash {name} runs after {minutes} minutes", trigger, action)


def _variable(project: str, tasks: Mapping[str, TaskParams], fleet: FleetParams | None) -> Item:
    """What was deployed, for flows and people that ask the server."""
    value = {
        "project": project,
        "tasks": sorted(tasks),
        "deployments": [*(f"{flow}/{task}" for task in sorted(tasks) for flow in ENTRYPOINTS), *([FLEET] if fleet else [])],
    }
    return Item("variable", f"{MARK}_{project.replace('-', '_')}", {"value": value, "tags": tags_of(project)})


def _automation(project: str, what: str, trigger: Mapping[str, Any], action: Mapping[str, Any], *, enabled: bool = True) -> Item:
    return Item(
        "automation", f"{project}: {what}", {"enabled": enabled, "tags": tags_of(project), "trigger": dict(trigger), "action": dict(action)}
    )


def _reactive(events: Sequence[str], *, match: Sequence[str], related: Sequence[str] = ()) -> dict[str, Any]:
    """A trigger that fires at once on any of `events` about a resource of `match`, and where given related to one of `related`."""
    return {
        "posture": "Reactive",
        "after": [],
        "expect": sorted(events),
        "match": {"prefect.resource.id": list(match)},
        "related": {"prefect.resource.id": list(related)} if related else {},
        "for_each": [],
        "within": 0.0,
    }


def _tag_id(task: str) -> str:
    return f"prefect.tag.{tag_of(task)}"
