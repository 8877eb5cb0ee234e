"""Dead runs on a real Prefect server: the automations that `promptmill deploy` makes crash them and free their slot."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending, Running

from flows.deploy_plan import plan
from flows.deploy_server import Server
from flows.deployments import Item, wanted
from flows.services import prefect_service, running
from pipeline.params import load
from tests.flows.deployed import TASK

PROJECT = "demo"
SECONDS = 10.0  # the least that Prefect waits for what does not come


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A server as `promptmill services` and people start it, which also looks for what does not come."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with (
        running([prefect_service(tmp_path)]) as (server,),
        temporary_settings({PREFECT_API_URL: f"{server.service.url}/api"}),
    ):
        with get_client(sync_client=True) as opened:
            yield opened
        EventsWorker.drain_all(timeout=20)


def hurried(item: Item) -> Item:
    """The same automation with seconds instead of minutes."""
    if item.kind != "automation" or item.fields["trigger"]["posture"] != "Proactive":
        return item
    return Item(item.kind, item.name, {**item.fields, "trigger": {**item.fields["trigger"], "within": SECONDS}})


def state_of(client: SyncPrefectClient, run_id: UUID) -> tuple[str, str]:
    state: Any = client.read_flow_run(run_id).state
    return state.name, state.message or ""


def wait_until_crashed(client: SyncPrefectClient, run_id: UUID) -> str:
    for _ in range(240):
        name, message = state_of(client, run_id)
        if name == "Crashed":
            return message
        time.sleep(0.5)
    raise AssertionError(f"the run is still {state_of(client, run_id)}")


def heartbeat(client: SyncPrefectClient, run_id: UUID) -> None:
    """What the engine of a running flow sends (prefect.flow_engine), with the tags of the run as related resources."""
    run = client.read_flow_run(run_id)
    related = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags]
    emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run_id}"}, related=related)


@pytest.mark.slow
def test_a_dead_run_is_crashed_and_the_next_one_gets_its_slot(client: SyncPrefectClient, repo_root: Path) -> None:
    tasks = {TASK: load(repo_root / "params.yaml")[TASK]}
    items = wanted(project=PROJECT, tasks=tasks, checkout=repo_root, environment={}, pages="http://here")
    server = Server(client, PROJECT)
    for change in plan([hurried(item) for item in items], []):
        server.apply(change)
    deployment = client.read_deployment_by_name(f"retrain/{TASK}").id

    first, second, third = (client.create_flow_run_from_deployment(deployment).id for _ in range(3))
    client.set_flow_run_state(first, Pending())
    client.set_flow_run_state(second, Pending())
    assert state_of(client, first)[0] == "Pending"
    assert state_of(client, second)[0] == "AwaitingConcurrencySlot"
    assert "did not start within 15 minutes" in wait_until_crashed(client, first)

    # The third, since the second was told to come again in half a minute.
    client.set_flow_run_state(third, Pending())
    assert state_of(client, third)[0] == "Pending", "the slot is free again"
    client.set_flow_run_state(third, Running())
    for _ in range(4):  # while it sends heartbeats it lives
        heartbeat(client, third)
        time.sleep(SECONDS / 2)
        assert state_of(client, third)[0] == "Running"
    assert "sent no heartbeat for 5 minutes" in wait_until_crashed(client, third)
    client.set_flow_run_state(second, Pending())
    assert state_of(client, second)[0] == "Pending"
