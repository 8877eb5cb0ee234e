"""The soft prompt: what a method trains, in PEFT's file format.

Making a soft prompt (methods.py) and using one (the shared-prefix pass) are separate, as in google-research/prompt-tuning. Whatever
reparameterisation trained it, what is kept is the computed result, as PEFT keeps it: one tensor.
"""

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig, PromptTuningInit, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.engine.base_model import BaseModel
from pipeline.engine.prefix_cache import KeyValues, empty_cache, layers_of
from pipeline.errors import BundleError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
TENSOR_NAME = "prompt_embeddings"
# What PEFT's adapters of these types hold at inference. p-tuning's file has the rows its network computed.
KINDS: Mapping[str, Literal["embeddings", "key_values"]] = {
    "PROMPT_TUNING": "embeddings",
    "P_TUNING": "embeddings",
    "MULTITASK_PROMPT_TUNING": "embeddings",
    "PREFIX_TUNING": "key_values",
}
DTYPES = ("F32", "F16", "BF16")
# PEFT writes about 1 KB of config and 100 bytes of header.
LARGEST_CONFIG = 65_536
LARGEST_HEADER = 65_536
# A trained row this many times longer than the longest one the base model itself knows is no prompt that training produces.
LARGEST_NORM_RATIO = 100.0
TOKENS_COMPARED = 64


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


def load_soft_prompt(folder: Path, base: BaseModel) -> SoftPrompt:
    """Read a soft prompt saved by us or by PEFT (prompt tuning, p-tuning, multitask of one task, prefix tuning), float32.

    Everything in the folder may have been written by somebody else: of the config a few values are read and compared, never a class
    or a path; the weights are safetensors, opened only when they are no longer than the config and the base model allow.
    Raises BundleError when a file is a link, too long or not what its name says, or when the tensors do not fit the base model:
    another shape, integers, not finite, or rows far longer than any the base model knows.
    """
    config = _read_config(folder / CONFIG_FILE, base)
    kind = KINDS[config["peft_type"]]
    count = config["num_virtual_tokens"]
    known = _longest_embedding(base) if kind == "embeddings" else _known_key_values(base)
    shapes = {TENSOR_NAME: [count, known.shape[1]]}
    if config["peft_type"] == "MULTITASK_PROMPT_TUNING":
        ranks = config["num_ranks"]
        shapes |= {"prefix_task_cols": [1, count, ranks], "prefix_task_rows": [1, ranks, known.shape[1]]}
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path, shapes, base)
    values = tensors[TENSOR_NAME]
    if len(tensors) > 1:
        values = values * (tensors["prefix_task_cols"][0] @ tensors["prefix_task_rows"][0])
    _check_values(path, values, known)
    return SoftPrompt(values.to(base.device), kind)


def flatten_key_values(layers: KeyValues) -> torch.Tensor:
    """Keys and values of one prefix, per layer a pair of [1, heads, P, d], as a soft prompt's values [P, 2 x layers x heads x d]."""
    stacked = torch.stack([tensor[0] for pair in layers for tensor in pair])  # [2 x layers, heads, P, d]
    return stacked.permute(2, 0, 1, 3).reshape(stacked.shape[2], -1).float()


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Hex sha256 of a tensor's float32 values in row order, whatever file they lie in."""
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 of named tensors: of each name, shape and `tensor_sha256`, in the order of the names."""
    lines = "".join(f"{name} {list(state[name].shape)} {tensor_sha256(state[name])}\n" for name in sorted(state))
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_config(path: Path, base: BaseModel) -> dict[str, Any]:
    check_plain_file(path, LARGEST_CONFIG)
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as PEFT's adapter config: {error}. Fetch the bundle again.") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path} holds a {type(config).__name__}, expected PEFT's adapter config. Fetch the bundle again.")
    expected = {
        "peft_type": (tuple(KINDS), config.get("peft_type") in list(KINDS)),
        "task_type": ("CAUSAL_LM", config.get("task_type") in (None, "CAUSAL_LM")),
        # A class that somebody wants to be imported; PEFT writes one when an adapter has no task_type.
        "auto_mapping": (None, config.get("auto_mapping") is None),
        "num_transformer_submodules": (1, config.get("num_transformer_submodules") in (None, 1)),
        "num_virtual_tokens": (f"1 to {base.context_length}", _is_count(config.get("num_virtual_tokens"), base.context_length)),
    }
    if config.get("peft_type") == "MULTITASK_PROMPT_TUNING":
        expected["num_tasks"] = (1, config.get("num_tasks") == 1)
        expected["num_ranks"] = (f"1 to {base.hidden_size}", _is_count(config.get("num_ranks"), base.hidden_size))
    for name, (wanted, fits) in expected.items():
        if not fits:
            raise BundleError(
                f"{path}: {name} is {config.get(name)!r:.80}, expected {wanted}. Use a soft prompt of one task of a decoder-only base model."
            )
    return config


def _is_count(value: Any, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def read_tensors(path: Path, shapes: Mapping[str, list[int]], base: BaseModel) -> dict[str, torch.Tensor]:
    """The tensors of these names and shapes, float32; nothing is read into memory before names, shapes and types are known to fit."""
    check_plain_file(path, LARGEST_HEADER + 4 * sum(math.prod(shape) for shape in shapes.values()))
    try:
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != set(shapes):
                raise BundleError(f"{path} holds the tensors {sorted(file.keys())}, expected {sorted(shapes)}. Use another adapter.")
            for name, shape in shapes.items():
                found = file.get_slice(name)
                if found.get_shape() != shape:
                    raise BundleError(
                        f"{path}: {name} has shape {found.get_shape()}, its config and the base model {base.source['id']} need {shape}. "
                        "Load it with the base model it was tuned on."
                    )
                if found.get_dtype() not in DTYPES:
                    raise BundleError(f"{path}: {name} holds {found.get_dtype()} values, expected one of {DTYPES}. Tune the prompt again.")
            # A copy: the file stays mapped into memory, and what happens to it later must not change the soft prompt.
            return {name: file.get_tensor(name).to(torch.float32, copy=True) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {error}. Fetch the bundle again.") from error


def check_plain_file(path: Path, largest: int) -> None:
    """Refuse links, which could lead out of the folder, devices and pipes, and files longer than `largest` bytes."""
    try:
        status = path.lstat()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}. Fetch the bundle again.") from error
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a plain file. Copy the file itself into the folder.")
    if status.st_size > largest:
        raise BundleError(f"{path} has {status.st_size} bytes, such a file has at most {largest}. Fetch the bundle again.")


def _check_values(path: Path, values: torch.Tensor, known: torch.Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise BundleError(f"{path} holds NaN or infinite values. Tune the prompt again.")
    found, longest = float(values.norm(dim=1).max()), float(known.norm(dim=1).max())
    # Not `found > limit`: the norm of huge finite values is infinite, and a broken base model's is NaN.
    if not found <= LARGEST_NORM_RATIO * longest:
        raise BundleError(
            f"{path} has a row of norm {found:.3g}; the longest the base model itself has is {longest:.3g} and {LARGEST_NORM_RATIO:g} times "
            "that is allowed. The file was altered, training diverged, or it was tuned on another base model."
        )


def _longest_embedding(base: BaseModel) -> torch.Tensor:
    """The longest row of the vocabulary as the embedding layer gives it (some families scale it), [1, H]."""
    with torch.no_grad():
        return base.model.get_input_embeddings()(base.vocabulary_embeddings().float().norm(dim=1).argmax()[None]).float()


def _known_key_values(base: BaseModel) -> torch.Tensor:
    """What the base model computes for a few of its tokens, in the layout of a soft prompt's values."""
    cache = empty_cache()
    ids = torch.arange(min(TOKENS_COMPARED, base.context_length, len(base.vocabulary_embeddings())), device=base.device)
    with torch.no_grad():
        base.model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return flatten_key_values(layers_of(cache))
