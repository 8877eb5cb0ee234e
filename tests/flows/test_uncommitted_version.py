"""Uncommitted changes are a reason like any other not to promote: for the flow, and for whoever reads what the command says."""

from pathlib import Path

import pytest
from prefect import State

from flows.commands import report
from flows.retrain import NOT_PROMOTED, TRIED, decide
from pipeline.params import load_task
from pipeline.registry.registry import show
from tests.flows.data_workspace import commit
from tests.flows.flow_workspace import call
from tests.registry.registry_workspace import TASK, Workspace


@pytest.mark.parametrize("approval", ["auto", "manual"])
def test_a_version_with_uncommitted_changes_ends_as_not_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], approval: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    workspace.make(1)
    root = workspace.root
    (root / "code.py").write_text("x = 1\n", encoding="utf-8")
    call("git", "init", "--quiet", folder=root)
    commit(root, "first")
    (root / "code.py").write_text("x = 2\n", encoding="utf-8")
    text = (root / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(text.replace("approval: auto", f"approval: {approval}"), encoding="utf-8")
    assert load_task(root / "params.yaml", TASK).promotion.approval == approval
    assert workspace.register() == 1
    version = show(root=root, task=TASK, selector=1)
    ended = decide(root, TASK, 1, version["run_id"])
    assert isinstance(ended, State)
    assert (ended.is_completed(), ended.name) == (True, NOT_PROMOTED)
    reason = f"{TASK} version 1 was made with changes that are not committed"
    assert str(ended.message).startswith(reason)
    assert report(root, TASK, version, ("text",)) == 3
    assert f"NOT PROMOTED: {reason}" in capsys.readouterr().out
    commit(root, "second")
    assert workspace.register() == 1
    assert show(root=root, task=TASK, selector=1)["approval_request"] is None


def test_a_trial_stays_challenger_whatever_the_gate_says_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    workspace.make(1)
    text = (workspace.root / "params.yaml").read_text(encoding="utf-8")
    (workspace.root / "params.yaml").write_text(text.replace("approval: auto", "approval: manual"), encoding="utf-8")
    assert workspace.register() == 1
    ended = decide(workspace.root, TASK, 1, "run", trial=True)
    assert isinstance(ended, State)
    assert (ended.is_completed(), ended.name) == (True, TRIED)
    assert "the gate's verdict is promote" in str(ended.message)
    shown = show(root=workspace.root, task=TASK, selector=1)
    assert (shown["aliases"], shown["approval_request"]) == (["challenger"], None)
