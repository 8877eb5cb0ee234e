"""The flow `promote`: a form for the answer of a person, carried out by the registry's own rules."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ApprovalError
from pipeline.registry import approval, registry
from pipeline.registry.connection import connect
from tests.registry.registry_workspace import TASK, Workspace, write_outputs


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose version 1 waits for approval."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_outputs(tmp_path, 1, "ask")
    connect(root=tmp_path, create=True)
    assert Workspace(tmp_path).register() == 1
    approval.request_approval(root=tmp_path, task=TASK, version=1)
    return tmp_path


def resume(answer: dict[str, Any]) -> str:
    """Fill in the form of the paused run; returns the description that it showed."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
    from prefect.input.run_input import keyset_from_paused_state

    paused = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Paused"])))
    with get_client(sync_client=True) as client:
        for _ in range(600):
            runs = client.read_flow_runs(flow_run_filter=paused)
            if runs:
                break
            time.sleep(0.2)
        (run,) = runs
        assert run.name == f"promote-{TASK}-1"
        assert run.state is not None
        description = client.read_flow_run_input(run.id, keyset_from_paused_state(run.state)["description"])
        client.resume_flow_run(run.id, run_input=answer)
    return str(description)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_without_an_answer_shows_a_form(waiting: Path) -> None:
    from flows.approval import promote

    ended: list[Any] = []
    flow_run = threading.Thread(target=lambda: ended.append(promote(TASK, 1, root=str(waiting))))
    flow_run.start()
    shown = registry.show(root=waiting, task=TASK, selector=1)
    answer = {"approved": True, "by": "Ada", "manifest_sha256": shown["manifest_sha256"], "reason": "Read 50 answers."}
    description = resume(answer)
    assert shown["manifest_sha256"] in description
    assert "accuracy 0.41 is below 0.50." in description
    flow_run.join(timeout=120)
    assert [(record["version"], record["already_champion"]) for record in ended] == [(1, False)]
    kept = registry.show(root=waiting, task=TASK, selector="champion")["approval"]
    assert (kept["by"], kept["reason"]) == ("Ada", "Read 50 answers.")


@pytest.mark.usefixtures("prefect_server")
def test_an_answer_among_the_parameters_needs_no_form_and_obeys_the_same_rules(waiting: Path) -> None:
    from flows.approval import Approval, promote

    with pytest.raises(ApprovalError, match="the approval is for 000000000000"):
        promote(TASK, 1, root=str(waiting), answer=Approval(approved=True, by="Ada", manifest_sha256="000000000000", reason="fine"))
    manifest = registry.show(root=waiting, task=TASK, selector=1)["manifest_sha256"]
    promote(TASK, 1, root=str(waiting), answer=Approval(approved=False, by="Ada", manifest_sha256=manifest, reason="Worse on refunds."))
    shown = registry.show(root=waiting, task=TASK, selector=1)
    assert (shown["approval"]["approved"], shown["aliases"]) == (False, ["challenger"])
