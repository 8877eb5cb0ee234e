"""PEFT adapters on a frozen base model: making them, and their files in PEFT's own format.

An adapter is a PeftModel on a view of the base model: modules of its own that share the base model's weights. PEFT changes modules
in place (LoRA layers, the trained copy of a classification head), so with views neither the base model nor another trial is touched.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.engine.base_model import BaseModel
from pipeline.engine.methods import MethodSettings, TunedModule, build_method
from pipeline.engine.soft_prompt import (
    CONFIG_FILE,
    LARGEST_CONFIG,
    WEIGHTS_FILE,
    SoftPrompt,
    check_plain_file,
    read_tensors,
    tensor_sha256,
)
from pipeline.engine.support import Architecture, check_supported
from pipeline.errors import BaseModelError, BundleError

TASKS: Mapping[Architecture, TaskType] = {
    "decoder": TaskType.CAUSAL_LM,
    "encoder_decoder": TaskType.SEQ_2_SEQ_LM,
    "encoder": TaskType.SEQ_CLS,
}
# Bounds of what a config may ask for, long before a tensor says whether it is so.
LARGEST_ALPHA = 10**6
LARGEST_LENGTH = 10**4
# Fields of an adapter config that are read or compared on their own, and those that say where an adapter comes from or how it was
# trained. All others must have the value we would write: another one changes the scores, or names something to import or load.
OTHER_FIELDS = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "num_virtual_tokens",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "inference_mode",
        "modules_to_save",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_name_or_path",
        "encoder_reparameterization_type",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout",
        "init_lora_weights",
        "lora_dropout",
        "megatron_core",
    }
)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """LoRA (Hu et al. 2021) on every linear layer but the output's, or on those whose names end so; its update is scaled by `alpha / rank`."""

    rank: int = 8
    alpha: int = 16
    target_modules: tuple[str, ...] | None = None


class PeftModule(torch.nn.Module):
    """One adapter. Its parameters and its state_dict() are what is trained, a classification head included, and nothing else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # In a tuple the PeftModel is no submodule: its state_dict() would hold the base model's weights too.
        self._models = (model,)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)

    @property
    def model(self) -> Any:
        """The PeftModel."""
        return self._models[0]

    def soft_prompt(self) -> SoftPrompt | None:
        """A copy of the virtual tokens that stand before the input; None for an adapter that has none (LoRA, a prefix of keys and values)."""
        encoder = next((module for module in self.model.modules() if isinstance(module, _PromptEncoder)), None)
        return encoder.tuned().detached() if encoder else None


class _PromptEncoder(torch.nn.Module):
    """One of our methods in the place of PEFT's prompt encoder."""

    def __init__(self, tuned: TunedModule) -> None:
        super().__init__()
        self.tuned = tuned
        self.embedding = tuned.encoder.embedding  # PEFT asks it for its device

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """The virtual tokens [1, P, H] of the indices [1, P]."""
        return self.tuned().values[indices]


def build_peft_module(
    *,
    base: BaseModel,
    settings: MethodSettings | LoraSettings,
    num_virtual_tokens: int = 0,
    embeddings: torch.Tensor | None = None,
    seed: int,
    gradient_checkpointing: bool = False,
) -> PeftModule:
    """A trainable adapter in float32 on the base model's device.

    Methods that train virtual tokens start as build_method says, from `embeddings` [P, H]; prefix tuning (of
    `num_virtual_tokens`), LoRA and a classification head start as PEFT and BERT draw them, from `seed`.
    Raises BaseModelError for a combination that is refused (see support.py).
    """
    method = "lora" if isinstance(settings, LoraSettings) else settings.name
    check_supported(method=method, architecture=base.architecture, gradient_checkpointing=gradient_checkpointing)
    if base.architecture == "encoder" and base.dtype != torch.float32:
        raise BaseModelError(
            f"{base.source['id']} was loaded in {base.dtype}, and its classification head would be trained in that. Set base_model.dtype to float32."
        )
    count = num_virtual_tokens if embeddings is None else embeddings.shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = _peft_model(base, _config(base, settings, count))
        except ValueError as error:  # PEFT: target modules that the base model does not have, or that are no linear layers
            raise BaseModelError(f"{method} does not fit the base model {base.source['id']}: {error}") from error
        _draw_head(model)
    if not isinstance(settings, LoraSettings) and settings.name != "prefix_tuning":
        if embeddings is None:
            raise ValueError(f"{settings.name} starts from `embeddings`")
        tuned = build_method(base=base, settings=settings, embeddings=embeddings, seed=seed)
        model.prompt_encoder["default"] = _PromptEncoder(tuned)
    if gradient_checkpointing:
        _checkpoint_layers(model.get_base_model())
    return PeftModule(model)


def plain_module(base: BaseModel) -> PeftModule:
    """The base model without an adapter, to be asked in the same way."""
    return PeftModule(base.model)


def adapter_sha256(folder: Path) -> str:
    """Hex sha256 of an adapter's values: the lines `<tensor> <sha256 of its float32 values>` in the order of the names."""
    tensors = load_file(folder / WEIGHTS_FILE)
    lines = "".join(f"{name} {tensor_sha256(tensors[name])}\n" for name in sorted(tensors))
    return hashlib.sha256(lines.encode()).hexdigest()


def save_peft_module(folder: Path, *, module: PeftModule, base: BaseModel) -> None:
    """Write the two files that `PeftModel.from_pretrained` reads: tensors, a classification head's included, and config.

    Virtual tokens become a prompt-tuning adapter whatever method made them, and a projected prefix a plain one, since that is what
    they are at inference.
    """
    tensors = _state_of(module.model)
    config = copy.deepcopy(module.model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path, config.revision = base.source["id"], base.source.get("revision")
    if isinstance(config, PrefixTuningConfig):
        config.prefix_projection = False
    config.save_pretrained(str(folder))
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_peft_module(folder: Path, base: BaseModel) -> PeftModule:
    """Read an adapter saved by us or by PEFT (prompt tuning, p-tuning, prefix tuning, LoRA), for scoring: it takes no gradient.

    Of its config only sizes and the names of modules are used, so it can neither run code nor name a class or a file to load.
    Raises BundleError when the files are no such adapter, or do not fit the base model.
    """
    path = folder / CONFIG_FILE
    check_plain_file(path, LARGEST_CONFIG)
    try:
        stated: Any = json.loads(path.read_text(encoding="utf-8"))
        config = _stated_config(stated, base)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} describes no adapter that can be used here: {error}. Fetch the bundle again.") from error
    try:
        model = _peft_model(base, config)
    except ValueError as error:  # PEFT: target modules that the base model does not have
        raise BundleError(
            f"{path} does not fit the base model {base.source['id']}: {error} Load it with the one it was tuned on."
        ) from error
    ours = {name: getattr(value, "value", value) for name, value in config.to_dict().items()}
    for name, value in stated.items():
        if name not in OTHER_FIELDS and value and value != ours.get(name):
            raise BundleError(f"{path}: {name} is {value!r:.80}, expected {ours.get(name)!r:.80}. Such an adapter cannot be used here.")
    shapes = {name: list(tensor.shape) for name, tensor in _state_of(model).items()}
    tensors = read_tensors(folder / WEIGHTS_FILE, shapes, base)
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise BundleError(f"{folder / WEIGHTS_FILE} holds NaN or infinite values in {name}. Tune again.")
    set_peft_model_state_dict(model, {name: tensor.to(base.device) for name, tensor in tensors.items()})
    return PeftModule(model.requires_grad_(False))


def view_of(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in modules of its own that share all weights and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _peft_model(base: BaseModel, config: PeftConfig) -> Any:
    view: Any = view_of(base.model)
    takes_prefix = base.architecture != "encoder" or "past_key_values" in inspect.signature(view.base_model.forward).parameters
    if isinstance(config, PrefixTuningConfig) and not takes_prefix:
        raise BaseModelError(
            f"{base.source['id']} is of a family ({view.config.model_type}) that takes no key/value prefix, so prefix tuning is refused. "
            "Choose prompt_tuning or another base model."
        )
    return get_peft_model(view, config).eval()


def _config(base: BaseModel, settings: MethodSettings | LoraSettings, count: int) -> PeftConfig:
    common: dict[str, Any] = {"task_type": TASKS[base.architecture], "modules_to_save": list(base.head_modules)}
    if isinstance(settings, LoraSettings):
        # PEFT leaves modules_to_save alone, which are trained whole.
        names = "all-linear" if settings.target_modules is None else list(settings.target_modules)
        return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names, **common)
    if settings.name == "prefix_tuning":
        sizes = _cache_sizes(base)
        if settings.encoder_hidden_size:
            sizes["encoder_hidden_size"] = settings.encoder_hidden_size
        return PrefixTuningConfig(num_virtual_tokens=count, prefix_projection=settings.projection, **sizes, **common)
    # The layers and heads mean nothing to virtual tokens, but PEFT asks for them and does not know where every family writes them.
    config: Any = base.model.config
    return PromptTuningConfig(
        num_virtual_tokens=count,
        token_dim=base.hidden_size,
        num_transformer_submodules=1,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        **common,
    )


def _cache_sizes(base: BaseModel) -> dict[str, Any]:
    """Layers, heads and width of the keys of an encoder-decoder, where PEFT guesses: it takes the encoder's layers and the hidden size."""
    if base.architecture != "encoder_decoder":
        return {}
    config = base.model.config
    heads = int(getattr(config, "decoder_attention_heads", None) or config.num_attention_heads)
    size = int(getattr(config, "d_kv", None) or config.hidden_size // heads)
    layers = int(getattr(config, "num_decoder_layers", None) or config.decoder_layers)
    return {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * size}


def _draw_head(model: Any) -> None:
    """Draw the trained copy of an encoder's head as BERT does, on the CPU, so that it is the same on every device."""
    deviation = getattr(model.config, "initializer_range", 0.02)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".modules_to_save." in name:
            if parameter.ndim > 1:
                parameter.data.copy_(torch.empty(parameter.shape).normal_(0, deviation))
            elif name.endswith("bias"):
                parameter.data.zero_()


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """Keep only the layers' inputs and compute the rest again in the backward pass.

    transformers does so in training mode only, and the base model is in eval() mode, so the layers (not what is in them) are put
    into training mode, with the dropout that some of them apply themselves set to 0. The model is a view: its modules are our own.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def _stated_config(stated: Mapping[str, Any], base: BaseModel) -> PeftConfig:
    """The config we would write for an adapter of the stated type and size; raises ValueError when one of them makes no sense."""
    kind = stated["peft_type"]
    if kind == "LORA":
        rank, alpha, names = stated["r"], stated["lora_alpha"], stated["target_modules"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in cast(list[Any], names)):
            raise ValueError(f"target_modules is {names!r:.80}, expected a list of names")
        settings = LoraSettings(rank=_count(rank, "r", base.hidden_size), alpha=_count(alpha, "lora_alpha", LARGEST_ALPHA))
        config: Any = _config(base, settings, 0)
        config.target_modules = set(cast(list[str], names))
    elif kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"):
        count = _count(stated["num_virtual_tokens"], "num_virtual_tokens", min(base.context_length, LARGEST_LENGTH))
        config = _config(base, MethodSettings(name="prefix_tuning" if kind == "PREFIX_TUNING" else "prompt_tuning"), count)
    else:
        raise ValueError(f"peft_type is {kind!r:.80}, expected PROMPT_TUNING, P_TUNING, PREFIX_TUNING or LORA")
    config.inference_mode = True
    return config


def _count(value: Any, name: str, largest: int) -> int:
    if type(value) is not int or not 1 <= value <= largest:
        raise ValueError(f"{name} is {value!r:.80}, expected 1 to {largest}")
    return value


def _state_of(model: Any) -> dict[str, torch.Tensor]:
    """What PEFT saves of an adapter. The embedding layers are no part of it; asking whether they are would go to the network."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)
