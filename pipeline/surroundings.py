"""`python -m pipeline.surroundings`: what a training would have here: the base model's files, the libraries, the hardware.

It reads a manifest's `base_model` as JSON from stdin and prints JSON. A process of its own, because finding out needs torch, and because the
working directory decides where a relative path leads.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from pipeline.engine.base_model import locate, tokenizer_identity
from pipeline.engine.hardware import choose_attention, choose_device, choose_dtype, describe_hardware, dtype_name
from pipeline.engine.model_files import default_cache
from pipeline.errors import PromptmillError
from pipeline.lineage import library_versions
from pipeline.progress import announce


def surroundings(recorded: Mapping[str, Any], asked: Mapping[str, str], libraries: list[str]) -> dict[str, Any]:
    """`base_model` (its hashes here, and what `asked`'s dtype and attention come to), `libraries` and `hardware`, as a manifest has them.

    Raises BaseModelError when the base model is not to be found.
    """
    folder, weights_sha256 = locate(recorded["source"], default_cache(), announce)
    device = choose_device()
    return {
        "base_model": {
            "weights_sha256": weights_sha256,
            "tokenizer_sha256": tokenizer_identity(folder),
            # An encoder is trained in float32 whatever the machine would choose.
            "dtype": recorded["dtype"]
            if asked["dtype"] == "auto" and recorded["dtype"] == "float32"
            else dtype_name(choose_dtype(asked["dtype"], device)),
            "attention": choose_attention(asked["attention"], device),
        },
        "libraries": library_versions(libraries),
        "hardware": describe_hardware(device),
    }


def main() -> int:
    """Read the question from stdin, print the answer, return the exit code."""
    question = json.load(sys.stdin)
    try:
        found = surroundings(question["base_model"], question["asked"], question["libraries"])
    except PromptmillError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
