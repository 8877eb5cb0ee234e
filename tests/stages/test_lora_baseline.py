"""The LoRA baseline: trained as long as the soft prompt and scored on the same rows; nothing at all where it is off."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.__main__ import main, run_stage
from pipeline.layout import STAGES, Layout
from pipeline.lora_baseline import training_cost
from pipeline.manifest import verify_bundle
from pipeline.records import read_json, read_jsonl, read_parquet
from tests.engine.tiny_models import save_model
from tests.stages.conftest import TASK
from tests.stages.test_encoders import change, pefts_probabilities

THRESHOLD = {"metric": "accuracy", "baseline": "lora", "minimum_gain": 0.0}


@pytest.fixture
def with_lora(workspace: Path) -> Path:
    """A tiny encoder, so that PEFT's own forward of the saved adapter says what the LoRA must have answered."""
    save_model("bert", workspace / "bert")
    change(workspace, "base_model", source={"kind": "directory", "id": "tiny/bert", "path": "bert"}, dtype="auto")
    change(workspace, "prompt", hard_prompts=[])
    change(workspace, "gate", change_thresholds=[THRESHOLD])
    change(workspace, "tune", trials={"seeds": [0, 1], "learning_rates": [0.05, 0.01]}, maximum_steps=4, evaluate_every=4)
    change(workspace, "lora_baseline", enabled=True, rank=2, learning_rate=0.01)
    return workspace


def test_a_lora_goes_through_all_stages_as_a_baseline(with_lora: Path):
    layout = Layout(with_lora, TASK)
    for stage in STAGES:
        run_stage(with_lora, stage.name, TASK)
    record, bundle = read_json(layout.path("lora") / "lora.json"), layout.path("lora") / "bundle"
    assert record == {"task": TASK, "enabled": True, "reason": None}
    assert not layout.outputs(STAGES[7]).scratch.exists()
    lora, tuned = verify_bundle(bundle), verify_bundle(layout.path("bundle"))
    assert (lora["training"]["method"], tuned["training"]["method"]) == ("lora", "prompt_tuning")
    assert lora["task"] == TASK
    assert [trial["seed"] for trial in lora["training"]["trials"]] == [0, 1], "the seeds are those of tune, its learning rates are its own"
    assert lora["training"]["steps"] == tuned["training"]["steps"] == 4
    assert lora["data"] == tuned["data"]
    if lora["training"]["seed"] == tuned["training"]["seed"]:
        assert lora["row_order_sha256"] == tuned["row_order_sha256"]

    predictions = read_parquet(layout.path("predictions"))
    assert list(dict.fromkeys(predictions["variant"])) == ["tuned", "lora", "majority_class"]
    found = predictions[predictions["variant"] == "lora"]
    texts = found["text"].to_list()[:30]
    given = found[["p.bad", "p.good"]].to_numpy()[:30]
    np.testing.assert_allclose(given, pefts_probabilities(with_lora, texts, bundle), atol=1e-5)
    assert np.ptp(given[:, 0]) > 1e-6, "the text must matter"

    metrics, score, gate = (read_json(layout.path(name)) for name in ("metrics", "score_report", "gate"))
    assert list(metrics["comparisons"]) == ["tuned_minus_lora", "tuned_minus_majority_class"]
    right = predictions["prediction"] == predictions["label"]
    shares = right.groupby(predictions["variant"]).mean()
    assert metrics["comparisons"]["tuned_minus_lora"]["accuracy"]["value"] == pytest.approx(shares["tuned"] - shares["lora"])
    (check,) = (check for check in gate["checks"] if check["name"] == "accuracy minus lora")
    assert check["value"] == metrics["comparisons"]["tuned_minus_lora"]["accuracy"]["value"]

    costs = score["training_cost"]
    assert set(costs) == {"tuned", "lora"}
    assert (costs["lora"]["steps"], costs["lora"]["trials"], costs["tuned"]["trials"]) == (4, 2, 4)
    logged = read_jsonl(layout.path("lora") / "train_log.jsonl")
    once = {item["step"]: item["seconds"] for item in logged if item["event"] == "step"}
    assert costs["lora"]["seconds"] == pytest.approx(sum(once.values()))
    assert costs["lora"]["values"] > costs["tuned"]["values"] > 0
    assert score["tokens_per_row"]["lora"] == score["tokens_per_row"]["tuned"] - 4


def test_switched_off_it_loads_no_model_and_says_so(workspace: Path):
    change(workspace, "base_model", source={"kind": "directory", "id": "x", "path": "nowhere"})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", "tune_lora", "--task", TASK]
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported
    assert not {"torch", "transformers"} & imported
    folder = Layout(workspace, TASK).path("lora")
    assert [path.name for path in folder.iterdir()] == ["lora.json"]
    assert read_json(folder / "lora.json") == {"task": TASK, "enabled": False, "reason": "lora_baseline.enabled is false"}


@pytest.mark.parametrize("asked", [False, True])
def test_a_folder_of_other_params_is_not_scored(workspace: Path, capsys: pytest.CaptureFixture[str], asked: bool):
    for stage in ("ingest", "validate", "split", "tune"):
        run_stage(workspace, stage, TASK)
    change(workspace, "lora_baseline", enabled=not asked, rank=1)
    change(workspace, "tune", maximum_steps=2, evaluate_every=2)
    run_stage(workspace, "tune_lora", TASK)
    change(workspace, "lora_baseline", enabled=asked)
    assert main(["score", "--task", TASK]) == 1
    assert f"has enabled {not asked}, lora_baseline.enabled is {asked}. Run the stage tune_lora again" in capsys.readouterr().err


def test_an_altered_lora_is_not_scored(workspace: Path, capsys: pytest.CaptureFixture[str]):
    change(workspace, "lora_baseline", enabled=True, rank=1, target_modules=["q_proj", "v_proj"])
    change(workspace, "tune", maximum_steps=2, evaluate_every=2)
    for stage in ("ingest", "validate", "split", "tune", "tune_lora"):
        run_stage(workspace, stage, TASK)
    bundle = Layout(workspace, TASK).path("lora") / "bundle"
    config = read_json(bundle / "adapter_config.json")
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    (bundle / "template.json").write_text("{}", encoding="utf-8")
    assert main(["score", "--task", TASK]) == 1
    assert "template.json" in capsys.readouterr().err


def test_layers_that_the_base_model_does_not_have_are_named(workspace: Path, capsys: pytest.CaptureFixture[str]):
    change(workspace, "lora_baseline", enabled=True, target_modules=["no_such_layer"])
    for stage in ("ingest", "validate", "split"):
        run_stage(workspace, stage, TASK)
    assert main(["tune_lora", "--task", TASK]) == 1
    shown = capsys.readouterr().err
    assert "lora does not fit the base model tiny/llama" in shown
    assert "no_such_layer" in shown
    assert not Layout(workspace, TASK).path("lora").exists()


REFUSED: list[tuple[dict[str, dict[str, Any]], str]] = [
    (
        {"lora_baseline": {"enabled": True}, "tune": {"method": {"kind": "lora"}}},
        "lora_baseline.enabled: tune.method is lora already, which would be compared with itself; write false",
    ),
    (
        {"gate": {"change_thresholds": [THRESHOLD]}},
        "gate.change_thresholds.0.baseline: lora_baseline.enabled is false, so there is no lora; "
        "use hard_prompt or zero_shot or few_shot or majority_class",
    ),
    (
        {"gate": {"guards": [{"metric": "accuracy", "baseline": "lora", "maximum_loss": 0.1}]}},
        "gate.guards.0.baseline: lora_baseline.enabled is false, so there is no lora; ",
    ),
    ({"lora_baseline": {"target_modules": []}}, "lora_baseline.target_modules: expected `all-linear` or a list of names"),
    ({"lora_baseline": {"target_modules": "q_proj"}}, "lora_baseline.target_modules: expected `all-linear` or a list of names"),
    ({"lora_baseline": {"rank": 0}}, "lora_baseline.rank: Input should be greater than or equal to 1; found 0"),
]


@pytest.mark.parametrize(("sections", "said"), REFUSED)
def test_what_cannot_work_is_an_error_of_params(workspace: Path, capsys, sections: dict[str, dict[str, Any]], said: str):
    for section, values in sections.items():
        change(workspace, section, **values)
    assert main(["ingest", "--task", TASK]) == 2
    _, line = capsys.readouterr().err.splitlines()
    assert line.strip().startswith(f"tasks.{TASK}.{said}")


def test_free_text_has_no_lora(workspace: Path, capsys: pytest.CaptureFixture[str]):
    document = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    task = document["tasks"][TASK]
    task["ingest"]["columns"] = {"fields": {"text": "body"}, "target": "mood"}
    task["prompt"]["verbalizers"], task["assess_fairness"] = {}, {}
    task["tune"]["metric"] = "token_accuracy"
    task["gate"]["value_thresholds"] = [{"metric": "token_f1", "minimum": 0.1}]
    task["lora_baseline"] = {"enabled": True}
    (workspace / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    assert main(["ingest", "--task", TASK]) == 2
    assert f"tasks.{TASK}.lora_baseline.enabled: LoRA is trained to answer labels only" in capsys.readouterr().err


def test_the_cost_counts_a_step_once_for_the_trials_that_share_its_pass():
    log = [{"event": "step", "trial": trial, "step": step, "seconds": 0.5 * step} for step in (1, 2, 3) for trial in (0, 1)]
    log.append({"event": "evaluation", "trial": 0, "step": 3})
    manifest = {"training": {"trials": [{}, {}]}, "soft_prompt": {"shape": [4, 32]}}
    assert training_cost(manifest, log) == {"seconds": 3.0, "steps": 3, "trials": 2, "values": 128}
