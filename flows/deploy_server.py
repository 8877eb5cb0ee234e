"""A Prefect server's work pools, limits, blocks, deployments, automations and variables as plain records, and changing them."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.callables import parameter_schema
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from flows.deploy_plan import Change, Found
from flows.deployments import APPRISE, CUSTOM_WEBHOOK, Item, block_prefix, pool_description, tags_of
from pipeline.errors import DeployError

PAGE = 200


class Server:
    """What is on the server, as far as one project is concerned."""

    def __init__(self, client: SyncPrefectClient, project: str) -> None:
        self._client = client
        self._project = project
        self._flows: dict[UUID, str] = {}
        self._pools_by_id: dict[UUID, str] = {}

    def found(self, wanted: Sequence[Item]) -> list[Found]:
        """The objects of the names that are wanted, and all that this project made."""
        names = {kind: {item.name for item in wanted if item.kind == kind} for kind in {item.kind for item in wanted}}
        readers: Mapping[str, Callable[[set[str]], Iterator[Found]]] = {
            "work pool": self._pools,
            "limit": self._limits,
            "block": self._blocks,
            "deployment": self._deployments,
            "automation": self._automations,
            "variable": self._variables,
        }
        return [one for kind, read in readers.items() for one in read(names.get(kind, set()))]

    def apply(self, change: Change) -> None:
        """Create, update or remove one object; raises DeployError when something it refers to does not exist."""
        item = change.item
        makers: Mapping[str, tuple[Callable[[Item], None], Callable[[Item], None]]] = {
            "work pool": (self._make_pool, lambda gone: self._client.delete_work_pool(gone.name)),
            "limit": (self._make_limit, lambda gone: None),
            "block": (self._make_block, self._remove_block),
            "deployment": (self._make_deployment, lambda gone: self._client.delete_deployment(self._deployment_id(gone.name))),
            "automation": (self._make_automation, self._remove_automation),
            "variable": (self._make_variable, lambda gone: self._client.delete_variable_by_name(gone.name)),
        }
        make, remove = makers[item.kind]
        if change.action in ("create", "update"):
            make(item)
        elif change.action == "remove":
            remove(item)

    # -- reading

    def _pools(self, names: set[str]) -> Iterator[Found]:
        for pool in _pages(lambda offset: self._client.read_work_pools(limit=PAGE, offset=offset)):
            ours = pool.description == pool_description(self._project)
            if ours or pool.name in names:
                fields = {"type": pool.type, "limit": pool.concurrency_limit, "description": pool.description}
                yield Found(Item("work pool", pool.name, fields), ours)

    def _limits(self, names: set[str]) -> Iterator[Found]:
        """Limits have no mark; those of our names are ours to set, and never removed, since other checkouts may use them."""
        for name in sorted(names):
            try:
                limit = self._client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                continue
            yield Found(Item("limit", name, {"limit": limit.limit, "active": limit.active}), ours=True)

    def _blocks(self, names: set[str]) -> Iterator[Found]:
        for document in _pages(lambda offset: self._client.read_block_documents(limit=PAGE, offset=offset, include_secrets=True)):
            kind = document.block_type.slug if document.block_type else ""
            name = str(document.name)
            ours = name.startswith(block_prefix(self._project)) and kind in (CUSTOM_WEBHOOK, APPRISE)
            if ours or f"{kind}/{name}" in names:
                data = {key: document.data.get(key) for key in ("url", "method", "json_data", "secrets") if key in document.data}
                yield Found(Item("block", f"{kind}/{name}", {"data": data}), ours)

    def _deployments(self, names: set[str]) -> Iterator[Found]:
        for deployment in _pages(lambda offset: self._client.read_deployments(limit=PAGE, offset=offset)):
            name = f"{self._flow_name(deployment.flow_id)}/{deployment.name}"
            ours = set(tags_of(self._project)) <= set(deployment.tags)
            if ours or name in names:
                yield Found(Item("deployment", name, _deployment_fields(deployment)), ours)

    def _automations(self, names: set[str]) -> Iterator[Found]:
        for automation in _pages(lambda offset: self._client.read_automations(limit=PAGE, offset=offset)):
            ours = set(tags_of(self._project)) <= set(automation.tags)
            if ours or automation.name in names:
                yield Found(Item("automation", automation.name, self._automation_fields(automation)), ours)

    def _variables(self, names: set[str]) -> Iterator[Found]:
        for name in sorted(names):
            variable = self._client.read_variable_by_name(name)
            if variable is not None:
                ours = set(tags_of(self._project)) <= set(variable.tags or ())
                yield Found(Item("variable", name, {"value": variable.value, "tags": variable.tags}), ours)

    def _automation_fields(self, automation: Automation) -> dict[str, Any]:
        fields: dict[str, Any] = {"enabled": automation.enabled, "tags": automation.tags, "trigger": _trigger_fields(automation.trigger)}
        action = automation.actions[0] if automation.actions else None
        if isinstance(action, RunDeployment):
            fields["action"] = {"type": action.type, "deployment": self._deployment_name(action.deployment_id)}
        elif isinstance(action, SendNotification):
            block = self._block_name(action.block_document_id)
            fields["action"] = {"type": action.type, "block": block, "subject": action.subject, "body": action.body}
        elif isinstance(action, ChangeFlowRunState):
            fields["action"] = {"type": action.type, "state": action.state.value, "name": action.name, "message": action.message}
        return fields

    # -- names and ids

    def _flow_name(self, flow_id: UUID) -> str:
        if flow_id not in self._flows:
            self._flows[flow_id] = self._client.read_flow(flow_id).name
        return self._flows[flow_id]

    def _deployment_id(self, name: str) -> UUID:
        return self._client.read_deployment_by_name(name).id

    def _deployment_name(self, deployment_id: UUID | None) -> str | None:
        try:
            deployment = self._client.read_deployment(deployment_id) if deployment_id else None
        except ObjectNotFound:
            return None
        return None if deployment is None else f"{self._flow_name(deployment.flow_id)}/{deployment.name}"

    def _block_id(self, address: str) -> UUID:
        kind, _, name = address.partition("/")
        try:
            return self._client.read_block_document_by_name(name, kind).id
        except ObjectNotFound:
            raise DeployError(
                f"The notification block {address}, which deployment.notifications names, is not on this Prefect server. Make it there, or correct the name."
            ) from None

    def _block_name(self, block_id: UUID) -> str | None:
        try:
            document = self._client.read_block_document(block_id, include_secrets=False)
        except ObjectNotFound:
            return None
        return f"{document.block_type.slug if document.block_type else ''}/{document.name}"

    # -- changing

    def _make_pool(self, item: Item) -> None:
        limit, description, kind = item.fields["limit"], item.fields["description"], item.fields["type"]
        try:
            there = self._client.read_work_pool(item.name)
        except ObjectNotFound:
            template = run_coro_as_sync(get_default_base_job_template_for_infrastructure_type(kind))
            if template is None:
                raise DeployError(
                    f"Prefect knows no worker type {kind!r} for the work pool {item.name}. `prefect work-pool get-default-base-job-template` lists them."
                ) from None
            pool = WorkPoolCreate(name=item.name, type=kind, description=description, base_job_template=template, concurrency_limit=limit)
            self._client.create_work_pool(pool)
            return
        if there.type != kind:
            raise DeployError(
                f"The work pool {item.name} is of type {there.type}, wanted is {kind}: Prefect cannot change it. Name another pool, or delete this one."
            )
        self._client.update_work_pool(item.name, WorkPoolUpdate(description=description, concurrency_limit=limit))

    def _make_limit(self, item: Item) -> None:
        try:
            self._client.read_global_concurrency_limit_by_name(item.name)
        except ObjectNotFound:
            self._client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=item.name, **item.fields))
        else:
            self._client.update_global_concurrency_limit(item.name, GlobalConcurrencyLimitUpdate(**item.fields))

    def _make_block(self, item: Item) -> None:
        from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook

        kind, _, name = item.name.partition("/")
        data = dict(item.fields["data"])
        block = CustomWebhookNotificationBlock(name=name, **data) if kind == CUSTOM_WEBHOOK else SlackWebhook(**data)
        block.save(name, overwrite=True)

    def _remove_block(self, item: Item) -> None:
        self._client.delete_block_document(self._block_id(item.name))

    def _make_deployment(self, item: Item) -> None:
        fields = item.fields
        flow = _flow_at(fields["entrypoint"])
        schedule = fields["schedule"]
        schedules = [] if schedule is None else [DeploymentScheduleCreate(schedule=CronSchedule(**schedule), active=True)]
        self._client.create_deployment(
            flow_id=self._client.create_flow_from_name(flow.name),
            name=item.name.partition("/")[2],
            entrypoint=fields["entrypoint"],
            parameters=fields["parameters"],
            parameter_openapi_schema=parameter_schema(flow).model_dump(),
            enforce_parameter_schema=True,
            schedules=schedules,
            paused=fields["paused"],
            tags=fields["tags"],
            work_pool_name=fields["pool"],
            job_variables=fields["job_variables"],
            concurrency_limit=fields["concurrency_limit"],
            concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(fields["collision"])),
        )

    def _make_automation(self, item: Item) -> None:
        core = AutomationCore(
            name=item.name,
            description="Made by promptmill deploy.",
            enabled=item.fields["enabled"],
            tags=item.fields["tags"],
            trigger=_trigger(item.fields["trigger"]),
            actions=[self._action(item.fields["action"])],
        )
        there = self._client.read_automations_by_name(item.name)
        if there:
            self._client.update_automation(there[0].id, core)
        else:
            self._client.create_automation(core)

    def _remove_automation(self, item: Item) -> None:
        for automation in self._client.read_automations_by_name(item.name):
            self._client.delete_automation(automation.id)

    def _action(self, fields: Mapping[str, Any]) -> RunDeployment | SendNotification | ChangeFlowRunState:
        if fields["type"] == "run-deployment":
            return RunDeployment(
                source="selected", deployment_id=self._deployment_id(fields["deployment"]), parameters=None, job_variables=None
            )
        if fields["type"] == "send-notification":
            return SendNotification(block_document_id=self._block_id(fields["block"]), subject=fields["subject"], body=fields["body"])
        return ChangeFlowRunState(state=StateType(fields["state"]), name=fields["name"], message=fields["message"], force=False)

    def _make_variable(self, item: Item) -> None:
        if self._client.read_variable_by_name(item.name) is None:
            self._client.create_variable(VariableCreate(name=item.name, value=item.fields["value"], tags=item.fields["tags"]))
        else:
            self._client.update_variable(VariableUpdate(name=item.name, value=item.fields["value"], tags=item.fields["tags"]))


def _pages(read: Callable[[int], Sequence[Any]]) -> Iterator[Any]:
    """Every object of a list that the server gives page by page."""
    offset = 0
    while page := read(offset):
        yield from page
        if len(page) < PAGE:
            return
        offset += len(page)


def _deployment_fields(deployment: DeploymentResponse) -> dict[str, Any]:
    schedule = next((one.schedule for one in deployment.schedules if one.active), None)
    options = deployment.concurrency_options
    return {
        "entrypoint": deployment.entrypoint,
        "parameters": deployment.parameters,
        "schedule": {"cron": schedule.cron, "timezone": schedule.timezone} if isinstance(schedule, CronSchedule) else None,
        "collision": options.collision_strategy.value if options else None,
        "pool": deployment.work_pool_name,
        "paused": deployment.paused,
        "job_variables": deployment.job_variables,
        "tags": deployment.tags,
        "concurrency_limit": deployment.global_concurrency_limit.limit if deployment.global_concurrency_limit else None,
    }


def _trigger_fields(trigger: object) -> dict[str, Any]:
    """An event trigger as `flows.deployments` writes it; another kind of trigger equals none of those."""
    if not isinstance(trigger, EventTrigger):
        return {"posture": type(trigger).__name__}
    return {
        "posture": trigger.posture.value,
        "after": sorted(trigger.after),
        "expect": sorted(trigger.expect),
        "match": _labels(trigger.match),
        "related": _labels(trigger.match_related),
        "for_each": sorted(trigger.for_each),
        "within": trigger.within.total_seconds(),
    }


def _labels(specification: object) -> dict[str, list[str]]:
    one: Any = specification[0] if isinstance(specification, list) and specification else specification
    labels: dict[str, Any] = ResourceSpecification.model_validate(one or {}).root
    return {name: list(values) if isinstance(values, list) else [values] for name, values in labels.items()}


def _trigger(fields: Mapping[str, Any]) -> EventTrigger:
    return EventTrigger(
        posture=Posture(fields["posture"]),  # pyright: ignore[reportArgumentType]
        after=set(fields["after"]),
        expect=set(fields["expect"]),
        match=fields["match"],
        match_related=fields["related"],
        for_each=set(fields["for_each"]),
        within=timedelta(seconds=fields["within"]),
        threshold=1,
    )


def _flow_at(entrypoint: str) -> Flow[..., Any]:
    module, _, name = entrypoint.rpartition(".")
    return getattr(importlib.import_module(module), name)
