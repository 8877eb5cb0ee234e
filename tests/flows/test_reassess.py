"""The flow `reassess` on a real tiny task: real stages, DVC, MLflow and Prefect; what it says of the champion, and which events it sends."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.gates.checks import Check
from pipeline.layout import Layout
from pipeline.reassessment import verdict_of
from pipeline.records import read_json
from tests.faults.tiny_checkout import MODEL, change, make_checkout, record_and_register, run_stages
from tests.flows.data_workspace import stages_find_their_code
from tests.stages.conftest import TASK


def check(verdict: str) -> Check:
    return Check(
        name="accuracy", verdict=verdict, value=None, low=None, high=None, n=None, denominator=None, limit=None, method=None, rule="", sentence="", more_rows=None
    )  # pyright: ignore[reportArgumentType]  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["PASS", "PASS"], "within"),
        (["PASS", "INCONCLUSIVE"], "undecided"),
        (["INSUFFICIENT", "PASS"], "undecided"),
        (["INCONCLUSIVE", "FAIL"], "below"),
        (["DEGENERATE"], "below"),
        (["MISSING", "INSUFFICIENT"], "below"),
        (["ERROR"], "below"),
        (["PASS", "a verdict of tomorrow"], "below"),
    ],
)
def test_what_cannot_be_shown_counts_against_the_champion(verdicts: list[str], expected: str) -> None:
    assert verdict_of([check(verdict) for verdict in verdicts]) == expected


@pytest.fixture
def champion(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose version 1 is champion, made by the real stages."""
    from pipeline.registry.connection import connect

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_checkout(repo_root, tmp_path / "checkout")
    stages_find_their_code(monkeypatch)
    registry = connect(root=root, create=True).client
    run_stages(root)
    # By hand: so short a training answers one label, which no gate lets pass.
    registry.set_registered_model_alias(TASK, "champion", str(record_and_register(root)))
    return root


def was_told(event: str) -> bool:
    """Whether the server has the event about the task; it writes events down some seconds after it took them."""
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
    from prefect.events.worker import EventsWorker
    from prefect.types._datetime import now

    EventsWorker.drain_all(timeout=20)
    since = EventOccurredFilter(since=now("UTC") - timedelta(hours=1))
    wanted = EventFilter(occurred=since, event=EventNameFilter(name=[event]), resource=EventResourceFilter(id=[f"promptmill.task.{TASK}"]))
    with get_client(sync_client=True) as client:
        for _ in range(120):
            answer = client.request("POST", "/events/filter", json={"filter": wanted.model_dump(mode="json"), "limit": 50})
            if answer.json()["events"]:
                return True
            time.sleep(0.5)
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_champion_is_judged_on_the_data_of_today(champion: Path) -> None:
    from safetensors.torch import load_file, save_file

    from flows.reassess import reassess, record_path
    from flows.retrain import stale_stages

    made = [Layout(champion, TASK).path(name).read_bytes() for name in ("train_log", "score_report")]
    found: Any = reassess(TASK, str(champion), return_state=True)
    assert (found.name, found.result()["verdict"]) == ("BelowLimits", "below"), found.message
    assert [reason.partition(": The")[0] for reason in found.result()["reasons"]] == ["degeneracy: DEGENERATE"]
    assert (found.result()["version"], found.result()["data_changed"], found.result()["base_model"]) == (1, False, None)
    assert read_json(champion / "reports" / TASK / "metrics.json")["n"] == found.result()["n"]
    assert was_told("promptmill.champion.below_limits")
    assert read_json(record_path(champion, TASK)) == found.result()

    rows = pd.read_csv(champion / "rows.csv")
    rows.assign(mood=rows["mood"].map({"good": "bad", "bad": "good"})).to_csv(champion / "rows.csv", index=False)
    change(champion, lambda sections: sections["gate"].update(value_thresholds=[{"metric": "accuracy", "minimum": 0.95}]))
    found = reassess(TASK, str(champion), return_state=True)
    assert (found.name, found.result()["verdict"], found.result()["data_changed"]) == ("BelowLimits", "below", True)
    assert any(reason.startswith("accuracy: FAIL") for reason in found.result()["reasons"])
    assert was_told("promptmill.data.changed")
    assert [
        Layout(champion, TASK).path(name).read_bytes() for name in ("train_log", "score_report")
    ] == made  # nothing was tuned or scored as a candidate

    weights = champion / MODEL / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).flatten()[0] += 0.5
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    found = reassess(TASK, str(champion), return_state=True)
    assert (found.name, found.result()["verdict"]) == ("NotComparable", "not_comparable")
    assert "the weights of tiny/llama have sha256" in found.result()["base_model"]
    assert was_told("promptmill.base_model.changed")
    assert "profile" in stale_stages(champion, TASK)
    assert "tune" in stale_stages(champion, TASK)
