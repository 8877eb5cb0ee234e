"""Soft-prompt methods: modules that hold what is trained and give the soft prompt it stands for.

The parameterisations are PEFT's own modules; only residual reparameterisation, which PEFT does not have, is written here. Each is
wrapped so that it takes nothing and returns a SoftPrompt: a method never sees the base model's forward pass.
"""

from dataclasses import dataclass
from typing import Any, Literal, assert_never

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

_COMMON: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM, "num_transformer_submodules": 1}


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
    """Residual prompt tuning (Razdaibiedina et al. 2023): E + LayerNorm(up(relu(down(E)))), one network shared by all virtual tokens.

    As in the paper's published code, without its dropout (0 there by default). Where the paper gives the normalised branch its full
    size from the start, ours starts at 0, so that the soft prompt starts as `embeddings` and not as noise many times longer.
    """

    def __init__(self, embeddings: torch.Tensor, bottleneck: int) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.embedding = torch.nn.Embedding.from_pretrained(embeddings.clone(), freeze=False)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(width, bottleneck), torch.nn.ReLU(), torch.nn.Linear(bottleneck, width), torch.nn.LayerNorm(width)
        )
        # Not the linear layer in front: a normalisation of zeros has a gradient of 1/sqrt(epsilon).
        norm: Any = self.network[-1]
        torch.nn.init.zeros_(norm.weight)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """[1, P] indices to [1, P, H]."""
        rows = self.embedding(indices)
        return rows + self.network(rows)


def build_method(*, base: BaseModel, settings: MethodSettings, embeddings: torch.Tensor, seed: int) -> TunedModule:
    """A trainable module, float32 on the base model's device, that starts as `embeddings` [P, H], or as their keys and values.

    Networks are drawn from `seed` as PEFT draws them; of p_tuning's and of prefix_tuning's with projection the last layer is then moved, as
    little as possible, to where the output is the asked start (exactly up to P = `encoder_hidden_size`, beyond that nearest to it).
    """
    start = embeddings.detach().float()
    if settings.name == "prefix_tuning":
        start = key_values_of(base, start)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPU's generator
        encoder = _encoder(base, settings, start.cpu())
    kind = "key_values" if settings.name == "prefix_tuning" else "embeddings"
    return TunedModule(encoder.float(), start.shape[0], kind).to(base.device)


def _encoder(base: BaseModel, settings: MethodSettings, start: torch.Tensor) -> torch.nn.Module:
    if settings.name == "prefix_tuning":
        return _prefix_tuning(base, settings, start)
    if settings.name == "p_tuning":
        return _p_tuning(settings, start)
    if settings.name == "multitask_prompt_tuning":
        return _multitask_prompt_tuning(base, settings, start)
    if settings.name == "residual_prompt_tuning":
        return ResidualPromptEncoder(start, settings.bottleneck)
    if settings.name == "prompt_tuning":
        config = PromptTuningConfig(prompt_tuning_init=PromptTuningInit.RANDOM, **_sizes(start))
        return _with_rows(PromptEmbedding(config, base.model.get_input_embeddings()), start)
    assert_never(settings.name)


def _multitask_prompt_tuning(base: BaseModel, settings: MethodSettings, start: torch.Tensor) -> torch.nn.Module:
    config = MultitaskPromptTuningConfig(prompt_tuning_init=PromptTuningInit.RANDOM, num_tasks=1, num_ranks=settings.ranks, **_sizes(start))
    encoder = MultitaskPromptEmbedding(config, base.model.get_input_embeddings())
    with torch.no_grad():
        # The task's matrix, columns x rows, starts as ones. The first rank makes them and the others' columns start at 0 with the random
        # rows that PEFT drew: ranks that started alike would stay alike.
        encoder.prefix_task_cols.zero_()[:, :, 0] = 1
        encoder.prefix_task_rows[:, 0] = 1
    return _with_rows(encoder, start)


def _p_tuning(settings: MethodSettings, start: torch.Tensor) -> torch.nn.Module:
    encoder: Any = PromptEncoder(
        PromptEncoderConfig(
            encoder_reparameterization_type=settings.encoder,
            encoder_hidden_size=settings.encoder_hidden_size or start.shape[1],
            **_sizes(start),
        )
    )
    _fit_last_layer(encoder, encoder.mlp_head[-1], start)
    return encoder


def _prefix_tuning(base: BaseModel, settings: MethodSettings, start: torch.Tensor) -> torch.nn.Module:
    layers, heads, size = key_value_shape(base)
    width = heads * size
    encoder: Any = PrefixEncoder(
        PrefixTuningConfig(
            num_attention_heads=heads,
            num_layers=layers,
            encoder_hidden_size=settings.encoder_hidden_size or width,
            prefix_projection=settings.projection,
            num_virtual_tokens=start.shape[0],
            token_dim=width,
            **_COMMON,
        )
    )
    if not settings.projection:
        return _with_rows(encoder, start)
    _fit_last_layer(encoder, encoder.transform[-1], start)
    return encoder


def _sizes(start: torch.Tensor) -> dict[str, Any]:
    return {**_COMMON, "num_virtual_tokens": start.shape[0], "token_dim": start.shape[1]}


def _with_rows(encoder: Any, start: torch.Tensor) -> torch.nn.Module:
    """The encoder with its table of virtual tokens set to `start`."""
    with torch.no_grad():
        encoder.embedding.weight.copy_(start)
    return encoder


def _fit_last_layer(encoder: torch.nn.Module, last: torch.nn.Linear, start: torch.Tensor) -> None:
    """Change weight and bias of `last` by the least-squares solution of smallest norm that makes the encoder's output `start`."""
    inputs: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, given: inputs.append(given[0][0].double()))
    with torch.no_grad():
        output = encoder(torch.arange(start.shape[0])[None])[0].double()
        handle.remove()
        features = torch.nn.functional.pad(inputs[0], (0, 1), value=1.0)  # [P, hidden size + 1]: the bias is a weight of ones
        change = torch.linalg.pinv(features) @ (start.double() - output)
        last.weight += change[:-1].T.float()
        last.bias += change[-1].float()
