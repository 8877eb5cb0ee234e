"""A real tuned prompt bundle on a tiny base model."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.engine.base_model import load_base_model
from pipeline.engine.soft_prompt import SoftPrompt, save_soft_prompt, tensor_sha256
from pipeline.manifest import write_manifest
from pipeline.records import write_json
from tests.engine.tiny_models import save_model
from tests.registry.registry_workspace import LABELS, TASK


def make_tiny_bundle(model: Path, bundle: Path, labels: Sequence[str] = LABELS) -> Path:
    """A bundle that loads, in the folder `bundle`: an untrained soft prompt [2, H] on a randomly initialised Llama of two layers in the folder `model`.

    Without labels it answers in free text of up to three tokens.
    """
    save_model("llama", model)
    base = load_base_model(source={"kind": "directory", "id": "tiny/llama", "path": str(model)}, dtype="float32", device="cpu")
    soft_prompt = 0.02 * torch.randn(2, 32)
    save_soft_prompt(bundle, soft_prompt=SoftPrompt(soft_prompt), base_model_id="tiny/llama", revision=None, init_text="Sentiment")
    (bundle / "README.md").unlink(missing_ok=True)
    write_json(bundle / "template.json", {"template": "Tweet: {text}\nSentiment:", "maximum_field_tokens": 32})
    write_json(bundle / "verbalizers.json", {label: f" {label}" for label in labels})
    if not labels:
        decoding = {"maximum_new_tokens": 3, "separator": " ", "stop": [], "num_beams": 1, "length_penalty": 1.0}
        write_json(bundle / "generation.json", decoding)
    identity = {"sha256": tensor_sha256(soft_prompt), "shape": [2, 32], "dtype": "float32"}
    lineage = {"soft_prompt": identity, "base_model": base.identity(), "task": TASK, "fields": ["text"], "labels": list(labels)}
    write_manifest(bundle, {**lineage, "code": {"commit": None, "dirty": False, "diff_sha256": None}})
    return bundle
