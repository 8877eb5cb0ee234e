"""Altered data in the checkout, DVC's cache and a DVC remote, under real DVC: it is refused, and what the message says repairs it."""

import hashlib
import io
import shutil
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from flows.data_versions import repair
from flows.stage_process import StageRun, run_stage
from pipeline.errors import StageFailed
from pipeline.layout import Layout
from pipeline.records import checksum_file
from tests.flows.data_workspace import TASK, alter, make_data_checkout, raw_object, remove_raw, stages_find_their_code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which both stages have run once."""
    with pytest.MonkeyPatch.context() as patch:
        stages_find_their_code(patch)
        root = make_data_checkout(tmp_path_factory.mktemp("made") / "checkout")
        patch.chdir(root)
        dvc("reproduce")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test then works."""
    stages_find_their_code(monkeypatch)
    root = tmp_path / "checkout"
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    return root


def dvc(command: str, *arguments: Any, **options: Any) -> None:
    """Let DVC do what its command of that name does, in this process; raises DVC's error where the command would have an exit code."""
    from dvc.repo import Repo

    with warnings.catch_warnings(), Repo() as repo:
        warnings.filterwarnings("ignore", message="_NoneStep.value")  # a library of DVC's about DVC
        getattr(repo, command)(*arguments, **options)


def read_raw(root: Path) -> StageRun:
    """Run the stage that reads the raw table, although DVC sees no change."""
    return run_stage(root=root, task=TASK, stage="validate", screen=io.BytesIO(), force=True)


def refusal(root: Path) -> str:
    with pytest.raises(StageFailed) as caught:
        read_raw(root)
    return str(caught.value)


def test_an_altered_cache_object_is_handed_out_by_dvc_refused_here_and_repaired(root: Path, capsys: pytest.CaptureFixture[str]):
    raw = Layout(root, TASK).path("raw")
    written = hashlib.sha256(raw.read_bytes()).hexdigest()
    alter(raw_object(root))
    remove_raw(root)
    dvc("checkout")
    found = hashlib.sha256(raw.read_bytes()).hexdigest()
    assert found != written
    message = refusal(root)
    assert f"{raw.relative_to(root)} was altered: its sha256 is {found}, written was {written}." in message
    assert "promptmill data repair TASK" in message
    dvc("reproduce", f"ingest@{TASK}", force=True, single_item=True)
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == found, "even a forced run is given the altered object: repairing takes more"
    assert repair(Namespace(task=TASK)) == 0
    printed = capsys.readouterr().out
    assert "Removed 2 altered files" in printed
    assert str(raw_object(root)) in printed
    assert not raw.exists()
    assert run_stage(root=root, task=TASK, stage="ingest", screen=io.BytesIO()).outcome == "run"
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == written
    assert read_raw(root).outcome == "run"
    assert repair(Namespace(task=TASK)) == 0
    assert "Nothing to repair: 4 cached files" in capsys.readouterr().out


def test_a_table_altered_in_the_checkout_alone_comes_back_from_the_cache(root: Path):
    raw = Layout(root, TASK).path("raw")
    alter(raw)
    assert "was altered" in refusal(root)
    assert repair(Namespace(task=TASK)) == 0
    assert not raw.exists()
    assert not checksum_file(raw).exists()
    assert run_stage(root=root, task=TASK, stage="ingest", screen=io.BytesIO()).outcome == "restored"
    assert read_raw(root).outcome == "run"


def test_a_remote_with_altered_data_is_refused_and_repaired_as_the_docs_say(root: Path):
    from dvc.exceptions import CheckoutError

    (root / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {root / 'store'}\n")
    dvc("push")
    stored = raw_object(root, "store")
    alter(stored, "cut")
    raw_object(root).unlink()
    remove_raw(root)
    dvc("pull")
    assert "was altered" in refusal(root)
    with (root / ".dvc" / "config").open("a") as config:
        config.write("    verify = true\n")
    repair(Namespace(task=TASK))
    with pytest.raises(CheckoutError):  # with `verify` DVC notices
        dvc("pull")
    assert not Layout(root, TASK).path("raw").exists()
    dvc("reproduce")
    dvc("push")
    assert stored.read_bytes() != raw_object(root).read_bytes(), "push leaves what is there"
    stored.unlink()
    dvc("push")
    raw_object(root).unlink()
    remove_raw(root)
    dvc("pull")
    assert read_raw(root).outcome == "run"
