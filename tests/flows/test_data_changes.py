"""`promptmill data add` and `refresh` on a checkout with the real ingest stage under real DVC and git."""

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import cli
from flows.retrain import stale_stages
from flows.source_file import source_changed
from flows.stage_process import run_stage
from pipeline.errors import StageFailed
from pipeline.layout import FILES, Layout
from pipeline.params import load_task
from pipeline.records import read_json, read_parquet, sha256_file
from tests.flows.data_workspace import ROWS, TASK, commit, raw_object, write_rows

CHANGED = [("Flight 0 was fine", "negative"), *ROWS[1:50], ("A new one", "neutral")]


def promptmill(*arguments: str) -> int:
    return cli.main(["data", *arguments])


def changes_in_git(root: Path) -> list[str]:
    done = subprocess.run(["git", "status", "--short", "--untracked-files=all"], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def source(root: Path) -> Any:
    return YAML(typ="safe").load(root / "params.yaml")["tasks"][TASK]["ingest"]["source"]


def test_a_file_becomes_the_source_and_both_are_versioned(data_checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = (data_checkout / "params.yaml").read_text(encoding="utf-8").splitlines()
    write_rows(tmp_path / "new.csv", CHANGED)
    assert promptmill("add", TASK, str(tmp_path / "new.csv")) == 0
    printed = capsys.readouterr().out
    assert "rows 60 -> 51: 1 added, 10 removed, 1 relabelled" in printed
    assert "label shift" in printed
    path = f"data/sources/{TASK}/new.csv"
    assert source(data_checkout) == {"kind": "file", "path": path}
    after = (data_checkout / "params.yaml").read_text(encoding="utf-8").splitlines()
    assert [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]] == [("        path: rows.csv", f"        path: {path}")]
    raw = read_parquet(Layout(data_checkout, TASK).path("raw"))
    assert list(zip(raw["text"], raw["label"], strict=True)) == CHANGED
    md5 = YAML(typ="safe").load(data_checkout / f"{path}.dvc")["outs"][0]["md5"]
    assert (data_checkout / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).read_bytes() == (tmp_path / "new.csv").read_bytes()
    assert sorted(changes_in_git(data_checkout)) == [
        " M dvc.lock", " M params.yaml", f"?? data/sources/{TASK}/.gitignore", f"?? {path}.dvc", f"?? {path}.sha256",
    ]  # fmt: skip
    assert subprocess.run(["sha256sum", "--check", "new.csv.sha256"], cwd=(data_checkout / path).parent, check=False).returncode == 0
    assert raw_object(data_checkout).is_file()
    assert not source_changed(data_checkout, TASK, load_task(data_checkout / "params.yaml", TASK))
    assert list((data_checkout / ".promptmill").glob("data-*")) == []


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"text,label\na,b\n", 1, "has no column 'sentiment'"),
        (b"PK\x03\x04 zip", 1, "new.csv"),
        (b'text,sentiment\n"open', 1, "line 2"),
    ],
)
def test_a_file_that_cannot_be_read_changes_nothing(
    data_checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, code: int, words: str
):
    (tmp_path / "new.csv").write_bytes(content)
    before = sha256_file(Layout(data_checkout, TASK).path("raw"))
    assert promptmill("add", TASK, str(tmp_path / "new.csv")) == code
    assert words in capsys.readouterr().err
    assert changes_in_git(data_checkout) == []
    assert sha256_file(Layout(data_checkout, TASK).path("raw")) == before


def test_a_file_of_an_unknown_kind_and_a_missing_one_are_named(data_checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rows.xlsx").write_bytes(b"x")
    assert promptmill("add", TASK, str(tmp_path / "rows.xlsx")) == 2
    assert "rows.xlsx" in capsys.readouterr().err
    assert promptmill("add", TASK, str(tmp_path / "none.csv")) == 1
    assert "none.csv is no file" in capsys.readouterr().err
    assert changes_in_git(data_checkout) == []


def test_refresh_says_what_changed_or_that_nothing_did(data_checkout: Path, capsys: pytest.CaptureFixture[str]):
    params = load_task(data_checkout / "params.yaml", TASK)
    raw = Layout(data_checkout, TASK).path("raw")
    before = sha256_file(raw)
    assert promptmill("refresh", TASK) == 0
    assert f"nothing changed, the data version is still {before[:8]}" in capsys.readouterr().out
    assert changes_in_git(data_checkout) == []
    write_rows(data_checkout / "rows.csv", CHANGED)
    assert source_changed(data_checkout, TASK, params)
    assert stale_stages(data_checkout, TASK) == ["ingest"], "what promptmill run runs although DVC sees no change"
    assert run_stage(root=data_checkout, task=TASK, stage="ingest", screen=io.BytesIO()).outcome == "unchanged", "DVC does not see it"
    assert promptmill("refresh", TASK) == 0
    printed = capsys.readouterr().out
    assert f"data version {sha256_file(raw)[:8]} (before: {before[:8]})" in printed
    assert "rows 60 -> 51: 1 added, 10 removed, 1 relabelled" in printed
    assert not source_changed(data_checkout, TASK, params)
    assert stale_stages(data_checkout, TASK) == []
    assert read_json(data_checkout / FILES["ingest_report"].format(task=TASK))["rows"] == 51
    (data_checkout / "rows.csv").unlink()
    assert not source_changed(data_checkout, TASK, params), "a file that is gone changes no rows"


def test_a_refresh_that_fails_leaves_the_former_data_to_be_restored(data_checkout: Path, capsys: pytest.CaptureFixture[str]):
    raw = Layout(data_checkout, TASK).path("raw")
    before = sha256_file(raw)
    (data_checkout / "rows.csv").write_text("text,sentiment\n", encoding="utf-8")
    assert promptmill("refresh", TASK) == 1
    assert "no data row" in capsys.readouterr().err
    assert changes_in_git(data_checkout) == [" M rows.csv"]
    assert run_stage(root=data_checkout, task=TASK, stage="ingest", screen=io.BytesIO()).outcome == "restored"
    assert sha256_file(raw) == before


def test_a_changed_source_file_is_read_only_when_that_is_said(data_checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_rows(tmp_path / "new.csv", ROWS)
    assert promptmill("add", TASK, str(tmp_path / "new.csv")) == 0
    added = data_checkout / "data/sources" / TASK / "new.csv"
    write_rows(added, CHANGED)
    assert stale_stages(data_checkout, TASK) == ["ingest"]
    with pytest.raises(StageFailed, match=r"new\.csv was altered: its sha256 is .*`promptmill data refresh TASK` accepts it"):
        run_stage(root=data_checkout, task=TASK, stage="ingest", screen=io.BytesIO(), force=True)
    capsys.readouterr()
    assert promptmill("refresh", TASK) == 0
    assert "1 added, 10 removed, 1 relabelled" in capsys.readouterr().out
    assert promptmill("refresh", TASK) == 0
    assert "nothing changed" in capsys.readouterr().out
    added.write_bytes(b"text,sentiment\n")
    recorded = added.with_name("new.csv.sha256").read_text()
    assert promptmill("refresh", TASK) == 1
    assert added.with_name("new.csv.sha256").read_text() == recorded, "what cannot be read is not accepted"


def test_two_versions_are_told_apart_through_the_cache(data_checkout: Path, capsys: pytest.CaptureFixture[str]):
    first, former = sha256_file(Layout(data_checkout, TASK).path("raw")), raw_object(data_checkout)
    write_rows(data_checkout / "rows.csv", CHANGED)
    assert promptmill("refresh", TASK) == 0
    commit(data_checkout, "second")
    capsys.readouterr()
    assert promptmill("log", TASK) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [first[:8], sha256_file(Layout(data_checkout, TASK).path("raw"))[:8]]
    assert lines[2].endswith("here")
    assert promptmill("log", TASK, "--diff", first[:6], "here") == 0
    assert "rows 60 -> 51: 1 added, 10 removed, 1 relabelled" in capsys.readouterr().out
    content = former.read_bytes()
    former.chmod(0o644)
    former.write_bytes(content[:-1] + b"?")
    assert promptmill("log", TASK, "--diff", first[:6], "here") == 1
    assert f"recorded was {first}: it was altered" in capsys.readouterr().err
    former.unlink()
    assert promptmill("log", TASK, "--diff", first[:6], "here") == 1
    assert "is not in the cache any more" in capsys.readouterr().err
    assert promptmill("log", TASK, "--diff", "ffff", "here") == 1
    assert f"no data version 'ffff'; it has: {', '.join(sorted([first[:8], lines[2].split()[0]]))}" in capsys.readouterr().err
