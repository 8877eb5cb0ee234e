"""The soft prompt: what a method trains, in PEFT's file format.

Making a soft prompt (methods.py) and using one (the shared-prefix pass) are separate, as in google-research/prompt-tuning. Whatever
reparameterisation trained it, what is kept is the computed result, as PEFT keeps it: one tensor.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig, PromptTuningInit, TaskType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.engine.base_model import BaseModel
from pipeline.errors import BundleError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
TENSOR_NAME = "prompt_embeddings"
# A trained row this many times longer than the longest vocabulary row is no prompt that training produces.
LARGEST_NORM_RATIO = 100.0


@dataclass(frozen=True)
class SoftPrompt:
    """One soft prompt, float32: `embeddings` [P, H] of virtual tokens, or `key_values` [P, 2 x layers x heads x head dimension].

    Key/value prefixes are laid out as PEFT lays them out: for every virtual token the layers' keys and values in turn.
    """

    values: torch.Tensor
    kind: Literal["embeddings", "key_values"] = "embeddings"

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.values.shape[0]

    def detached(self) -> "SoftPrompt":
        """A copy that takes no gradient."""
        return SoftPrompt(self.values.detach().clone(), self.kind)


def save_soft_prompt(
    folder: Path,
    *,
    soft_prompt: SoftPrompt,
    base_model_id: str,
    revision: str | None,
    init_text: str,
    key_value_shape: tuple[int, int, int] | None = None,
) -> None:
    """Write the two files that `PeftModel.from_pretrained` reads.

    Embeddings become a prompt-tuning adapter whatever method made them, since that is what they are at inference; key/value
    prefixes become a prefix-tuning adapter and need `key_value_shape`, (layers, heads, head dimension) of the base model.
    """
    values = soft_prompt.values.detach().float().cpu().contiguous()
    common: dict[str, Any] = {
        "base_model_name_or_path": base_model_id,
        "revision": revision,
        "task_type": TaskType.CAUSAL_LM,
        "inference_mode": True,
        "num_virtual_tokens": values.shape[0],
        "num_transformer_submodules": 1,
    }
    config: PromptLearningConfig
    if soft_prompt.kind == "key_values":
        if key_value_shape is None:
            raise ValueError("a key/value prefix is saved with the key_value_shape of its base model")
        layers, heads, size = key_value_shape
        config = PrefixTuningConfig(
            token_dim=heads * size, num_attention_heads=heads, num_layers=layers, encoder_hidden_size=heads * size, **common
        )
    else:
        config = PromptTuningConfig(
            token_dim=values.shape[1],
            prompt_tuning_init=PromptTuningInit.TEXT,
            prompt_tuning_init_text=init_text,
            tokenizer_name_or_path=base_model_id,
            **common,
        )
    config.save_pretrained(str(folder))
    save_file({TENSOR_NAME: values}, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_soft_prompt(folder: Path, base: BaseModel, *, key_value_shape: tuple[int, int, int] | None = None) -> SoftPrompt:
    """Read a soft prompt saved by us or by PEFT, float32 on the base model's device.

    Raises BundleError when the files are no prompt-tuning or prefix-tuning adapter in safetensors, or when the tensor does not
    fit the base model: another width, not finite, or rows far longer than any of the vocabulary.
    """
    path = folder / WEIGHTS_FILE
    kind = _kind(folder / CONFIG_FILE)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {error}. Fetch the bundle again.") from error
    if list(tensors) != [TENSOR_NAME]:
        raise BundleError(f"{path} holds the tensors {sorted(tensors)}, expected only {TENSOR_NAME!r}. This is no prompt-tuning adapter.")
    values = tensors[TENSOR_NAME].float()
    width = base.hidden_size
    if kind == "key_values":
        if key_value_shape is None:
            raise BundleError(f"{path} is a key/value prefix; this use of {base.source['id']} takes virtual tokens.")
        layers, heads, size = key_value_shape
        width = 2 * layers * heads * size
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise BundleError(f"{path} has shape {list(values.shape)}, the base model {base.source['id']} needs [P, {width}].")
    if not bool(values.isfinite().all()):
        raise BundleError(f"{path} holds NaN or infinite values. Tune the prompt again.")
    if kind == "embeddings":
        _check_norm(path, values, base)
    return SoftPrompt(values.to(base.device), kind)


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Hex sha256 of a tensor's float32 values in row order, whatever file they lie in."""
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _kind(path: Path) -> Literal["embeddings", "key_values"]:
    """Which kind of soft prompt an adapter config describes; only the one word is read, so it can name no class to import."""
    try:
        peft_type: Any = json.loads(path.read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read as PEFT's adapter config: {error!r}. Fetch the bundle again.") from error
    if peft_type == "PROMPT_TUNING":
        return "embeddings"
    if peft_type == "PREFIX_TUNING":
        return "key_values"
    raise BundleError(f"{path} describes a {peft_type!r} adapter; soft prompts are PROMPT_TUNING or PREFIX_TUNING.")


def _check_norm(path: Path, values: torch.Tensor, base: BaseModel) -> None:
    longest = float(base.vocabulary_embeddings().float().norm(dim=1).max())
    found = float(values.norm(dim=1).max())
    if found > LARGEST_NORM_RATIO * longest:
        raise BundleError(
            f"{path} has a row of norm {found:.3g}; the longest vocabulary row has {longest:.3g}. The file was altered or training diverged."
        )
