"""Tiny randomly initialised base models of several families, with a real byte-level BPE tokenizer, as folders on disk."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    T5Config,
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
    grouped = {**SMALL, **HEADS, "num_key_value_heads": 2, **special}
    wide = {**grouped, "head_dim": 8}
    makers: dict[str, Callable[[], PreTrainedConfig]] = {
        "llama": lambda: LlamaConfig(**grouped),
        "llama_for_flex": lambda: LlamaConfig(**grouped, head_dim=16),  # the GPU kernel takes no smaller heads
        "qwen2": lambda: Qwen2Config(**grouped),
        "qwen2_sliding": lambda: Qwen2Config(**grouped, use_sliding_window=True, sliding_window=6, max_window_layers=1),
        "qwen3": lambda: Qwen3Config(**wide),
        "gemma": lambda: GemmaConfig(**wide),
        "gemma2": lambda: Gemma2Config(
            **wide, query_pre_attn_scalar=8, sliding_window=6, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
        ),
        "gemma3": lambda: Gemma3TextConfig(
            **wide, query_pre_attn_scalar=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        ),
        "mistral": lambda: MistralConfig(**grouped, sliding_window=None),
        "mistral_sliding": lambda: MistralConfig(**grouped, sliding_window=6),
        "gpt_neox": lambda: GPTNeoXConfig(**SMALL, **HEADS, **special),
        "gpt2": lambda: GPT2Config(vocab_size=320, n_positions=128, n_embd=32, n_layer=2, n_head=4, **special),
        # Encoder-decoder: fewer decoder layers than encoder layers, and heads x d_kv is not the hidden size. Encoder.
        "t5": lambda: T5Config(
            vocab_size=320,
            d_model=32,
            d_kv=6,
            d_ff=64,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=1,
            **special,
        ),
        "bert": lambda: BertConfig(**SMALL, **HEADS, num_labels=3, pad_token_id=1),
        # Families that do not follow masks and positions alone: alibi distances, a window of their own, rescaled logits, recurrence.
        "bloom": lambda: BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, **special),
        "gpt_neo": lambda: GPTNeoConfig(
            vocab_size=320,
            max_position_embeddings=128,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=64,
            **special,
        ),
        "granite": lambda: GraniteConfig(**grouped, logits_scaling=4.0),
        "qwen3_next": lambda: Qwen3NextConfig(**wide, layer_types=["linear_attention", "full_attention"], mlp_only_layers=[0, 1]),
    }
    return makers[family]()


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
    loader = {"t5": AutoModelForSeq2SeqLM, "bert": AutoModelForSequenceClassification}.get(family, AutoModelForCausalLM)
    model = loader.from_config(family_config(family))
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual 0.02: differences must not drown in rounding
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
