from pathlib import Path

import pytest
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

from flows.retrain import run_stages
from flows.stage_process import StageDied
from pipeline.errors import StageFailed
from tests.flows.flow_workspace import living, make_trivial, writes

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
