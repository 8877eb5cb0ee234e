"""Compare-and-commit, the doctor, history and retention, on a real MLflow store."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import ChampionChanged, RegistryError
from pipeline.registry import doctor, journal, locks, promotion, registry, retention
from pipeline.registry.connection import connect
from pipeline.registry.history import history
from pipeline.registry.registry import COMPARED_WITH
from tests.registry.registry_workspace import TASK, Workspace, damage

announce = journal.announce  # as it is before a test replaces it


def register(workspace: Workspace, count: int, first: int = 1) -> None:
    for seed in range(first, first + count):
        workspace.make(seed)
        assert workspace.register() == seed


def examine(workspace: Workspace) -> list[tuple[str, str]]:
    return [(finding.state, finding.text) for finding in doctor.examine(root=workspace.root, task=TASK)]


def begun(workspace: Workspace, version: int, *, held: list[str], age: timedelta = timedelta()) -> str:
    """Announce a promotion of another process that then does nothing; returns its id."""
    connection = connect(root=workspace.root)
    state = journal.read_state(connection, TASK)
    intent = {
        "event": "intent",
        "id": journal.new_id(),
        "sequence": state.sequence + 1,
        "action": "promote",
        "task": TASK,
        "version": version,
    }
    intent |= {"previous_champion": None, "locks": held, "at": (datetime.now(UTC) - age).isoformat()}
    announce(connection, intent)
    return intent["id"]


def test_a_decision_against_an_older_champion_does_not_undo_a_newer_one(workspace: Workspace) -> None:
    register(workspace, 3)
    assert registry.show(root=workspace.root, task=TASK, selector=1)["compared_with"] == "none"
    promotion.promote(root=workspace.root, task=TASK, version=1, expected="compared")
    promotion.promote(root=workspace.root, task=TASK, version=3, expected=1)
    workspace.make(4)
    record = workspace.layout.path("champion") / "champion.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"version": null', '"version": 3'), encoding="utf-8")
    assert workspace.register() == 4
    assert registry.show(root=workspace.root, task=TASK, selector=4)["compared_with"] == "3"
    for expected in (1, "compared", None):
        with pytest.raises(ChampionChanged, match=r"version 2 was compared with (version 1|no champion), and champion is version 3 by now"):
            promotion.promote(root=workspace.root, task=TASK, version=2, expected=expected)
    assert promotion.promote(root=workspace.root, task=TASK, version=3, expected=1)["already_champion"]
    assert [entry["event"] for entry in journal.read_journal(root=workspace.root, task=TASK)] == ["intent", "done"] * 2


def test_another_machine_sees_the_journal_and_can_roll_back(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(workspace, 2)
    for version in (1, 2):
        promotion.promote(root=workspace.root, task=TASK, version=version, by="Ada", reason=f"why {version}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root}/.promptmill/mlflow/mlflow.db")
    elsewhere = tmp_path / "another clone"
    elsewhere.mkdir()
    assert journal.read_journal(root=elsewhere, task=TASK) == []
    assert [(reign["version"], reign["reason"]) for reign in history(root=elsewhere, task=TASK)] == [(1, "why 1"), (2, "why 2")]
    assert promotion.rollback(root=elsewhere, task=TASK, by="Eve", reason="complaints")["version"] == 1
    reigns = history(root=workspace.root, task=TASK)
    assert [(reign["version"], reign["action"], reign["by"]) for reign in reigns] == [
        (1, "promote", "Ada"),
        (2, "promote", "Ada"),
        (1, "rollback", "Eve"),
    ]
    assert [reign["until"] for reign in reigns] == [reigns[1]["since"], reigns[2]["since"], None]
    assert reigns[0]["metrics"]["tuned/accuracy"] == 0.625


def test_a_promotion_of_another_machine_is_respected_until_it_must_be_dead(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "ATTEMPTS", 2)
    register(workspace, 2)
    identity = begun(workspace, 2, held=["machine:elsewhere"])
    with pytest.raises(RegistryError, match=r"Another machine began to promote tweet_sentiment version 2"):
        promotion.promote(root=workspace.root, task=TASK, version=1)
    assert examine(workspace)[0][0] == "problem"
    connect(root=workspace.root).client.delete_registered_model_tag(TASK, journal.FLAG + identity)
    begun(workspace, 2, held=["machine:elsewhere"], age=promotion.GRACE)
    assert promotion.promote(root=workspace.root, task=TASK, version=1)["version"] == 1
    known = [(entry["version"], entry["event"]) for entry in promotion.promotions(connect(root=workspace.root), TASK)]
    assert sorted(known) == [(1, "done"), (2, "aborted")]


def test_one_that_begins_after_the_first_look_is_seen_by_the_second(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment between looking and announcing, in which two machines without a common lock could both go on."""
    monkeypatch.setattr(promotion, "ATTEMPTS", 1)
    register(workspace, 2)

    def with_another(connection: object, intent: journal.Entry) -> None:
        begun(workspace, 2, held=["machine:elsewhere"])
        announce(connection, intent)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(journal, "announce", with_another)
    with pytest.raises(RegistryError, match="Another machine began to promote"):
        promotion.promote(root=workspace.root, task=TASK, version=1)
    assert journal.read_state(connect(root=workspace.root), TASK).aliases.get("champion") is None
    assert [entry["event"] for entry in journal.read_journal(root=workspace.root, task=TASK)] == ["intent", "aborted"]


def test_a_shared_lock_is_held_around_the_commit_and_named_in_the_intent(workspace: Workspace) -> None:
    from contextlib import contextmanager

    register(workspace, 1)
    seen: list[str] = []

    @contextmanager
    def shared(task: str):
        seen.append(f"taken for {task}")
        yield "prefect:test"
        seen.append(f"given back with champion {journal.read_state(connect(root=workspace.root), TASK).aliases.get('champion')}")

    promotion.promote(root=workspace.root, task=TASK, version=1, lock=shared)
    assert seen == [f"taken for {TASK}", "given back with champion 1"]
    assert "prefect:test" in journal.read_journal(root=workspace.root, task=TASK)[0]["locks"]


def test_the_doctor_settles_mirrors_and_names_what_a_person_must_do(workspace: Workspace) -> None:
    register(workspace, 2)
    promotion.promote(root=workspace.root, task=TASK, version=1)
    assert {state for state, _ in examine(workspace)} == {"fine"}
    connection = connect(root=workspace.root)
    with locks.promotion_lock(connection, TASK) as held:
        begun(workspace, 2, held=sorted(held))
    (entry,) = [entry for entry in journal.read_journal(root=workspace.root, task=TASK) if entry["event"] == "done"]
    connection.client.delete_model_version_tag(TASK, "1", journal.entry_tag(entry))
    found = examine(workspace)
    assert [state for state, _ in found] == ["repaired", "repaired", "fine", "fine"]
    assert "the promote of version 2, begun at" in found[0][1]
    assert "had not taken effect: closed as aborted" in found[0][1]
    assert "was missing among its tags" in found[1][1]
    assert {state for state, _ in examine(workspace)} == {"fine"}

    connection.client.set_registered_model_alias(TASK, "champion", "2")  # as somebody does on MLflow's page
    damage(workspace.stored_bundle(2), "one bit flipped")
    problems = [text for state, text in examine(workspace) if state == "problem"]
    assert "champion is 2, and the last promotion in the journal is of 1" in problems[0]
    assert "adapter_model.safetensors has sha256" in problems[1]
    assert len(problems) == 2


def test_pruning_keeps_champions_what_was_compared_with_and_the_newest(workspace: Workspace) -> None:
    register(workspace, 7)
    for version in (1, 3):
        promotion.promote(root=workspace.root, task=TASK, version=version)
    connection = connect(root=workspace.root)
    connection.client.set_model_version_tag(TASK, "5", COMPARED_WITH, "4")
    dry = retention.prune(root=workspace.root, task=TASK, keep=1, delete=False)
    assert {one.version: one.reasons for one in dry if one.reasons} == {
        7: ("alias challenger", "among the newest"),
        4: ("something was compared with it",),
        3: ("alias champion", "was champion"),
        1: ("was champion",),
    }
    assert len(registry.list_versions(root=workspace.root, task=TASK)) == 7
    assert retention.prune(root=workspace.root, task=TASK, keep=1, delete=True) == dry
    assert [version["version"] for version in registry.list_versions(root=workspace.root, task=TASK)] == [7, 4, 3, 1]
    assert promotion.rollback(root=workspace.root, task=TASK)["version"] == 1
    experiment = connection.client.get_experiment_by_name(TASK)
    assert experiment is not None
    assert len(connection.client.search_runs([experiment.experiment_id])) == 7
    # version 5 is gone, and with it what referred to version 4
    assert [one.version for one in retention.prune(root=workspace.root, task=TASK, keep=0, delete=False) if not one.reasons] == [4]


def test_the_journal_of_a_promptmill_without_ids_is_still_read(workspace: Workspace) -> None:
    register(workspace, 2)
    path = journal.journal_path(workspace.root)
    old = {"action": "promote", "task": TASK, "version": 1, "previous_champion": None, "at": "2026-01-01T00:00:00+00:00"}
    path.write_text("".join(json.dumps({"event": event, **old}) + "\n" for event in ("intent", "done", "intent")), encoding="utf-8")
    connect(root=workspace.root).client.set_registered_model_alias(TASK, "champion", "1")
    promotion.promote(root=workspace.root, task=TASK, version=2)
    assert [(reign["version"], reign["previous_champion"]) for reign in history(root=workspace.root, task=TASK)] == [
        (1, None),
        (1, None),
        (2, 1),
    ]
    assert promotion.rollback(root=workspace.root, task=TASK)["version"] == 1
