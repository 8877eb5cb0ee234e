"""What the files of a base model say about its architecture before a weight is read; imports neither torch nor transformers."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.engine.model_files import GGUF_MAGIC, gguf_file
from pipeline.engine.support import Architecture, architecture_stated
from pipeline.errors import BaseModelError

# GGUF (the specification in ggml's docs/gguf.md): little-endian; a scalar's type is a number, and so is text's.
GGUF_VERSIONS = (2, 3)
GGUF_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_TEXT = 8
LONGEST_GGUF_TEXT = 2**16
# An unreachable hub must not hold up stages that do not need the model.
HUB_SECONDS = 5.0


def stated_architecture(source: Mapping[str, Any], *, root: Path) -> Architecture | None:
    """The architecture that the files of a base model state; a relative path starts at `root`.

    Of a model on the hub its config.json alone is fetched, unless it is in the local cache. None when the files are not there or do
    not tell: loading the model will then say what is wrong or which architecture it is.
    """
    try:
        if source["kind"] == "package_gguf":
            return _of_gguf(gguf_file(source))
        if source["kind"] == "gguf":
            return _of_gguf(root / source["path"])
        config = _hub_config(source) if source["kind"] == "hub" else root / source["path"] / "config.json"
        found: Any = json.loads(config.read_text(encoding="utf-8")) if config else None
    except (BaseModelError, OSError, ValueError, RecursionError):
        return None
    return architecture_stated(cast(dict[str, Any], found)) if isinstance(found, dict) else None


def _of_gguf(path: Path) -> Architecture | None:
    """transformers reads decoders and the T5 family from GGUF files."""
    with path.open("rb") as stream:
        name = _gguf_architecture(stream)
    if name is None:
        return None
    return "encoder_decoder" if "t5" in name else "decoder"


def _gguf_architecture(stream: BinaryIO) -> str | None:
    """The value of `general.architecture`, which stands among the first keys: those before an array are looked at."""
    try:
        magic, version, _, keys = struct.unpack("<4sIQQ", stream.read(24))
        if magic != GGUF_MAGIC or version not in GGUF_VERSIONS:
            return None
        for _ in range(keys):
            key = _gguf_text(stream)
            (kind,) = struct.unpack("<I", stream.read(4))
            if kind == GGUF_TEXT:
                value = _gguf_text(stream)
                if key == "general.architecture":
                    return value
            elif kind in GGUF_SCALAR_BYTES:
                stream.read(GGUF_SCALAR_BYTES[kind])
            else:
                return None
    except struct.error:  # the file ends in the middle
        return None
    return None


def _gguf_text(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > LONGEST_GGUF_TEXT:
        raise ValueError(f"a text of {length} bytes among the first keys of a GGUF file")
    return stream.read(length).decode("utf-8", errors="replace")


def _hub_config(source: Mapping[str, Any]) -> Path | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(source["id"], "config.json", revision=source["revision"])
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(hf_hub_download(source["id"], "config.json", revision=source["revision"], etag_timeout=HUB_SECONDS))
    except Exception:  # noqa: BLE001  the errors of the HTTP client too, which is another one in other versions; loading says what is wrong
        return None
