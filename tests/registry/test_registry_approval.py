"""Approval by a person: nothing is promoted without it, and an answer counts for what was looked at and nothing else."""

import pytest

from pipeline.errors import ApprovalError, ChampionChanged, NeedsApproval, NotPromoted
from pipeline.registry import approval, journal, promotion, registry
from pipeline.registry.connection import connect
from pipeline.registry.history import history
from pipeline.registry.registry import COMPARED_WITH
from tests.registry.registry_workspace import TASK, Workspace


def compared_with(workspace: Workspace, version: int, champion: str) -> None:
    connect(root=workspace.root).client.set_model_version_tag(TASK, str(version), COMPARED_WITH, champion)


def champion(workspace: Workspace) -> int | None:
    return journal.read_state(connect(root=workspace.root), TASK).aliases.get("champion")


def test_who_is_asked_follows_from_the_params_and_the_gate() -> None:
    asked = {
        (how, what)
        for how in ("auto", "on_doubt", "manual")
        for what in ("promote", "ask", "refuse")
        if approval.needs_approval(approval=how, decision=what)
    }
    assert asked == {("on_doubt", "ask"), ("manual", "promote"), ("manual", "ask")}


def test_a_version_waits_and_an_approval_promotes_it_and_is_kept(workspace: Workspace) -> None:
    workspace.make(1, decision="ask")
    assert workspace.register() == 1
    with pytest.raises(ApprovalError, match="does not wait for approval"):
        approval.approve(root=workspace.root, task=TASK, version=1, reason="fine")
    request = approval.request_approval(root=workspace.root, task=TASK, version=1)
    shown = registry.show(root=workspace.root, task=TASK, selector=1)
    assert (request["champion"], request["manifest_sha256"], request["reasons"]) == (None, shown["manifest_sha256"], shown["gate_reasons"])
    assert approval.request_approval(root=workspace.root, task=TASK, version=1) == request == shown["approval_request"]
    assert approval.is_waiting(shown)
    with pytest.raises(NeedsApproval, match=r"promptmill approve tweet_sentiment 1"):
        promotion.promote(root=workspace.root, task=TASK, version=1)
    for reason in ("", " \n"):
        with pytest.raises(ApprovalError, match="the reason is empty"):
            approval.approve(root=workspace.root, task=TASK, version=1, reason=reason)
    for manifest in ("0" * 64, shown["manifest_sha256"][:11]):
        with pytest.raises(ApprovalError, match=rf"has the manifest {shown['manifest_sha256']}, the approval is for {manifest}"):
            approval.approve(root=workspace.root, task=TASK, version=1, reason="fine", manifest=manifest)
    assert champion(workspace) is None

    approval.approve(root=workspace.root, task=TASK, version=1, reason="Read 50 answers.", by="Ada", manifest=shown["manifest_sha256"][:12])
    assert champion(workspace) == 1
    kept = registry.show(root=workspace.root, task=TASK, selector=1)["approval"]
    assert (kept["approved"], kept["by"], kept["reason"], kept["manifest_sha256"]) == (
        True,
        "Ada",
        "Read 50 answers.",
        shown["manifest_sha256"],
    )
    (reign,) = history(root=workspace.root, task=TASK)
    assert (reign["by"], reign["reason"], reign["approval"]["at"]) == ("Ada", "Read 50 answers.", kept["at"])
    with pytest.raises(ApprovalError, match="was approved by Ada"):
        approval.approve(root=workspace.root, task=TASK, version=1, reason="again")


def test_an_approval_of_an_outdated_comparison_is_refused(workspace: Workspace) -> None:
    for seed in (1, 2, 3):
        workspace.make(seed)
        workspace.register()
    promotion.promote(root=workspace.root, task=TASK, version=1)
    compared_with(workspace, 2, "1")
    assert approval.request_approval(root=workspace.root, task=TASK, version=2)["champion"] == 1
    promotion.promote(root=workspace.root, task=TASK, version=3)
    with pytest.raises(ChampionChanged, match=r"compared with version 1, and champion is version 3 by now: the approval is out of date"):
        approval.approve(root=workspace.root, task=TASK, version=2, reason="fine")
    assert champion(workspace) == 3
    assert registry.show(root=workspace.root, task=TASK, selector=2)["approval"] is None


def test_nobody_approves_what_the_gate_refused_and_a_rejection_stays(workspace: Workspace) -> None:
    workspace.make(1, decision="refuse")
    workspace.register()
    with pytest.raises(NotPromoted, match="was refused by the gate"):
        approval.request_approval(root=workspace.root, task=TASK, version=1)
    workspace.make(2)
    workspace.register()
    approval.request_approval(root=workspace.root, task=TASK, version=2)
    approval.reject(root=workspace.root, task=TASK, version=2, reason="Worse on refunds.", by="Ada")
    with pytest.raises(ApprovalError, match=r"was rejected by Ada at .*: Worse on refunds\."):
        approval.approve(root=workspace.root, task=TASK, version=2, reason="fine")
    with pytest.raises(NeedsApproval):
        promotion.promote(root=workspace.root, task=TASK, version=2)
    assert champion(workspace) is None
