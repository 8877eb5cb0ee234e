"""Tiny randomly initialised base models of several families, with a real byte-level BPE tokenizer, as folders on disk."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

TEXTS = [
    "the plane was late and nobody said a word about the lost bag",
    "thank you for the lovely flight, the crew was great today",
    "boarding starts at gate four at six in the evening",
    "negative neutral positive Tweet: Sentiment: very good, quite bad",
]
SMALL = {"vocab_size": 320, "max_position_embeddings": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4}


def family_config(family: str) -> PreTrainedConfig:
    """A small configuration of a decoder-only family."""
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    if family == "llama":
        return LlamaConfig(**SMALL, **HEADS, num_key_value_heads=2, **special)
    if family == "qwen2":
        return Qwen2Config(**SMALL, **HEADS, num_key_value_heads=2, **special)
    if family == "gpt_neox":
        return GPTNeoXConfig(**SMALL, **HEADS, **special)
    if family == "gpt2":
        return GPT2Config(vocab_size=320, n_positions=128, n_embd=32, n_layer=2, n_head=4, **special)
    if family == "mistral_sliding":
        return MistralConfig(**SMALL, **HEADS, num_key_value_heads=2, sliding_window=8, **special)
    raise AssertionError(family)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on TEXTS; token 0 is <s>, token 1 is </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def save_model(family: str, folder: Path) -> None:
    """Write a tiny model of `family` and its tokenizer."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(family_config(family))
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual 0.02: differences must not drown in rounding
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
