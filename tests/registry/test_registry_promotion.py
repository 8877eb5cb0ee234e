import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.errors import BundleError, NotPromoted, RegistryError
from pipeline.registry import doctor, journal, promotion, registry
from tests.registry.registry_workspace import TASK, Workspace, damage

ROOT = Path(__file__).parents[2]


def champion(workspace: Workspace) -> int | None:
    entries = registry.list_versions(root=workspace.root, task=TASK)
    return next((entry["version"] for entry in entries if "champion" in entry["aliases"]), None)


def promote(workspace: Workspace, version: int) -> tuple[int | None, bool]:
    record = promotion.promote(root=workspace.root, task=TASK, version=version)
    assert (record["task"], record["version"]) == (TASK, version)
    assert champion(workspace) == version
    return record["previous_champion"], record["already_champion"]


def rollback(workspace: Workspace, to: int | None = None) -> int:
    record = promotion.rollback(root=workspace.root, task=TASK, to=to)
    assert champion(workspace) == record["version"]
    return record["version"]


def events(workspace: Workspace) -> list[tuple[str, str, int]]:
    return [(entry["event"], entry["action"], entry["version"]) for entry in journal.read_journal(root=workspace.root, task=TASK)]


def register(workspace: Workspace, count: int) -> None:
    for seed in range(1, count + 1):
        workspace.make(seed)
        assert workspace.register() == seed


def test_promotion_moves_the_alias_once_and_writes_down_why(workspace: Workspace) -> None:
    register(workspace, 2)
    assert promote(workspace, 1) == (None, False)
    assert promote(workspace, 1) == (1, True)
    assert promote(workspace, 2) == (1, False)
    assert events(workspace) == [("intent", "promote", 1), ("done", "promote", 1), ("intent", "promote", 2), ("done", "promote", 2)]
    shown = registry.show(root=workspace.root, task=TASK, selector="champion")
    entry = journal.read_journal(root=workspace.root, task=TASK)[-1]
    assert {key: entry[key] for key in ("gate_decision", "gate_sha256", "manifest_sha256", "run_id")} == {
        key: shown[key] for key in ("gate_decision", "gate_sha256", "manifest_sha256", "run_id")
    }
    assert shown["promoted_at"] is not None


def test_what_the_gate_refused_cannot_be_promoted(workspace: Workspace) -> None:
    workspace.make(1, decision="refuse")
    assert workspace.register() == 1
    with pytest.raises(NotPromoted, match=r"version 1 was refused by the gate: accuracy 0\.41 is below 0\.50\. airline jetblue") as raised:
        promotion.promote(root=workspace.root, task=TASK, version=1)
    assert raised.value.exit_code == 3
    assert champion(workspace) is None
    assert events(workspace) == []


def test_what_the_gate_left_to_a_person_is_not_promoted_by_itself(workspace: Workspace) -> None:
    workspace.make(1, decision="ask")
    assert workspace.register() == 1
    with pytest.raises(NotPromoted, match=r"version 1 waits for a person: the gate could not decide: accuracy 0\.41") as raised:
        promotion.promote(root=workspace.root, task=TASK, version=1)
    assert raised.value.exit_code == 3
    assert champion(workspace) is None


def test_a_rollback_verifies_its_target(workspace: Workspace) -> None:
    register(workspace, 2)
    promote(workspace, 1)
    promote(workspace, 2)
    damage(workspace.stored_bundle(1), "one bit flipped")
    with pytest.raises(BundleError, match=r"adapter_model\.safetensors"):
        promotion.rollback(root=workspace.root, task=TASK)
    assert champion(workspace) == 2


def test_rollbacks_walk_back_through_the_champions_and_stop_at_the_first(workspace: Workspace) -> None:
    register(workspace, 4)
    for version in (1, 3, 2):
        promote(workspace, version)
    assert rollback(workspace) == 3
    promote(workspace, 4)
    assert [rollback(workspace), rollback(workspace)] == [3, 1]
    with pytest.raises(RegistryError, match="no champion before version 1"):
        promotion.rollback(root=workspace.root, task=TASK)
    assert rollback(workspace, to=2) == 2
    assert promotion.rollback(root=workspace.root, task=TASK, to=2)["already_champion"]


def test_without_a_journal_the_versions_tags_tell_the_order(workspace: Workspace) -> None:
    register(workspace, 3)
    for version in (3, 1, 2):
        promote(workspace, version)
    (workspace.root / ".promptmill" / journal.JOURNAL_FILE).unlink()
    assert [rollback(workspace), rollback(workspace)] == [1, 3]
    with pytest.raises(RegistryError, match="no champion before version 3"):
        promotion.rollback(root=workspace.root, task=TASK)


def test_a_rollback_is_no_way_round_the_gate(workspace: Workspace) -> None:
    register(workspace, 1)
    workspace.make(2, decision="refuse")
    workspace.register()
    with pytest.raises(RegistryError, match="has no champion"):
        promotion.rollback(root=workspace.root, task=TASK)
    promote(workspace, 1)
    with pytest.raises(RegistryError, match="version 2 never was champion"):
        promotion.rollback(root=workspace.root, task=TASK, to=2)
    assert champion(workspace) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from pipeline.registry import promotion
setting = MlflowClient.set_registered_model_alias
def die(*args):
    if sys.argv[3] == "after":
        setting(*args)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.set_registered_model_alias = die
promotion.promote(root=Path(sys.argv[1]), task=sys.argv[2], version=2)
"""


@pytest.mark.parametrize(("moment", "event", "now"), [("before", "aborted", 1), ("after", "done", 2)])
def test_a_promotion_killed_around_the_commit_point_is_settled_by_what_the_alias_says(
    workspace: Workspace, moment: str, event: str, now: int
) -> None:
    register(workspace, 2)
    promote(workspace, 1)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(workspace.root), TASK, moment], cwd=ROOT, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    assert events(workspace)[-1] == ("intent", "promote", 2)
    assert champion(workspace) == now
    assert promote(workspace, now) == (now, True)
    assert events(workspace)[-1] == (event, "promote", 2)
    assert (registry.show(root=workspace.root, task=TASK, selector=2)["promoted_at"] is not None) == (now == 2)
    if now == 2:
        assert rollback(workspace) == 1


PAUSED = """
import sys, time
from pathlib import Path
from pipeline.registry import journal, promotion
announcing = journal.announce
def pause(*args):
    Path(sys.argv[3]).touch()
    while Path(sys.argv[3]).exists():
        time.sleep(0.05)
    announcing(*args)
journal.announce = pause
promotion.promote(root=Path(sys.argv[1]), task=sys.argv[2], version=2)
"""


def test_an_intent_of_another_machine_in_the_same_folder_is_not_taken_for_a_dead_one(workspace: Workspace, tmp_path: Path) -> None:
    """Two containers on one volume: one journal, but each has locks of its own."""
    register(workspace, 2)
    promote(workspace, 1)
    marker, locks = tmp_path / "marker", tmp_path / "other machine"
    locks.mkdir()
    command = [sys.executable, "-c", PAUSED, str(workspace.root), TASK, str(marker)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(locks)}) as other:
        while not marker.exists():
            assert other.poll() is None
            time.sleep(0.05)
        findings = doctor.examine(root=workspace.root, task=TASK)
        marker.unlink()
    assert other.returncode == 0
    assert {finding.state for finding in findings} == {"fine"}
    assert any("another machine's" in finding.text for finding in findings)
    assert champion(workspace) == 2
    assert events(workspace)[2:] == [("intent", "promote", 2), ("done", "promote", 2)]
    assert {finding.state for finding in doctor.examine(root=workspace.root, task=TASK)} == {"fine"}


def test_a_promotion_that_was_taken_for_dead_and_took_effect_after_all_is_done(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(workspace, 2)
    promote(workspace, 1)
    setting = MlflowClient.set_registered_model_alias

    def late(*args: object) -> None:
        (intent,) = journal.unfinished(journal.read_journal(root=workspace.root, task=TASK))
        journal.append(workspace.root, "aborted", intent)
        setting(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", late)
    assert promote(workspace, 2) == (1, False)
    assert events(workspace)[2:] == [("intent", "promote", 2), ("aborted", "promote", 2), ("done", "promote", 2)]
    assert {finding.state for finding in doctor.examine(root=workspace.root, task=TASK)} == {"fine"}


def test_a_torn_last_line_of_the_journal_is_dropped_and_a_broken_one_named(workspace: Workspace) -> None:
    register(workspace, 2)
    promote(workspace, 1)
    file = workspace.root / ".promptmill" / journal.JOURNAL_FILE
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + '{"event": "inte', encoding="utf-8")
    promote(workspace, 2)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["intent", "done", "intent", "done"]
    file.write_text("nonsense\n" + whole, encoding="utf-8")
    with pytest.raises(RegistryError, match=r"promotions\.jsonl, line 1 is not JSON"):
        promotion.rollback(root=workspace.root, task=TASK)


def test_promotions_at_the_same_time_leave_one_champion_and_a_whole_journal(workspace: Workspace) -> None:
    register(workspace, 2)
    program = "import sys; from pathlib import Path; from pipeline.registry import promotion; promotion.promote(root=Path(sys.argv[1]), task=sys.argv[2], version=int(sys.argv[3]))"
    running = [subprocess.Popen([sys.executable, "-c", program, str(workspace.root), TASK, str(version)], cwd=ROOT) for version in (1, 2)]
    # Each is compared with the champion it found when it began; one that finds another by the time it commits is to be compared again.
    codes = [process.wait() for process in running]
    assert sorted(codes) in ([0, 0], [0, 1])
    entries = journal.read_journal(root=workspace.root, task=TASK)
    assert [entry["event"] for entry in entries] == ["intent", "done"] * codes.count(0)
    previous = None
    for entry in entries[::2]:
        assert entry["previous_champion"] == previous
        previous = entry["version"]
    assert champion(workspace) == previous
