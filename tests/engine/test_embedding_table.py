"""The input embeddings read from files alone, against those of the loaded model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine.base_model import load_base_model
from pipeline.engine.embedding_table import load_embedding_table
from pipeline.errors import BaseModelError
from tests.engine.tiny_models import save_model

TEXTS = ["the plane was late", "", "Thank you for the lovely flight, </s> very good"]


def source(folder: Path) -> dict[str, Any]:
    return {"kind": "directory", "id": "tiny/model", "path": str(folder)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3", "bloom", "t5", "bert"])
def test_the_table_is_the_loaded_models(tmp_path: Path, family: str):
    save_model(family, tmp_path)
    base = load_base_model(source=source(tmp_path), dtype="float32", device="cpu", num_labels=3)
    table = load_embedding_table(source=source(tmp_path))
    assert torch.equal(table.weights.float(), base.vocabulary_embeddings())
    identity = base.identity()
    assert table.identity() == {name: identity[name] for name in ("id", "weights_sha256", "tokenizer_sha256")}


def test_a_texts_point_is_the_mean_of_its_tokens_embeddings(tmp_path: Path):
    save_model("llama", tmp_path)
    table = load_embedding_table(source=source(tmp_path))
    found = table.mean_pooled(TEXTS * 300, maximum_tokens=6)
    assert found.shape == (900, 32)
    for text, point in zip(TEXTS, found[:3], strict=True):
        ids = table.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"][:6]
        expected = table.weights[ids].mean(dim=0).numpy() if ids else np.zeros(32)
        np.testing.assert_allclose(point, expected, atol=1e-6)
    np.testing.assert_array_equal(found[:3], found[-3:])


def test_no_other_weight_is_read(tmp_path: Path):
    save_model("llama", tmp_path)
    expected = load_embedding_table(source=source(tmp_path)).weights
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    others = {name: value for name, value in weights.items() if "embed_tokens" not in name}
    save_file({"x": next(iter(others.values()))}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"model.embed_tokens.weight": expected}, tmp_path / "model-00002-of-00002.safetensors")
    assert torch.equal(load_embedding_table(source=source(tmp_path)).weights, expected)


@pytest.mark.parametrize("held", [{"x": torch.zeros(2)}, {"model.embed_tokens.weight": torch.zeros(3, 32)}])
def test_a_folder_without_the_embeddings_is_refused_by_name(tmp_path: Path, held: dict[str, torch.Tensor]):
    save_model("llama", tmp_path)
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"lacks the tensor model\.embed_tokens\.weight of shape \(320, 32\)"):
        load_embedding_table(source=source(tmp_path))
