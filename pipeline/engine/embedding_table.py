"""The base model's input embeddings alone: texts as points in its space, without a forward pass and without the rest of its weights.

A text's point is the mean of its tokens' embeddings. That is blind to word order and enough to tell two collections of texts apart,
which is what it is for; the base model itself is never loaded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from pipeline.engine.base_model import AUTO_CLASSES, architecture_of, default_cache, locate, tokenizer_identity
from pipeline.errors import BaseModelError

TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class EmbeddingTable:
    """The embedding of every token, `weights` [V, H] in the dtype of its file, with the tokenizer that numbers the tokens."""

    weights: torch.Tensor
    tokenizer: PreTrainedTokenizerBase
    base_model_id: str
    weights_sha256: str
    tokenizer_sha256: str

    def identity(self) -> dict[str, str]:
        """What two collections must share for their points to be comparable."""
        return {"id": self.base_model_id, "weights_sha256": self.weights_sha256, "tokenizer_sha256": self.tokenizer_sha256}

    def mean_pooled(self, texts: Sequence[str], *, maximum_tokens: int) -> NDArray[np.float32]:
        """The mean embedding of the first `maximum_tokens` tokens of each text, [N, H]; a text without tokens is the zero vector."""
        pooled = [self._pool(texts[first : first + TEXTS_AT_ONCE], maximum_tokens) for first in range(0, len(texts), TEXTS_AT_ONCE)]
        return np.concatenate([np.zeros((0, self.weights.shape[1]), dtype=np.float32), *pooled])

    def _pool(self, texts: Sequence[str], maximum_tokens: int) -> NDArray[np.float32]:
        # Text that spells a special token stays text, as in the templates.
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        rows = [ids[:maximum_tokens] for ids in encoded]
        ends = np.cumsum([len(ids) for ids in rows])
        tokens = torch.tensor([token for ids in rows for token in ids], dtype=torch.long)
        offsets = torch.tensor([0, *ends[:-1].tolist()], dtype=torch.long)
        known, numbers = torch.unique(tokens, return_inverse=True)
        return torch.nn.functional.embedding_bag(numbers, self.weights[known].float(), offsets, mode="mean").numpy()


def load_embedding_table(
    *, source: Mapping[str, Any], cache: Path | None = None, say: Callable[[str], None] = lambda message: None
) -> EmbeddingTable:
    """Find the base model of `source` (as `load_base_model` does, converting it when needed) and read its input embeddings.

    Raises BaseModelError when it cannot be found, or none of its files holds the embeddings.
    """
    folder, weights_sha256 = locate(source, cache or default_cache(), say)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        names, shape = _names(config, str(source["id"]))
        weights = _read(folder, names)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:500]
        raise BaseModelError(f"The embeddings of {source['id']} in {folder} cannot be read: {cause} Get the complete model.") from error
    if weights is None or tuple(weights.shape) != shape:
        found = "no file holds it" if weights is None else f"it is {tuple(weights.shape)}"
        raise BaseModelError(f"{folder} lacks the tensor {names[0]} of shape {shape}: {found}. Get the complete model {source['id']}.")
    return EmbeddingTable(weights, tokenizer, str(source["id"]), weights_sha256, tokenizer_identity(folder))


def _names(config: Any, model_id: str) -> tuple[list[str], tuple[int, ...]]:
    """The names that the input embeddings may have in the files, likeliest first, and their shape: from a model without memory."""
    loader = AUTO_CLASSES[architecture_of(config, model_id)]
    with torch.device("meta"):
        model: Any = loader.from_config(config)
    weights = model.get_input_embeddings().weight
    names = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weights]
    # Files that were saved from the bare model lack the name of that part.
    bare = [name.removeprefix(f"{model.base_model_prefix}.") for name in names]
    return list(dict.fromkeys([*names, *bare])), tuple(weights.shape)


def _read(folder: Path, names: Sequence[str]) -> torch.Tensor | None:
    held = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _tensor_names(path) if name in names}
    for name in names:
        if name in held:
            with safe_open(held[name], framework="pt") as file:
                return file.get_tensor(name)
    return None


def _tensor_names(path: Path) -> Iterator[str]:
    with safe_open(path, framework="pt") as file:
        yield from file.keys()
