"""Randomly initialised base models, for machines without a network and for warming a process up."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from pipeline.engine.base_model import BaseModel
from pipeline.engine.hardware import choose_attention

# Llama 3.2 1B's shape: 1.24 billion parameters, 0.26 billion of them in the embedding table that is also the output layer.
ONE_BILLION: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def random_base_model(shape: dict[str, Any], *, dtype: torch.dtype, device: torch.device, attention: str = "auto") -> BaseModel:
    """A Llama of this shape with random weights, made on `device`; its tokenizer knows no word, so texts must come as token ids."""
    kernel = choose_attention(attention, device)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=dtype, attn_implementation=kernel)
    vocabulary = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return BaseModel(
        model=model.eval().requires_grad_(False),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=vocabulary, unk_token="<unk>", model_max_length=shape["max_position_embeddings"]
        ),
        folder=Path(),
        source={"kind": "random", "id": f"random Llama, {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters"},
        weights_sha256="",
        tokenizer_sha256="",
        device=device,
        dtype=dtype,
        attention=kernel,
    )
