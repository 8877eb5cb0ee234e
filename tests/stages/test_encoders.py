"""An encoder through all stages: a soft prompt and a classification head, compared with the majority class alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.__main__ import main, run_stage
from pipeline.engine.predicting import load_predictor
from pipeline.layout import STAGES, Layout
from pipeline.manifest import verify_bundle
from pipeline.records import read_json, read_parquet
from pipeline.registry.pyfunc import TunedPromptModel
from tests.engine.tiny_models import save_model
from tests.stages.conftest import TASK

THRESHOLDS = [{"metric": "accuracy", "baseline": "majority_class", "minimum_gain": 0.0}]


def change(root: Path, section: str, **values: Any) -> None:
    path = root / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["tasks"][TASK][section].update(values)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


@pytest.fixture
def encoder_workspace(workspace: Path) -> Path:
    """The task on a tiny BERT, with a relative path, whose files hold a head of three labels where the task has two."""
    save_model("bert", workspace / "bert")
    change(workspace, "base_model", source={"kind": "directory", "id": "tiny/bert", "path": "bert"}, dtype="auto")
    change(workspace, "prompt", hard_prompts=[])
    change(workspace, "gate", change_thresholds=THRESHOLDS)
    change(workspace, "tune", learning_rate=0.01, maximum_steps=30, evaluate_every=10)
    return workspace


def pefts_probabilities(root: Path, texts: list[str], bundle: Path | None = None) -> np.ndarray:
    """PEFT's own answers, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(root / "bert", num_labels=2, ignore_mismatched_sizes=True)
    tuned = PeftModel.from_pretrained(model, bundle or Layout(root, TASK).path("bundle")).eval()
    tokenizer = AutoTokenizer.from_pretrained(root / "bert")
    found: list[np.ndarray] = []
    for text in texts:
        ids = tokenizer("Tweet:")["input_ids"] + tokenizer(f" {text}")["input_ids"] + tokenizer("\nSentiment:")["input_ids"]
        with torch.no_grad():
            found.append(tuned(input_ids=torch.tensor([ids])).logits.softmax(-1)[0].numpy())
    return np.array(found)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_an_encoder_goes_through_all_stages_and_peft_gives_the_same_answers(encoder_workspace: Path, method: str):
    root = encoder_workspace
    change(root, "tune", method={"kind": method})
    for stage in STAGES:
        run_stage(root, stage.name, TASK)
    layout = Layout(root, TASK)
    manifest = verify_bundle(layout.path("bundle"))
    assert manifest["soft_prompt"]["through"] == "PEFT"
    assert manifest["base_model"]["dtype"] == "float32"
    saved = load_file(layout.path("bundle") / "adapter_model.safetensors")
    (head,) = (tensor for name, tensor in saved.items() if name.endswith("classifier.bias"))
    assert head.shape == (2,)
    assert head.abs().min() > 0, "a head starts with zeros there, so this one was trained"

    test, predictions = read_parquet(layout.path("test")), read_parquet(layout.path("predictions"))
    assert predictions.groupby("variant")["row_id"].apply(list).to_dict() == {
        variant: test["row_id"].to_list() for variant in ("majority_class", "tuned")
    }
    tuned = predictions[predictions["variant"] == "tuned"]
    texts = tuned["text"].to_list()[:40]
    found = tuned[["p.bad", "p.good"]].to_numpy()[:40]
    np.testing.assert_allclose(found, pefts_probabilities(root, texts), atol=1e-5)
    assert np.ptp(found[:, 0]) > 1e-3, "the text must matter"

    predictor = load_predictor(layout.path("bundle"), device="cpu")
    np.testing.assert_allclose(predictor.predict([{"text": text} for text in texts]), found, atol=1e-5)
    assert TunedPromptModel(predictor).predict([{"text": texts[0]}])["label"].to_list() == tuned["prediction"].to_list()[:1]

    score, metrics, gate = (read_json(layout.path(name)) for name in ("score_report", "metrics", "gate"))
    assert (score["hard_prompt"], score["hard_prompts"], list(score["seconds_per_row"])) == (None, [], ["tuned"])
    assert (list(metrics["variants"]), list(metrics["comparisons"])) == (["tuned", "majority_class"], ["tuned_minus_majority_class"])
    assert [check["verdict"] for check in gate["checks"] if check["name"] == "accuracy minus majority_class"] != ["MISSING"]
    card = layout.path("card").read_text(encoding="utf-8")
    assert "Gain over the majority class" in card
    assert "answers no hard prompt" in card
    assert "Hard prompt" not in card


GATE = f"tasks.{TASK}.gate.change_thresholds.0.baseline"
REFUSED = [
    ("prompt", {"hard_prompts": ["{text} is"]}, f"tasks.{TASK}.prompt.hard_prompts: an encoder cannot answer a hard prompt, found 1"),
    (
        "base_model",
        {"dtype": "bfloat16"},
        f"tasks.{TASK}.base_model.dtype: an encoder's head is trained in the model's own dtype, bfloat16",
    ),
    (
        "gate",
        {"change_thresholds": [{**THRESHOLDS[0], "baseline": "hard_prompt"}]},
        f"{GATE}: prompt.hard_prompts is empty, so there is no hard_prompt; use majority_class",
    ),
    (
        "tune",
        {"method": {"kind": "prefix_tuning"}, "gradient_checkpointing": True},
        f"tasks.{TASK}.tune.gradient_checkpointing: gradient checkpointing is refused for the method prefix_tuning on a base model of the architecture encoder",
    ),
    (
        "tune",
        {"init": {"kind": "tuned_prompt", "path": "prompts/x", "sha256": "0" * 64}},
        f"tasks.{TASK}.tune.init: a tuned prompt as start is refused for the method prompt_tuning on a base model of the architecture encoder",
    ),
]


@pytest.mark.parametrize(("section", "values", "said"), REFUSED)
def test_what_an_encoder_cannot_do_is_an_error_before_any_stage(encoder_workspace: Path, capsys, section, values, said):
    change(encoder_workspace, section, **values)
    assert main(["ingest", "--task", TASK]) == 2
    _, line = capsys.readouterr().err.splitlines()
    assert line.strip().startswith(said)
    assert not Layout(encoder_workspace, TASK).path("raw").exists()


def test_a_threshold_against_the_hard_prompt_is_named_with_the_hard_prompts_of_an_encoder(encoder_workspace: Path, capsys):
    change(encoder_workspace, "prompt", hard_prompts=["{text} is"])
    change(encoder_workspace, "gate", change_thresholds=[*THRESHOLDS, {**THRESHOLDS[0], "baseline": "hard_prompt"}])
    assert main(["ingest", "--task", TASK]) == 2
    _, first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"  tasks.{TASK}.prompt.hard_prompts: ")
    assert second == f"  tasks.{TASK}.gate.change_thresholds.1.baseline: an encoder has no hard_prompt to compare with; use majority_class"


@pytest.mark.parametrize("known", [True, False])
def test_a_decoder_without_hard_prompts_is_refused(workspace: Path, capsys, known: bool):
    """When params are checked or, where the files do not say that it is a decoder, when it is loaded."""
    save_model("llama", workspace / "llama")
    if not known:
        config = workspace / "llama" / "config.json"
        config.write_text(config.read_text(encoding="utf-8").replace("LlamaForCausalLM", "LlamaModel"), encoding="utf-8")
    change(workspace, "base_model", source={"kind": "directory", "id": "tiny/llama", "path": "llama"})
    change(workspace, "prompt", hard_prompts=[])
    assert main(["tune", "--task", TASK]) == (2 if known else 1)
    shown = capsys.readouterr().err
    assert "prompt.hard_prompts" in shown
    assert "found none; list at least one" in shown
