"""`promptmill deploy` against a real Prefect server: what it makes, that a second run changes nothing, and whom it leaves alone."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger

from flows import deployments
from flows.deploy_plan import Found, plan
from flows.deployments import Item, project_name, wanted
from flows.events import DATA_CHANGED, announce
from flows.fleet_limit import fleet_slot, limit_name
from pipeline.errors import DeployError
from pipeline.params import load
from pipeline.params.deployment import cron_problem
from tests.flows.deployed import TASK, Checkout, clear
from tests.flows.flow_workspace import call

OTHERS = ("privacy_policy_qa", "math_word_problems")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Checkout]:
    monkeypatch.chdir(tmp_path)
    yield Checkout(tmp_path, capsys)
    with get_client(sync_client=True) as client:
        clear(client)


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    with get_client(sync_client=True) as opened:
        yield opened


def test_it_makes_what_params_say_and_a_second_run_changes_nothing(checkout: Checkout, client: SyncPrefectClient) -> None:
    pool = {"name": "night shift", "type": "process", "limit": 3}
    checkout.set(TASK, retrain_cron="15 3 * * mon", timezone="Europe/Berlin", collision="cancel_new", refresh=True, pool=pool)
    dry = checkout.deploy("--dry-run")
    assert f"+ deployment retrain/{TASK}" in dry
    assert "Nothing was changed." in dry
    assert client.read_deployments() == []
    assert client.read_work_pools() == []

    assert "Done: " in checkout.deploy()
    made = client.read_deployment_by_name(f"retrain/{TASK}")
    (schedule,) = made.schedules
    assert isinstance(schedule.schedule, CronSchedule)
    assert (schedule.schedule.cron, schedule.schedule.timezone, schedule.active) == ("15 3 * * mon", "Europe/Berlin", True)
    assert made.global_concurrency_limit is not None
    assert made.global_concurrency_limit.limit == 1
    assert made.concurrency_options is not None
    assert made.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    assert made.parameters == {"task": TASK, "refresh": True, "unless_unchanged": True}
    assert made.job_variables == {"working_dir": str(checkout.root)}
    assert (client.read_work_pool("night shift").concurrency_limit, client.read_work_pool("night shift").type) == (3, "process")
    assert client.read_deployment_by_name(f"retrain/{OTHERS[0]}").schedules == []
    assert client.read_global_concurrency_limit_by_name(f"promptmill-promotion-{TASK}").limit == 1
    variable = client.read_variable_by_name("promptmill_demo")
    assert variable is not None
    assert isinstance(variable.value, dict)
    assert variable.value["tasks"] == sorted([TASK, *OTHERS])

    ids = {one.id: one.updated for one in client.read_deployments()} | {one.id: one.updated for one in client.read_work_pools()}
    assert checkout.deploy().startswith("No change: all ")
    assert ids == {one.id: one.updated for one in client.read_deployments()} | {one.id: one.updated for one in client.read_work_pools()}


def test_a_change_is_shown_with_both_values_and_carried_out(checkout: Checkout, client: SyncPrefectClient) -> None:
    checkout.set(TASK, retrain_cron="0 3 * * *")
    checkout.deploy()
    checkout.set(TASK, retrain_cron="0 4 * * *", triggers=["data_drifted"], paused=True)
    shown = checkout.deploy("--dry-run")
    assert '"cron": "0 3 * * *"' in shown
    assert '-> {"cron": "0 4 * * *"' in shown
    assert f"~ deployment retrain/{TASK}" in shown
    assert "paused: false -> true" in shown
    assert f"~ automation demo: retrain {TASK} when something changed" in shown
    assert "Would be done: 3 updated, " in shown  # both deployments and the automation
    assert "Done: 3 updated, " in checkout.deploy()
    made = client.read_deployment_by_name(f"retrain/{TASK}")
    assert made.paused
    assert [schedule.schedule.cron for schedule in made.schedules] == ["0 4 * * *"]
    assert checkout.deploy().startswith("No change")


def test_a_task_that_is_gone_is_taken_away_and_what_others_made_stays(checkout: Checkout, client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="promptmill", type="process", concurrency_limit=7))
    flow_id = client.create_flow_from_name("retrain")
    client.create_deployment(flow_id=flow_id, name="by-hand", tags=["promptmill"])
    client.create_deployment(flow_id=flow_id, name=OTHERS[1], tags=["promptmill", "promptmill-project:another"])
    client.create_automation(AutomationCore(name="mine", trigger=EventTrigger(expect={"x"}), actions=[DoNothing()]))
    said = checkout.deploy()
    assert "! work pool promptmill (not made by promptmill for this project: left as it is)" in said
    assert f"! deployment retrain/{OTHERS[1]}" in said
    assert client.read_work_pool("promptmill").concurrency_limit == 7

    checkout.drop(OTHERS[0])
    checkout.drop(OTHERS[1])
    said = checkout.deploy()
    assert f"- deployment retrain/{OTHERS[0]}" in said
    assert f"- automation demo: retrain {OTHERS[0]} when something changed" in said
    names = {one.name for one in client.read_deployments()}
    assert names == {TASK, "by-hand", "fleet", OTHERS[1]}
    assert "mine" in {one.name for one in client.read_automations()}
    assert "No change: all 9 objects are as params.yaml says (1 of other makers left alone)." in checkout.deploy()


def test_all_tasks_together_have_a_deployment_where_params_say_so(checkout: Checkout, client: SyncPrefectClient) -> None:
    checkout.set_fleet(cron="0 2 * * *", timezone="Europe/Berlin", at_once=3, pool={"name": "fleets", "type": "process", "limit": 2})
    checkout.set(TASK, notifications=[{"on": ["failed"], "webhook_variable": "PATH"}])
    assert "+ deployment retrain-all/fleet" in checkout.deploy()
    made = client.read_deployment_by_name("retrain-all/fleet")
    (schedule,) = made.schedules
    assert isinstance(schedule.schedule, CronSchedule)
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")
    assert made.parameters == {"at_once": 3, "changed_only": True, "refresh": True}
    assert made.parameters.keys() <= made.parameter_openapi_schema["properties"].keys()
    assert (made.work_pool_name, made.job_variables) == ("fleets", {"working_dir": str(checkout.root)})
    assert made.global_concurrency_limit is not None
    assert made.global_concurrency_limit.limit == 1
    limits = {name: client.read_global_concurrency_limit_by_name(f"promptmill-fleet-{name}") for name in ("fleets", "promptmill")}
    assert {name: (limit.limit, limit.active) for name, limit in limits.items()} == {"fleets": (2, True), "promptmill": (1, False)}
    of_the_fleet = [one.name for one in client.read_automations() if "prefect.tag.promptmill-fleet" in str(one.trigger)]
    assert len(of_the_fleet) == 3  # silent, pending, and a message when it failed
    assert checkout.deploy().startswith("No change")

    checkout.set_fleet(pool={"name": "fleets", "type": "process", "limit": None})
    assert "active: true -> false" in checkout.deploy()
    assert not client.read_global_concurrency_limit_by_name("promptmill-fleet-fleets").active
    checkout.set_fleet(pool={"name": "promptmill", "type": "process", "limit": 2})
    assert "and fleet.pool say different things about the work pool 'promptmill'" in checkout.fails()
    checkout.set_fleet()
    said = checkout.deploy()
    assert "- deployment retrain-all/fleet" in said
    assert "- work pool fleets" in said


def test_a_fleets_task_waits_for_a_slot_of_its_pool(client: SyncPrefectClient) -> None:
    name = limit_name("two workers")
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    said: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with fleet_slot("two workers"):
            said.append("second")

    thread = threading.Thread(target=second)
    with fleet_slot("two workers"):
        thread.start()
        waiting.wait()
        time.sleep(2)  # long enough for it to ask
        assert client.read_global_concurrency_limit_by_name(name).active_slots == 1
        said.append("first")
    thread.join(timeout=120)
    assert said == ["first", "second"]
    assert client.read_global_concurrency_limit_by_name(name).active_slots == 0
    with fleet_slot("a pool without a limit"):
        said.append("third")
    assert said[-1] == "third"


def test_new_data_starts_a_retraining(checkout: Checkout, client: SyncPrefectClient) -> None:
    checkout.deploy()
    deployment = client.read_deployment_by_name(f"retrain/{TASK}")
    of_it = {"deployment_filter": DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])), "flow_run_filter": FlowRunFilter()}
    assert client.read_flow_runs(**of_it) == []
    assert announce(DATA_CHANGED, TASK, subject="new data")
    runs: list[Any] = []
    for _ in range(300):
        runs = client.read_flow_runs(**of_it)
        if runs:
            break
        time.sleep(0.1)
    assert [run.parameters for run in runs] == [{"task": TASK, "refresh": False, "unless_unchanged": True}]
    others = client.read_deployment_by_name(f"retrain/{OTHERS[0]}")
    assert client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[others.id]))) == []


@pytest.mark.usefixtures("client")
def test_what_cannot_be_set_up_is_said(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.set(TASK, pool={"name": "promptmill", "type": "process", "limit": 2})
    assert (
        f"tasks.{OTHERS[1]}.deployment.pool and tasks.{TASK}.deployment.pool say different things about the work pool 'promptmill'"
        in checkout.fails()
    )
    checkout.set(TASK, pool={"name": "elsewhere", "type": "no-such-type", "limit": None})
    assert "Prefect knows no worker type 'no-such-type'" in checkout.fails()
    checkout.set(TASK, notifications=[{"on": ["failed"], "block": "slack-webhook/nobody"}])
    assert "slack-webhook/nobody, which deployment.notifications names, is not on this Prefect server" in checkout.fails()
    monkeypatch.delenv("PROMPTMILL_WEBHOOK_URL", raising=False)
    checkout.set(TASK, notifications=[{"on": ["failed"], "webhook_variable": "PROMPTMILL_WEBHOOK_URL"}])
    assert "environment variable PROMPTMILL_WEBHOOK_URL" in checkout.fails()


def test_the_plan_removes_in_the_reverse_of_the_order_it_makes() -> None:
    there = [Found(Item(kind, "old", {}), ours=True) for kind in deployments.KINDS]
    changes = plan([Item(kind, "new", {"a": 1}) for kind in reversed(deployments.KINDS)], there)
    assert [change.item.kind for change in changes] == [*deployments.KINDS, *reversed(deployments.KINDS)]
    assert [change.action for change in changes] == ["create"] * 6 + ["remove"] * 6


def test_the_project_is_named_after_the_remote_else_the_folder(tmp_path: Path) -> None:
    assert project_name(tmp_path / "My_Prompts") == "my-prompts"
    call("git", "init", "--quiet", folder=tmp_path)
    call("git", "remote", "add", "origin", "git@example.org:team/Tuned_Prompts.git", folder=tmp_path)
    assert project_name(tmp_path) == "tuned-prompts"


def test_fifty_tasks_share_their_watches_and_notifications(repo_root: Path) -> None:
    one = load(repo_root / "params.yaml")[TASK]
    told = one.deployment.model_copy(
        update={"notifications": [deployments.Notification(on=["failed", "promoted"], block="slack-webhook/team")]}
    )
    tasks = {f"task_{number:02}": one.model_copy(update={"deployment": told}) for number in range(50)}
    items = wanted(project="demo", tasks=tasks, checkout=repo_root, environment={}, pages="http://here")
    automations = [item for item in items if item.kind == "automation"]
    assert len(automations) == 50 + 2 + 2  # one trigger a task; silent and pending; failed and promoted
    assert len({item.name for item in automations}) == len(automations)
    other = told.model_copy(update={"pool": told.pool.model_copy(update={"limit": 2})})
    with pytest.raises(DeployError, match=r"tasks\.task_00\.deployment\.pool and tasks\.task_07\.deployment\.pool say different things"):
        wanted(
            project="demo",
            tasks={**tasks, "task_07": one.model_copy(update={"deployment": other})},
            checkout=repo_root,
            environment={},
            pages="http://here",
        )


CRON_LINES = """\
* * * * *|0 3 * * 1|15 3 * * mon|*/5 * * * *|0-30/10 1,13 1-15 jan-jun mon-fri|0 0 29 2 *|0 0 * * 7|0 0 * * sun
60 * * * *|0 24 * * *|0 0 0 * *|0 0 32 * *|0 0 * 13 *|0 0 * * 8|* * * *|a * * * *|0 0 * foo *|*/0 * * * *||5- * * * *|0 0 1,,2 * *"""


@pytest.mark.parametrize("line", CRON_LINES.replace("\n", "|").split("|"))
def test_a_cron_line_is_one_where_prefect_says_so(line: str) -> None:
    try:
        CronSchedule(cron=line)
    except ValueError:
        assert cron_problem(line)
    else:
        assert cron_problem(line) is None
