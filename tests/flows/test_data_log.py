"""`promptmill data log` on real MLflow runs and versions, and on the dvc.lock files of a git history."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from flows import cli
from pipeline.records import sha256_file
from pipeline.registry import promotion
from pipeline.registry.connection import connect
from tests.flows.data_workspace import commit
from tests.flows.flow_workspace import call
from tests.registry.registry_workspace import TASK, Workspace, write_outputs


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A git checkout with DVC and the outputs of one pass through the stages."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "checkout"
    root.mkdir()
    call("git", "init", "--quiet", folder=root)
    call(sys.executable, "-m", "dvc", "init", "--quiet", folder=root)
    (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    (root / ".gitignore").write_text("/data/\n/reports/\n/prompts/\n/.promptmill/\n", encoding="utf-8")
    write_outputs(root, 1)
    monkeypatch.chdir(root)
    return Workspace(root)


def keep_in_cache(workspace: Workspace) -> str:
    """Put the raw table where DVC would keep it; returns its sha256."""
    import hashlib

    raw = workspace.layout.path("raw")
    md5 = hashlib.md5(raw.read_bytes()).hexdigest()
    target = workspace.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(raw, target)
    return sha256_file(raw)


def log(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["data", "log", TASK, *arguments]) == 0
    return capsys.readouterr().out


def test_each_data_version_has_its_runs_prompts_and_commit(workspace: Workspace, capsys: pytest.CaptureFixture[str]):
    first = keep_in_cache(workspace)
    assert workspace.register() == 1
    commit(workspace.root, "one")
    workspace.make(1, steps=4)  # another pass over the same data
    shown = [workspace.lock.read_text(encoding="utf-8")]
    workspace.lock.write_text(shown[0].replace("python -m pipeline tune 1", "python -m pipeline tune again"), encoding="utf-8")
    assert workspace.register() == 2
    newest = commit(workspace.root, "two")
    workspace.make(2)
    second = keep_in_cache(workspace)
    assert workspace.register() == 3
    promotion.promote(root=workspace.root, task=TASK, version=3)

    one, two = json.loads(log(capsys, "--json"))
    assert (one["raw_sha256"], two["raw_sha256"]) == (first, second)
    assert one["split_ids_sha256"] != two["split_ids_sha256"]
    assert (one["raw_rows"], one["accepted_rows"], one["train_rows"], one["test_rows"]) == ("120", "100", "80", "10")
    assert one["contract"] == "passed (2 of 3; not met: 1 warning)"
    assert len(one["runs"]) == 2
    assert [made["version"] for made in one["prompt_versions"]] == [1, 2]
    assert two["prompt_versions"] == [{"version": 3, "aliases": ["challenger", "champion"]}]
    assert (one["git_commit"], two["git_commit"]) == (newest, None)
    assert (one["here"], two["here"]) == (False, True)
    lines = log(capsys).splitlines()
    assert lines[1].startswith(first[:8])
    assert "80/10/10" in lines[1]
    assert "3, challenger, champion" in lines[2]
    difference = json.loads(log(capsys, "--diff", "@1", "@champion", "--json"))
    assert (difference["added"], difference["removed"], difference["relabelled"]) == (120, 120, 0)
    assert json.loads(log(capsys, "--diff", first[:8], "@2", "--json"))["added"] == 0


def test_every_version_carries_the_data_tags_of_its_run(workspace: Workspace):
    import hashlib

    version = workspace.register()
    client = connect(root=workspace.root).client
    made = client.get_model_version(TASK, str(version))
    run = client.get_run(str(made.run_id))
    tags = {name: value for name, value in made.tags.items() if name.startswith("promptmill.data.")}
    assert tags == {name: value for name, value in run.data.tags.items() if name.startswith("promptmill.data.")}
    for name in ("raw", "accepted", "train", "validation", "test"):
        content = workspace.layout.path(name).read_bytes()
        assert tags[f"promptmill.data.{name}_md5"] == hashlib.md5(content).hexdigest()
        assert tags[f"promptmill.data.{name}_sha256"] == hashlib.sha256(content).hexdigest()
    assert len(tags) == 5 * 3 + 4


def test_a_lock_whose_splits_are_older_than_its_raw_table_is_no_version_of_its_own(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
):
    text = """\
schema: '2.0'
stages:
  ingest@{task}: {{outs: [{{path: data/raw/{task}.parquet, md5: {raw}}}]}}
  validate@{task}:
    deps: [{{path: data/raw/{task}.parquet, md5: {read}}}]
    outs: [{{path: data/validated/{task}/accepted.parquet, md5: aa}}]
  split@{task}:
    deps: [{{path: data/validated/{task}/accepted.parquet, md5: aa}}]
    outs: [{{path: data/splits/{task}/train.parquet, md5: bb}}]
"""
    for message, raw, read in (("one", "11", "11"), ("refreshed", "22", "11"), ("two", "22", "22"), ("refreshed again", "33", "22")):
        workspace.lock.write_text(text.format(task=TASK, raw=raw, read=read), encoding="utf-8")
        commit(workspace.root, message)
    found = [(version["raw_md5"], version.get("train_md5"), version["here"]) for version in json.loads(log(capsys, "--json"))]
    assert sorted(found) == [("11", "bb", False), ("22", "bb", False), ("33", None, True)]


def test_a_task_without_data_says_so(workspace: Workspace, capsys: pytest.CaptureFixture[str]):
    workspace.lock.unlink()
    assert log(capsys) == f"{TASK} has no data version yet. `promptmill run {TASK}` makes the first.\n"
    assert log(capsys, "--json") == "[]\n"
