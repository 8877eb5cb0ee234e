from pathlib import Path

import pytest
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

from flows.retrain import run_stages
from flows.stage_process import StageDied
from pipeline.errors import StageFailed, StagesWait
from tests.flows.flow_workspace import REPOSITORY, living, make_trivial, writes

pytestmark = pytest.mark.usefixtures("prefect_server")

COUNTS = "count = pathlib.Path('count'); count.write_text(count.read_text() + 'x' if count.exists() else 'x')"


@flow(name="only stages", persist_result=False)
def only_stages(root: str, stages: list[str], seconds: float = 60.0) -> list[str]:
    return [done.outcome for done in run_stages(Path(root), "demo", stages=stages, stage_seconds=seconds, retry_delay_seconds=0.1)]


def task_runs_of(state: State) -> list[TaskRun]:
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))


def test_stages_run_in_order_and_are_reused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = make_trivial(tmp_path / "w", {"one": writes("one"), "two": writes("two")}, {"two": ["one.txt"]})
    assert only_stages(str(root), ["one", "two"]) == ["run", "run"]
    assert only_stages(str(root), ["one", "two"]) == ["unchanged", "unchanged"]
    lines = [line.partition(" (")[0].strip() for line in capfd.readouterr().err.splitlines()]
    first = ["[1/2] one", "done", "[2/2] two", "done"]
    again = ["[1/2] one", "unchanged, reused", "[2/2] two", "unchanged, reused"]
    assert [line for line in lines if line in {*first, *again}] == first + again


def test_a_failing_stage_fails_the_flow_with_its_message_and_is_not_retried(tmp_path: Path) -> None:
    fails = f"{COUNTS}\nsys.stderr.write('error: stage two of demo: row 3 is empty\\n'); sys.exit(1)"
    root = make_trivial(tmp_path / "w", {"one": writes("one"), "two": fails, "three": writes("three")})
    state = only_stages(str(root), ["one", "two", "three"], return_state=True)
    assert state.is_failed()
    with pytest.raises(StageFailed, match=r"^stage two of demo: row 3 is empty$"):
        state.result()
    assert (root / "count").read_text() == "x"
    assert not (root / "three.txt").exists()


NOWHERE = "http://127.0.0.1:9"
ASKS = """\
from pipeline.errors import PromptmillError
from pipeline.registry.reference import champion_version
try:
    champion_version(root=pathlib.Path(), task='demo')
except PromptmillError as error:
    sys.exit(f'error: stage reference of demo: {error}')
"""


def test_without_mlflow_all_is_done_that_does_not_ask_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage asks for the champion as the real one does; drift reads what it writes, tune does not, gate reads drift."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    code = {name: writes(name) for name in ("split", "drift", "tune", "gate")} | {"reference": f"{ASKS}{writes('reference')}"}
    deps = {"reference": ["split.txt"], "drift": ["reference.txt"], "tune": ["split.txt"], "gate": ["drift.txt", "tune.txt"]}
    root = make_trivial(tmp_path / "w", code, deps)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    stages = ["split", "reference", "drift", "tune", "gate"]
    state = only_stages(str(root), stages, return_state=True)
    with pytest.raises(
        StagesWait, match=rf"^MLflow at {NOWHERE} does not answer.*; reference, drift, gate wait\. .*promptmill run demo"
    ) as raised:
        state.result()
    assert raised.value.exit_code == 75
    assert {run.name: run.state_name for run in task_runs_of(state)} == {
        "split-demo": "Completed",
        "reference-demo": "Failed",
        "tune-demo": "Completed",
    }
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert only_stages(str(root), stages) == ["unchanged", "run", "run", "unchanged", "run"]


def test_a_reference_that_fails_although_mlflow_answers_fails_the_flow(tmp_path: Path) -> None:
    fails = "sys.exit('error: stage reference of demo: the profile was altered')"
    root = make_trivial(tmp_path / "w", {"reference": fails, "tune": writes("tune")})
    with pytest.raises(StageFailed, match="the profile was altered"):
        only_stages(str(root), ["reference", "tune"])
    assert not (root / "tune.txt").exists()


def test_a_killed_stage_is_tried_again(tmp_path: Path) -> None:
    dies_once = f"{COUNTS}\nif count.read_text() == 'x': os.kill(os.getpid(), signal.SIGKILL)\n{writes('one')}"
    root = make_trivial(tmp_path / "w", {"one": dies_once})
    assert only_stages(str(root), ["one"]) == ["run"]
    assert (root / "count").read_text() == "xx"


def test_a_stage_that_is_always_killed_fails_after_two_retries(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"one": f"{COUNTS}\nos.kill(os.getpid(), signal.SIGKILL)"})
    with pytest.raises(StageDied, match="was killed"):
        only_stages(str(root), ["one"])
    assert (root / "count").read_text() == "xxx"


def test_a_stage_over_its_time_limit_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    slow = f"{COUNTS}\n{child}\npathlib.Path('group').write_text(str(os.getpgid(0)))\ntime.sleep(600)"
    root = make_trivial(tmp_path / "w", {"one": slow})
    with pytest.raises(StageFailed, match=r"stage one of demo: stopped after 15 s, its time limit"):
        only_stages(str(root), ["one"], seconds=15.0)
    assert living(int((root / "group").read_text())) == []
    assert (root / "count").read_text() == "x"


def test_a_stages_run_is_named_after_stage_and_task(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"one": writes("one")})
    state = only_stages(str(root), ["one"], return_state=True)
    assert [run.name for run in task_runs_of(state)] == ["one-demo"]
