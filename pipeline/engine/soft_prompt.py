"""The soft prompt [P, H]: PEFT's parameterisation and PEFT's file format.

Making a soft prompt (here) and using one (the shared-prefix pass) are separate, as in google-research/prompt-tuning.
"""

import hashlib
from pathlib import Path

import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType
from peft.tuners.prompt_tuning import PromptEmbedding
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.engine.base_model import BaseModel
from pipeline.errors import BundleError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
TENSOR_NAME = "prompt_embeddings"
# A trained row this many times longer than the longest vocabulary row is no prompt that training produces.
LARGEST_NORM_RATIO = 100.0


def initial_soft_prompt(*, base: BaseModel, num_virtual_tokens: int, init_text: str) -> torch.Tensor:
    """PEFT's TEXT initialisation: the embeddings of `init_text`'s tokens, tiled or cut to P rows; [P, H] float32."""
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=num_virtual_tokens,
        token_dim=base.hidden_size,
        num_transformer_submodules=1,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=init_text,
        tokenizer_name_or_path=str(base.folder),
    )
    encoder = PromptEmbedding(config, base.model.get_input_embeddings())
    return encoder.embedding.weight.detach().float().clone()


def save_soft_prompt(folder: Path, *, soft_prompt: torch.Tensor, base_model_id: str, revision: str | None, init_text: str) -> None:
    """Write the two files that `PeftModel.from_pretrained` reads. `soft_prompt` is [P, H] float32."""
    tensor = soft_prompt.detach().float().cpu().contiguous()
    config = PromptTuningConfig(
        base_model_name_or_path=base_model_id,
        revision=revision,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        num_virtual_tokens=tensor.shape[0],
        token_dim=tensor.shape[1],
        num_transformer_submodules=1,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=init_text,
        tokenizer_name_or_path=base_model_id,
    )
    config.save_pretrained(str(folder))
    save_file({TENSOR_NAME: tensor}, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_soft_prompt(folder: Path, base: BaseModel) -> torch.Tensor:
    """Read a soft prompt saved by us or by PEFT, [P, H] float32 on the base model's device.

    Raises BundleError when the file is no safetensors, lacks the tensor, or the tensor does not fit the base model: other H,
    not finite, or rows far longer than any of the vocabulary.
    """
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {error}. Fetch the bundle again.") from error
    if list(tensors) != [TENSOR_NAME]:
        raise BundleError(f"{path} holds the tensors {sorted(tensors)}, expected only {TENSOR_NAME!r}. This is no prompt-tuning adapter.")
    tensor = tensors[TENSOR_NAME].float()
    if tensor.ndim != 2 or tensor.shape[1] != base.hidden_size:
        raise BundleError(f"{path} has shape {list(tensor.shape)}, the base model {base.source['id']} needs [P, {base.hidden_size}].")
    if not bool(tensor.isfinite().all()):
        raise BundleError(f"{path} holds NaN or infinite values. Tune the prompt again.")
    longest = float(base.vocabulary_embeddings().float().norm(dim=1).max())
    found = float(tensor.norm(dim=1).max())
    if found > LARGEST_NORM_RATIO * longest:
        raise BundleError(
            f"{path} has a row of norm {found:.3g}; the longest vocabulary row has {longest:.3g}. The file was altered or training diverged."
        )
    return tensor.to(base.device)


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Hex sha256 of a tensor's float32 values in row order, whatever file they lie in."""
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
