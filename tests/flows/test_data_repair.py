"""Altered data in the checkout, DVC's cache and a DVC remote, under real DVC: it is refused, and what the message says repairs it."""

import hashlib
import io
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from flows import cli
from flows.data_versions import repair
from flows.dvc_cache import cached_object, pointed_md5
from flows.stage_process import StageRun, run_stage
from pipeline.data.sources import read_source
from pipeline.errors import SourceError, StageFailed
from pipeline.layout import Layout
from pipeline.params import load_task
from pipeline.records import checksum_file
from tests.flows.data_workspace import ROWS, TASK, alter, raw_object, remove_raw, write_rows


def dvc(*arguments: str) -> int:
    """The exit code of a dvc command in the current folder."""
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, check=False).returncode


def read_raw(root: Path) -> StageRun:
    """Run the stage that reads the raw table, although DVC sees no change."""
    return run_stage(root=root, task=TASK, stage="validate", screen=io.BytesIO(), force=True)


def refusal(root: Path) -> str:
    with pytest.raises(StageFailed) as caught:
        read_raw(root)
    return str(caught.value)


def source_rows(root: Path) -> int:
    """How many rows the task's source holds, as ingest reads it."""
    ingest = load_task(root / "params.yaml", TASK).ingest
    return len(read_source(ingest.source, ingest.columns, root=root).rows)


def test_an_altered_cache_object_is_handed_out_by_dvc_refused_here_and_repaired(data_checkout: Path, capsys: pytest.CaptureFixture[str]):
    root = data_checkout
    raw = Layout(root, TASK).path("raw")
    written = hashlib.sha256(raw.read_bytes()).hexdigest()
    alter(raw_object(root))
    remove_raw(root)
    assert dvc("checkout") == 0
    found = hashlib.sha256(raw.read_bytes()).hexdigest()
    assert found != written
    message = refusal(root)
    assert f"{raw.relative_to(root)} was altered: its sha256 is {found}, written was {written}." in message
    assert "promptmill data repair TASK" in message
    assert dvc("repro", "--force", "--single-item", f"ingest@{TASK}") == 0
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


def test_a_table_altered_in_the_checkout_alone_comes_back_from_the_cache(data_checkout: Path):
    root = data_checkout
    raw = Layout(root, TASK).path("raw")
    alter(raw)
    assert "was altered" in refusal(root)
    assert repair(Namespace(task=TASK)) == 0
    assert not raw.exists()
    assert not checksum_file(raw).exists()
    assert run_stage(root=root, task=TASK, stage="ingest", screen=io.BytesIO()).outcome == "restored"
    assert read_raw(root).outcome == "run"


def test_a_truncated_source_file_is_refused_and_comes_back(data_checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = data_checkout
    write_rows(tmp_path / "new.csv", ROWS)
    original = (tmp_path / "new.csv").read_bytes()
    assert cli.main(["data", "add", TASK, str(tmp_path / "new.csv")]) == 0
    path = root / "data/sources" / TASK / "new.csv"
    pointer = f"data/sources/{TASK}/new.csv.dvc"
    cached = cached_object(root / ".dvc/cache/files/md5", pointed_md5(root, pointer.removesuffix(".dvc")))
    alter(cached, "cut")
    path.unlink()
    assert dvc("checkout", pointer) == 0
    assert path.read_bytes() != original
    with pytest.raises(StageFailed, match=r"new\.csv was altered: .*promptmill data repair TASK"):
        run_stage(root=root, task=TASK, stage="ingest", screen=io.BytesIO(), force=True)
    capsys.readouterr()
    assert cli.main(["data", "refresh", TASK]) == 1, "nobody meant this change"
    assert "is a copy of" in capsys.readouterr().err
    assert repair(Namespace(task=TASK)) == 0
    printed = capsys.readouterr().out
    assert f"{cached} (the cached data/sources/{TASK}/new.csv)" in printed
    assert f"`promptmill data add {TASK} FILE` with the original" in printed
    assert cli.main(["data", "add", TASK, str(tmp_path / "new.csv")]) == 0
    capsys.readouterr()
    assert cached.read_bytes() == path.read_bytes() == original
    assert repair(Namespace(task=TASK)) == 0
    assert "is not the file that was added" not in capsys.readouterr().out


def test_a_source_file_altered_in_the_checkout_alone_comes_back_from_the_cache(
    data_checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_rows(tmp_path / "new.csv", ROWS)
    assert cli.main(["data", "add", TASK, str(tmp_path / "new.csv")]) == 0
    path = data_checkout / "data/sources" / TASK / "new.csv"
    alter(path)
    with pytest.raises(SourceError, match=r"new\.csv was altered"):
        source_rows(data_checkout)
    assert repair(Namespace(task=TASK)) == 0
    assert f"delete it and run `dvc checkout data/sources/{TASK}/new.csv.dvc`" in capsys.readouterr().out
    path.unlink()
    assert dvc("checkout", f"data/sources/{TASK}/new.csv.dvc") == 0
    assert path.read_bytes() == (tmp_path / "new.csv").read_bytes()
    assert source_rows(data_checkout) == len(ROWS)


@pytest.mark.slow
def test_a_remote_with_altered_data_is_refused_and_repaired_as_the_docs_say(data_checkout: Path):
    root = data_checkout
    (root / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {root / 'store'}\n")
    assert dvc("push") == 0
    stored = raw_object(root, "store")
    alter(stored, "cut")
    raw_object(root).unlink()
    remove_raw(root)
    assert dvc("pull") == 0
    assert "was altered" in refusal(root)
    with (root / ".dvc" / "config").open("a") as config:
        config.write("    verify = true\n")
    repair(Namespace(task=TASK))
    assert dvc("pull") != 0, "with `verify` DVC notices"
    assert not Layout(root, TASK).path("raw").exists()
    assert dvc("repro") == 0
    assert dvc("push") == 0
    assert stored.read_bytes() != raw_object(root).read_bytes(), "push leaves what is there"
    stored.unlink()
    assert dvc("push") == 0
    raw_object(root).unlink()
    remove_raw(root)
    assert dvc("pull") == 0
    assert read_raw(root).outcome == "run"
