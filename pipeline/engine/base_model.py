"""The frozen base model: finding it, converting GGUF once, loading it, and knowing exactly which one it is.

A base model comes from a GGUF file (a local one, or one inside an installed package), a local folder, or the Hugging Face hub at a
revision. Only safetensors and GGUF are read, and no code that comes with a model is ever run.
"""

import contextlib
import errno
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from pipeline.engine.frozen_linear import multiply_by_onednn
from pipeline.engine.hardware import choose_attention, choose_device, choose_dtype, dtype_name, set_product_precision
from pipeline.engine.model_files import (
    CACHE_VARIABLE,
    LARGEST_LIMIT,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    converted_folder,
    default_cache,
    downloaded,
    gguf_file,
    one_line,
    sha256_file,
    sha256_of_files,
)
from pipeline.engine.support import Architecture
from pipeline.errors import BaseModelError

CONVERSION_FILE = "conversion.json"
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
AUTO_CLASSES: Mapping[Architecture, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder_decoder": AutoModelForSeq2SeqLM,
    "encoder": AutoModelForSequenceClassification,
}
# What the classification head is called in PEFT, which trains and saves modules of these names.
CLASSIFIERS = ("classifier", "score")
# A Q4 file stores a weight in about 5 bits; in float32 that is 6.4 times as much.
CONVERSION_GROWTH = 6.5


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model in eval() mode whose parameters take no gradient, and the identity of its files.

    `head_modules` are the modules of an encoder that its files do not hold (the classification head, and a pooler where it is
    missing): they start random, so whoever trains on this base model trains and saves them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    source: Mapping[str, Any]
    weights_sha256: str
    tokenizer_sha256: str
    device: torch.device
    dtype: torch.dtype
    attention: str
    architecture: Architecture = "decoder"
    head_modules: tuple[str, ...] = ()

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.vocabulary_embeddings().shape[1])

    def vocabulary_embeddings(self) -> torch.Tensor:
        """The embedding of every token, [V, H] in the base model's dtype."""
        embeddings: Any = self.model.get_input_embeddings()
        return embeddings.weight

    @property
    def context_length(self) -> int:
        """Most tokens the model can attend to: from the config, since a tokenizer may report 1e30.

        A family with relative positions (T5) has no limit there: then it is what the tokenizer was made for. An encoder's is the
        smaller of the two, because families that number positions from the padding token (RoBERTa) have a few that no text reaches.
        """
        config = self.model.config
        of_config = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or LARGEST_LIMIT
        of_tokenizer = min(int(self.tokenizer.model_max_length), LARGEST_LIMIT)
        if self.architecture == "encoder" or of_config == LARGEST_LIMIT:
            return min(int(of_config), of_tokenizer)
        return int(of_config)

    def identity(self) -> dict[str, Any]:
        """What the manifest of a tuned prompt records about its base model; `chat_template_sha256` is null where the tokenizer has none."""
        chat: Any = getattr(self.tokenizer, "chat_template", None)
        return {
            "id": self.source["id"],
            "revision": self.source.get("revision"),
            "source": dict(self.source),
            "weights_sha256": self.weights_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "chat_template_sha256": None if not isinstance(chat, str) else hashlib.sha256(chat.encode()).hexdigest(),
            "dtype": dtype_name(self.dtype),
            "attention": self.attention,
        }


def load_base_model(
    *,
    source: Mapping[str, Any],
    dtype: str = "auto",
    attention: str = "auto",
    tf32: bool = False,
    device: str = "auto",
    device_map: Literal["auto", "none"] = "none",
    num_labels: int | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> BaseModel:
    """Find, convert when needed, and load a base model with the class that its config asks for.

    `source` has `kind` (`package_gguf`, `gguf`, `directory` or `hub`), `id` and the keys of that kind; a relative `path` starts at the
    working directory. `tf32` is set for the whole process (see hardware.py). `device_map: auto` lets accelerate spread a model that is too large for one GPU. An encoder gets a
    classification head of `num_labels`, and is loaded in float32 when `dtype` is auto, since its head is trained in the model's own
    dtype. `say` is told about slow steps. Raises BaseModelError.
    """
    folder, weights_sha256 = locate(source, cache or default_cache(), say)
    on = choose_device(device)
    set_product_precision(on, tf32=tf32)
    kernel = choose_attention(attention, on)
    try:
        architecture = architecture_of(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False), source["id"])
        as_dtype = torch.float32 if architecture == "encoder" and dtype == "auto" else choose_dtype(dtype, on)
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, loading = AUTO_CLASSES[architecture].from_pretrained(
                folder,
                dtype=as_dtype,
                attn_implementation=kernel,
                device_map=None if device_map == "none" else "auto" if on.type == "cuda" else {"": "cpu"},
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # we look ourselves, see _head_modules
                **_head_arguments(architecture, num_labels, source["id"]),
            )
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"The base model {source['id']} in {folder} cannot be loaded: {one_line(error)}") from error
    head_modules = _head_modules(architecture, loading, source["id"], folder)
    model = (model if device_map == "auto" else model.to(on)).eval().requires_grad_(False)
    multiply_by_onednn(model)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        folder=folder,
        source=dict(source),
        weights_sha256=weights_sha256,
        tokenizer_sha256=tokenizer_identity(folder),
        device=on,
        dtype=as_dtype,
        attention=kernel,
        architecture=architecture,
        head_modules=head_modules,
    )


def tokenizer_identity(folder: Path) -> str:
    """The sha256 that identifies the tokenizer in a model folder."""
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if "tokenizer.json" not in names:
        names += [name for name in VOCABULARY_FILES if (folder / name).is_file()]
    return sha256_of_files(folder, names)


def architecture_of(config: Any, model_id: str) -> Architecture:
    """Which of the three architectures a transformers config describes; raises BaseModelError when it is none of them.

    Many encoder families can also be built as decoders, and some decoders as encoders: only a config that says `is_decoder` is one.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False) and kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "encoder_decoder"
    fills_masks = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if fills_masks and kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return "encoder"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    raise BaseModelError(
        f"{model_id} is of the type {kind!r}, which is neither a decoder-only language model, nor an encoder-decoder, nor an encoder "
        "that classifies. Choose another base model."
    )


def _head_arguments(architecture: Architecture, num_labels: int | None, model_id: str) -> dict[str, Any]:
    if architecture != "encoder":
        return {}
    if not num_labels:
        raise BaseModelError(f"{model_id} is an encoder, whose classification head needs the number of labels, found {num_labels!r}.")
    return {"num_labels": num_labels}


def _head_modules(architecture: Architecture, loading: Mapping[str, Any], model_id: str, folder: Path) -> tuple[str, ...]:
    """Modules that loading leaves random: those of an encoder's head may be, even where the files hold a head for other labels.

    Anything else would differ at every load and is refused.
    """
    names = sorted({*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])})
    modules = sorted({name.rpartition(".")[0] for name in names})
    strange = [name for name in modules if ".layer" in name or "embed" in name]
    if names and (architecture != "encoder" or strange):
        raise BaseModelError(
            f"{folder} lacks {len(names)} weights of {model_id}, or has them in another shape ({', '.join(names[:3])} first). "
            "They would be random. Get the complete model."
        )
    return tuple(name for name in modules if not any(name.endswith(classifier) for classifier in CLASSIFIERS))


def locate(source: Mapping[str, Any], cache: Path, say: Callable[[str], None]) -> tuple[Path, str]:
    """The folder to load from, converted when needed, and the sha256 that identifies the weights; raises BaseModelError."""
    if source["kind"] in ("package_gguf", "gguf"):
        gguf = gguf_file(source)
        return convert_gguf(gguf, cache, say), sha256_file(gguf)
    folder = downloaded(source, HUB_FILES) if source["kind"] == "hub" else Path(source["path"])
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder} holds no config.json, so it is no Hugging Face model folder. Correct base_model.source.path.")
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weights:
        raise BaseModelError(
            f"{folder} holds no *.safetensors file; other weight formats are not read. Convert the model with save_pretrained."
        )
    return folder, sha256_of_files(folder, weights)


def convert_gguf(gguf: Path, cache: Path, say: Callable[[str], None] = lambda message: None) -> Path:
    """The folder in the cache with this GGUF file as float32 safetensors; made when absent or damaged. Raises BaseModelError."""
    folder = converted_folder(gguf, cache)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _conversion_is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                say(f"Converting {gguf.name} to safetensors, once; it is kept in {folder}")
                _convert(gguf, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BaseModelError(f"No space left for the model cache in {cache}. {_space_advice()}") from error
        raise BaseModelError(f"The model cache {cache} cannot be used: {one_line(error)} {_space_advice()}") from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    needed = int(gguf.stat().st_size * CONVERSION_GROWTH)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise BaseModelError(
            f"The model cache {folder.parent} needs {needed / 1e9:.1f} GB to convert {gguf.name} and has {free / 1e9:.1f} GB free. {_space_advice()}"
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loader = AUTO_CLASSES[architecture_of(config, gguf.name)]
            model: Any = loader.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            # The weights are plain float32 now; with these marks left save_pretrained refuses a GGUF model.
            model.hf_quantizer = None
            del model.config.quantization_config
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        files = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        (temporary / CONVERSION_FILE).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _conversion_is_whole(folder: Path) -> bool:
    record = folder / CONVERSION_FILE
    if not record.is_file():
        return False
    try:
        files: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError):
        return False
    return all((folder / name).is_file() and sha256_file(folder / name) == sha256 for name, sha256 in files.items())


def _space_advice() -> str:
    return f"Free some space, or set {CACHE_VARIABLE} to a folder on another disk."


@contextlib.contextmanager
def _quiet_transformers() -> Generator[None]:
    """Hide transformers' own progress bars and notes while a model loads: ours would be torn apart by them.

    The bar of the GGUF conversion obeys no setting of transformers, so what is written to stderr meanwhile is dropped; errors are raised.
    """
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
