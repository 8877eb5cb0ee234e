"""The tune stage with each kind of method and base model, several trials, and interruptions; scored by the stage that follows it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.__main__ import run_stage
from pipeline.errors import BaseModelError
from pipeline.layout import Layout
from pipeline.manifest import verify_bundle
from pipeline.records import read_json, read_jsonl, read_parquet
from tests.engine.tiny_models import save_model
from tests.stages.conftest import TASK

STAGES = ("ingest", "validate", "split", "tune", "tune_lora", "score", "evaluate")


def change(root: Path, section: str, **values: Any) -> None:
    path = root / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["tasks"][TASK][section].update(values)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def use_base_model(root: Path, family: str) -> Path:
    folder = root / "models" / family
    save_model(family, folder)
    change(root, "base_model", source={"kind": "directory", "id": f"tiny/{family}", "path": str(folder)})
    return folder


def run(root: Path, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    for stage in stages:
        run_stage(root, stage, TASK)
    return verify_bundle(Layout(root, TASK).path("bundle"))


@pytest.mark.parametrize(
    ("method", "through"),
    [
        ({"kind": "prefix_tuning"}, "shared prefix"),
        ({"kind": "residual_prompt_tuning", "bottleneck": 8}, "shared prefix"),
        ({"kind": "lora", "rank": 2}, "PEFT"),
    ],
)
def test_a_method_goes_through_the_stages_and_peft_loads_it(workspace: Path, model: Path, method: dict[str, Any], through: str):
    change(workspace, "tune", method=method, learning_rate=0.01)
    manifest = run(workspace)
    assert manifest["training"]["method"] == method["kind"]
    assert manifest["soft_prompt"]["through"] == through
    layout = Layout(workspace, TASK)
    assert set(read_parquet(layout.path("predictions"))["variant"]) == {"tuned", "hard_prompt", "zero_shot", "majority_class"}
    assert 0 < read_json(layout.path("metrics"))["variants"]["tuned"]["accuracy"]["value"] <= 1
    assert (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), layout.path("bundle")).peft_config["default"].inference_mode
    )


def test_an_encoder_decoder_goes_through_the_stages(workspace: Path):
    use_base_model(workspace, "t5")
    manifest = run(workspace)
    assert manifest["soft_prompt"]["through"] == "PEFT"
    predictions = read_parquet(Layout(workspace, TASK).path("predictions"))
    assert predictions[predictions["variant"] == "tuned"]["p.good"].nunique() > 10


def test_gradient_checkpointing_computes_layers_again_and_trains_the_same(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    change(workspace, "tune", method={"kind": "lora", "rank": 2}, learning_rate=0.01, maximum_steps=3, evaluate_every=3)
    run(workspace, STAGES[:4])
    log = Layout(workspace, TASK).path("train_log")
    losses = [record["loss"] for record in read_jsonl(log) if record["event"] == "step"]
    again: list[object] = []
    backward = torch.utils.checkpoint._checkpoint_hook.__init__
    monkeypatch.setattr(torch.utils.checkpoint._checkpoint_hook, "__init__", lambda *given: again.append(given[0]) or backward(*given))
    run(workspace, ("tune",))
    assert again == []
    change(workspace, "tune", gradient_checkpointing=True)
    run(workspace, ("tune",))
    assert len(again) == 3 * 2 * 2  # steps x layers x verbalizers
    assert [record["loss"] for record in read_jsonl(log) if record["event"] == "step"] == pytest.approx(losses, abs=1e-6)


def test_the_decoder_is_compiled_where_asked_and_a_base_model_without_the_fast_pass_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    """That a compiled decoder takes the same steps is tested in tests/engine/test_precision.py; making kernels takes half a minute."""
    compiled: list[str] = []
    monkeypatch.setattr("pipeline.trials.compile_decoder", lambda base: compiled.append(base.source["id"]))
    change(workspace, "tune", maximum_steps=3, evaluate_every=3)
    run(workspace, STAGES[:4])
    assert compiled == []
    change(workspace, "tune", compile=True)
    run(workspace, ("tune",))
    assert compiled == ["tiny/llama"]
    use_base_model(workspace, "bloom")
    with pytest.raises(BaseModelError, match=r"tune\.compile is for the shared-prefix pass, which tiny/bloom does not go through: "):
        run(workspace, ("tune",))


def test_several_trials_are_reported_and_the_best_one_is_exported(workspace: Path, capsys: pytest.CaptureFixture[str]):
    change(workspace, "tune", trials={"seeds": [0, 1], "learning_rates": [0.05, 0.0001], "num_virtual_tokens": [4], "inits": []})
    manifest = run(workspace, STAGES[:4])
    training = manifest["training"]
    assert [outcome["seed"] for outcome in training["trials"]] == [0, 1, 0, 1]
    assert len(training["configurations"]) == 2
    best = max(training["trials"], key=lambda outcome: outcome["best_metric"])
    assert training["best_metric"] == best["best_metric"] == training["trials"][training["trial"]]["best_metric"]
    log = read_jsonl(Layout(workspace, TASK).path("train_log"))
    assert {record["trial"] for record in log if record["event"] != "system"} == {0, 1, 2, 3}
    left = [record["seconds_left"] for record in log if record["event"] == "step" and record["trial"] == 0]
    assert min(left[:-1]) > 0 == left[-1]
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tune: ")][-1]
    assert re.search(r"12/12 .*trial 3: loss \d+\.\d{3}, validation accuracy \d\.\d{3}, macro F1 \d\.\d{3}, [\d.e+]+ examples/s", last), (
        last
    )


def test_a_warm_start_needs_the_tuned_prompt_it_names(workspace: Path):
    manifest = run(workspace, STAGES[:4])
    bundle = Layout(workspace, TASK).path("bundle")
    source = bundle.rename(workspace / "earlier")
    sha256 = manifest["soft_prompt"]["sha256"]
    change(workspace, "tune", init={"kind": "tuned_prompt", "path": str(source), "sha256": sha256}, learning_rate=1e-9)
    again = run(workspace, ("tune",))
    assert again["soft_prompt"]["shape"] == manifest["soft_prompt"]["shape"]
    assert again["training"]["initial_sha256"] == sha256 != manifest["training"]["initial_sha256"]
    assert again["training"]["init"] == {"kind": "tuned_prompt", "path": str(source), "sha256": sha256}
    change(workspace, "tune", init={"kind": "tuned_prompt", "path": str(source), "sha256": "0" * 64})
    with pytest.raises(Exception, match=f"holds the soft prompt {sha256}, tune.init.sha256 is 0000"):
        run(workspace, ("tune",))


def test_sigterm_ends_with_a_checkpoint_and_the_next_run_gives_the_same_bits(workspace: Path, repo_root: Path):
    change(workspace, "tune", maximum_steps=400, evaluate_every=100, checkpoint_every=50)
    whole = run(workspace, STAGES[:4])["soft_prompt"]["sha256"]
    scratch = Layout(workspace, TASK).root / ".promptmill" / "scratch" / TASK / "tune"
    assert not scratch.exists(), "a run that ended well leaves no checkpoint"
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "PROMPTMILL_PROGRESS": "bar", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", "tune", "--task", TASK]
    with subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        shown = b""
        while b"loss" not in shown and process.poll() is None:
            shown += os.read(process.stderr.fileno(), 4096)
        process.send_signal(signal.SIGTERM)
        shown += process.stderr.read()
    assert process.returncode == 75, shown[-500:]
    assert b"Start it again to go on from there" in shown
    assert len(list(scratch.glob("*.safetensors"))) == 1
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert verify_bundle(Layout(workspace, TASK).path("bundle"))["soft_prompt"]["sha256"] == whole
    assert not scratch.exists()


def test_two_processes_tune_the_same_prompt_and_one_writes_it(workspace: Path, repo_root: Path):
    change(workspace, "tune", learning_rate=0.01)
    run(workspace, STAGES[:4])
    weights = Layout(workspace, TASK).path("bundle") / "adapter_model.safetensors"
    alone = load_file(weights)["prompt_embeddings"]
    weights.unlink()
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "pipeline", "tune", "--task", TASK], cwd=workspace, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    together = load_file(weights)["prompt_embeddings"]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    verify_bundle(Layout(workspace, TASK).path("bundle"))
