"""Soft-prompt methods: modules that hold what is trained and give the soft prompt it stands for.

The parameterisations are PEFT's own modules; only residual reparameterisation, which PEFT does not have, is written here. Each is
wrapped so that it takes nothing and returns a SoftPrompt: a method never sees the base model's forward pass.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import MultitaskPromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, PromptTuningInit, TaskType
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding
from peft.tuners.p_tuning import PromptEncoder
from peft.tuners.prefix_tuning import PrefixEncoder
from peft.tuners.prompt_tuning import PromptEmbedding

from pipeline.engine.base_model import BaseModel
from pipeline.engine.initialisation import key_values_of
from pipeline.engine.shared_prefix import key_value_shape
from pipeline.engine.soft_prompt import SoftPrompt

MethodName = Literal["prompt_tuning", "residual_prompt_tuning", "p_tuning", "multitask_prompt_tuning", "prefix_tuning"]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Which method, and the sizes of its reparameterisation (None: the size of the base model, as in PEFT)."""

    name: MethodName
    encoder: Literal["MLP", "LSTM"] = "MLP"  # p_tuning
    encoder_hidden_size: int | None = None  # p_tuning, prefix_tuning with projection
    projection: bool = False  # prefix_tuning
    bottleneck: int = 128  # residual_prompt_tuning
    ranks: int = 1  # multitask_prompt_tuning


class TunedModule(torch.nn.Module):
    """A parameterisation of one soft prompt; calling it gives the SoftPrompt, through which gradients flow to its parameters."""

    def __init__(self, encoder: torch.nn.Module, num_virtual_tokens: int, kind: Literal["embeddings", "key_values"]) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_virtual_tokens = num_virtual_tokens
        self.kind: Literal["embeddings", "key_values"] = kind

    def forward(self) -> SoftPrompt:
        """The soft prompt the parameters stand for now."""
        device = next(self.encoder.parameters()).device
        indices = torch.arange(self.num_virtual_tokens, device=device)[None]
        if isinstance(self.encoder, MultitaskPromptEmbedding):
            values = self.encoder(indices, torch.zeros(1, dtype=torch.long, device=device))
        else:
            values = self.encoder(indices)
        return SoftPrompt(values[0], self.kind)


class ResidualPromptEncoder(torch.nn.Module):
    """Residual prompt tuning (Razdaibiedina et al. 2023): E + LayerNorm(up(relu(down(E)))), one network shared by all virtual tokens."""

    def __init__(self, embeddings: torch.Tensor, bottleneck: int) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.embedding = torch.nn.Embedding.from_pretrained(embeddings.clone(), freeze=False)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(width, bottleneck), torch.nn.ReLU(), torch.nn.Linear(bottleneck, width), torch.nn.LayerNorm(width)
        )
        # The paper starts the normalised branch at full size; starting it at 0 keeps the initial text's meaning at step 0.
        norm: Any = self.network[-1]
        torch.nn.init.zeros_(norm.weight)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """[1, P] indices to [1, P, H]."""
        rows = self.embedding(indices)
        return rows + self.network(rows)


def build_method(*, base: BaseModel, settings: MethodSettings, embeddings: torch.Tensor, seed: int) -> TunedModule:
    """A trainable module, float32 on the base model's device, whose start is made from `embeddings` [P, H].

    prompt_tuning and residual_prompt_tuning start as `embeddings`, prefix_tuning without projection as their keys and values;
    multitask_prompt_tuning starts as `embeddings` times a low-rank matrix of ones; p_tuning and prefix_tuning with projection feed
    them (cut to the module's width) through a network whose weights are drawn from `seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _encoder(base, settings, embeddings.detach().float().cpu())
    kind = "key_values" if settings.name == "prefix_tuning" else "embeddings"
    return TunedModule(encoder.float(), embeddings.shape[0], kind).to(base.device)


def _encoder(base: BaseModel, settings: MethodSettings, embeddings: torch.Tensor) -> torch.nn.Module:
    count, width = embeddings.shape
    common: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": count, "num_transformer_submodules": 1}
    words: Any = base.model.get_input_embeddings()
    if settings.name == "residual_prompt_tuning":
        return ResidualPromptEncoder(embeddings, settings.bottleneck)
    if settings.name == "prefix_tuning":
        layers, heads, size = key_value_shape(base)
        encoder: Any = PrefixEncoder(
            PrefixTuningConfig(
                token_dim=heads * size,
                num_attention_heads=heads,
                num_layers=layers,
                encoder_hidden_size=settings.encoder_hidden_size or heads * size,
                prefix_projection=settings.projection,
                **common,
            )
        )
        if settings.projection:
            return encoder
        start = key_values_of(base, embeddings)
    elif settings.name == "p_tuning":
        encoder = PromptEncoder(
            PromptEncoderConfig(
                token_dim=width,
                encoder_reparameterization_type=settings.encoder,
                encoder_hidden_size=settings.encoder_hidden_size or width,
                **common,
            )
        )
        start = embeddings
    elif settings.name == "multitask_prompt_tuning":
        encoder = MultitaskPromptEmbedding(
            MultitaskPromptTuningConfig(
                token_dim=width, num_tasks=1, num_ranks=settings.ranks, prompt_tuning_init=PromptTuningInit.RANDOM, **common
            ),
            words,
        )
        torch.nn.init.constant_(encoder.prefix_task_cols, 1.0 / settings.ranks)
        torch.nn.init.ones_(encoder.prefix_task_rows)
        start = embeddings
    else:
        config = PromptTuningConfig(token_dim=width, prompt_tuning_init=PromptTuningInit.RANDOM, **common)
        encoder = PromptEmbedding(config, words)
        start = embeddings
    with torch.no_grad():
        encoder.embedding.weight.copy_(start)
    return encoder
