"""A checkout whose DVC was killed while it wrote its own files; with the real DVC, which shows first that it cannot go on."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc_state import mend
from flows.stage_process import run_stage
from flows.workspace import changed_stages
from pipeline.errors import WorkspaceError
from tests.flows.flow_workspace import make_trivial, writes

STAGES = ["one", "two"]


def dvc(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=False)


def bring_up(root: Path, *stages: str) -> list[str]:
    return [run_stage(root=root, task="demo", stage=stage, screen=io.BytesIO()).outcome for stage in stages or STAGES]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = make_trivial(tmp_path / "w", {"one": writes("one"), "two": writes("two")}, {"one": ["in.txt"], "two": ["one.txt"]})
    (root / "in.txt").write_text("1")
    return root


@pytest.mark.parametrize("content", ["", '{"read": {'])
def test_a_cut_rwlock_is_removed_before_the_next_command(checkout: Path, content: str) -> None:
    bring_up(checkout)
    rwlock = checkout / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(content)
    assert "JSON structure is corrupted" in dvc(checkout, "status", "--json").stderr, "this DVC mends it by itself: remove our own mending"
    assert changed_stages(checkout, "demo", STAGES) == []
    rwlock.write_text(content)
    assert bring_up(checkout) == ["unchanged", "unchanged"]
    rwlock.write_text(content)
    assert mend(checkout) == [f"Removed {rwlock}, which a killed DVC had not written to its end."]
    assert mend(checkout) == []


def test_a_killed_dvc_whose_number_is_somebody_else_s_is_waited_for_no_longer(checkout: Path) -> None:
    bring_up(checkout)
    rwlock = checkout / ".dvc" / "tmp" / "rwlock"
    (checkout / "in.txt").write_text("2")
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger:
        entry = {"pid": stranger.pid, "cmd": "dvc/__main__.py repro --single-item one@demo"}
        dead = {"pid": 2**22 - 1, "cmd": "gone"}
        rwlock.write_text(json.dumps({"read": {str(checkout / "in.txt"): [entry, dead]}, "write": {str(checkout / "one.txt"): entry}}))
        assert "is busy" in dvc(checkout, "repro", "--single-item", "one@demo").stderr, "this DVC sees it by itself: remove our own mending"
        assert mend(checkout) == [f"Removed a killed DVC from {rwlock}: its process number is somebody else's by now."]
        assert json.loads(rwlock.read_text()) == {"read": {str(checkout / "in.txt"): [dead]}, "write": {}}
        assert bring_up(checkout, "one") == ["run"]
        stranger.communicate()


def test_a_living_dvc_is_left_in_the_rwlock(checkout: Path) -> None:
    bring_up(checkout)
    rwlock = checkout / ".dvc" / "tmp" / "rwlock"
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "-m", "dvc", "repro", "one@demo"], stdin=subprocess.PIPE
    ) as living:
        whole = {"read": {}, "write": {str(checkout / "one.txt"): {"pid": living.pid, "cmd": "/somewhere/dvc/__main__.py repro one@demo"}}}
        rwlock.write_text(json.dumps(whole))
        assert mend(checkout) == []
        assert json.loads(rwlock.read_text()) == whole
        living.communicate()


def test_a_whole_rwlock_stays(checkout: Path) -> None:
    bring_up(checkout)
    rwlock = checkout / ".dvc" / "tmp" / "rwlock"
    before = rwlock.read_text()
    assert mend(checkout) == []
    assert rwlock.read_text() == before


def test_a_cut_lock_file_is_restored_and_what_was_finished_is_not_run_again(checkout: Path) -> None:
    bring_up(checkout)
    lock = checkout / "dvc.lock"
    whole = lock.read_text()
    (checkout / "in.txt").write_text("2")
    assert bring_up(checkout, "one") == ["run"]
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        lock.write_text(whole[:cut])
        # The one before the stage that was killed; DVC's cache has what that stage had finished.
        assert bring_up(checkout, "one") == ["restored"]
        assert lock.read_text().startswith("schema: '2.0'\n")
    assert bring_up(checkout) == ["unchanged", "unchanged"]
    assert changed_stages(checkout, "demo", STAGES) == []


def test_without_an_earlier_one_a_cut_lock_file_is_an_error_that_says_what_to_do(checkout: Path) -> None:
    bring_up(checkout)
    lock = checkout / "dvc.lock"
    lock.write_text(lock.read_text()[:40])
    (checkout / ".dvc" / "tmp" / "dvc.lock.kept").unlink()
    with pytest.raises(WorkspaceError, match=r"ends in the middle of a line.*git checkout -- dvc\.lock"):
        changed_stages(checkout, "demo", STAGES)
    lock.unlink()
    assert bring_up(checkout) == ["restored", "restored"]


def test_nothing_is_touched_while_a_dvc_is_at_work(checkout: Path) -> None:
    bring_up(checkout)
    rwlock = checkout / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text("")
    holder = "import sys, zc.lockfile; held = zc.lockfile.LockFile(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(checkout / ".dvc" / "tmp" / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert mend(checkout) == []
        assert rwlock.read_text() == ""
        other.communicate()
    assert len(mend(checkout)) == 1


def test_checkouts_that_share_a_state_folder_keep_a_lock_file_each(checkout: Path) -> None:
    fleet = make_trivial(checkout.parent / "fleet", {"one": writes("one"), "two": writes("two")}, {"one": ["in.txt"], "two": ["one.txt"]})
    (fleet / "in.txt").write_text("2")
    (fleet / ".promptmill").symlink_to(checkout / ".promptmill")
    bring_up(checkout)
    bring_up(fleet)
    bring_up(checkout)
    lock = fleet / "dvc.lock"
    whole = lock.read_text()
    mend(fleet)
    mend(checkout)
    lock.write_text(whole[:40])
    assert mend(fleet) == [f"Restored {lock} as it was before the stage during which DVC was killed."]
    assert lock.read_text() == whole
