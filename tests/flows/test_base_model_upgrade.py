"""`promptmill base-model upgrade` on two real tasks with tiny base models: every stage runs, each task against its own champion."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.clones import clone_folder
from pipeline.layout import Layout
from pipeline.records import read_json, read_parquet
from pipeline.registry.registry import list_versions
from pipeline.registry.tracking import read_lock
from tests.engine.tiny_models import save_model
from tests.faults.tiny_checkout import MODEL, commit, environment, git, make_checkout
from tests.stages.conftest import TASK

OTHER = "blame"
NEW = "models/other"
SOURCE = {"kind": "directory", "id": "other", "path": NEW}


def edit(root: Path, change: Any) -> None:
    document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    change(document)
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def two_tasks(document: dict[str, Any]) -> None:
    """A second task like the first, with another seed; both may be promoted with uncommitted changes, and almost anything passes.

    They are tuned with LoRA: on base models of random weights a soft prompt alone learns nothing in a few steps, and whoever says one thing only is not promoted.
    """
    praise = document["tasks"][TASK]
    praise["tune"] |= {"method": {"kind": "lora"}, "learning_rate": 0.01, "maximum_steps": 40, "evaluate_every": 40}
    praise["promotion"] = {"allow_uncommitted": True}
    praise["gate"]["degeneracy"] = {"maximum_prediction_share": 0.999}
    praise["compare"] = {"mode": "non_inferior", "margin": 1.0}
    document["tasks"][OTHER] = copy.deepcopy(praise)
    document["tasks"][OTHER]["split"]["seed"] = 7


def ask_more_than_can_be_of_the_other(document: dict[str, Any]) -> None:
    """One of two labels is always said at least half of the time."""
    document["tasks"][OTHER]["gate"]["degeneracy"] = {"maximum_prediction_share": 0.3}


def fleet(root: Path, *arguments: str) -> tuple[dict[str, dict[str, Any]], str]:
    """The rows that a command of the fleet prints, by task, and what it said."""
    command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    return {row["task"]: row for row in json.loads(done.stdout)}, done.stderr


def champions(root: Path) -> dict[str, list[int]]:
    return {
        task: [version["version"] for version in list_versions(root=root, task=task) if "champion" in version["aliases"]]
        for task in (TASK, OTHER)
    }


def content(root: Path) -> dict[str, bytes]:
    """What a trial must leave as it is."""
    paths = [root / name for name in ("params.yaml", "dvc.lock")]
    for task in (TASK, OTHER):
        layout = Layout(root, task)
        paths += [layout.path("gate"), layout.path("comparison"), *sorted(layout.path("bundle").iterdir())]
    return {str(path): path.read_bytes() for path in paths}


def accuracies(layout: Layout) -> tuple[float, float]:
    """Of the candidate and of the champion, counted anew from what both answered to the test rows."""
    tuned = read_parquet(layout.path("predictions"))
    tuned = tuned[tuned["variant"] == "tuned"]
    champion = read_parquet(layout.path("champion_predictions"))
    assert sorted(tuned["row_id"]) == sorted(champion["row_id"])
    return tuple(float(np.mean(frame["prediction"] == frame["label"])) for frame in (tuned, champion))  # type: ignore[return-value]


@pytest.mark.slow
def test_a_new_base_model_is_tried_against_every_champion(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_checkout(repo_root, tmp_path / "checkout")
    save_model("qwen2", root / NEW)
    edit(root, two_tasks)
    commit(root, "two tasks")
    rows, said = fleet(root, "retrain-all", "--at-once", "2")
    assert {task: row["outcome"] for task, row in rows.items()} == {TASK: "Promoted", OTHER: "Promoted"}, said
    assert champions(root) == {TASK: [1], OTHER: [1]}

    edit(root, ask_more_than_can_be_of_the_other)
    commit(root, "ask more")
    before, status = content(root), git(root, "status", "--porcelain")
    rows, said = fleet(root, "base-model", "upgrade", "--to", f"directory:{NEW}", "--at-once", "2")
    assert {task: (row["outcome"], row["verdict"]) for task, row in rows.items()} == {
        TASK: ("Tried", "promote"),
        OTHER: ("Tried", "refuse"),
    }
    assert "degeneracy" in rows[OTHER]["message"]
    assert champions(root) == {TASK: [1], OTHER: [1]}
    assert content(root) == before
    assert git(root, "status", "--porcelain") == status
    for task, row in rows.items():
        workspace = Layout(clone_folder(root / ".promptmill" / "fleet" / task, [NEW]), task)
        assert read_json(workspace.path("bundle") / "manifest.json")["base_model"]["source"] == SOURCE
        found = row["comparison"]
        assert (found["champion"]["version"], found["champion"]["base_model_id"], found["comparable"]) == (1, "tiny/llama", True)
        candidate, champion = accuracies(workspace)
        assert (found["metrics"]["candidate"]["value"], found["metrics"]["champion"]["value"]) == pytest.approx((candidate, champion))
        assert found["difference"]["value"] == pytest.approx(candidate - champion)
        assert found["difference"]["low"] <= candidate - champion <= found["difference"]["high"]
        assert [version["version"] for version in list_versions(root=root, task=task) if "challenger" in version["aliases"]] == [2]

    rows, said = fleet(root, "base-model", "upgrade", TASK, "--to", f"directory:{NEW}", "--write")
    assert {task: row["outcome"] for task, row in rows.items()} == {TASK: "Promoted"}, said
    assert f"{TASK}: [7/17] tune" in said
    assert f"{TASK}: taken from DVC's cache" in said
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["tasks"]
    assert (params[TASK]["base_model"]["source"], params[OTHER]["base_model"]["source"]["path"]) == (SOURCE, MODEL)
    assert champions(root)[OTHER] == [1]
    assert champions(root)[TASK] != [1]
    assert read_json(Layout(root, TASK).path("bundle") / "manifest.json")["base_model"]["id"] == "other"
    assert f"tune@{TASK}" in read_lock(root / "dvc.lock")
