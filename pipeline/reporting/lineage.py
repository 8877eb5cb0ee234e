"""What a run was made from, as names and texts."""

import posixpath
import re
from collections.abc import Mapping
from typing import Any, cast

from pipeline.layout import FILES
from pipeline.reporting.formats.data import Ingest, Split
from pipeline.reporting.formats.training import Manifest


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as (dotted key, text) pairs; nothing is left out, null is "not recorded"."""
    if isinstance(value, Mapping):
        pairs = cast(Mapping[str, Any], value).items()
        return [line for key, item in pairs for line in flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(item) for item in cast(list[Any], value)))]
    return [(prefix, "not recorded" if value is None else str(value))]


def data_docs_link(path: str, task: str) -> str | None:
    """The address of Data Docs relative to the card, or None when the report names no plain relative path."""
    folder = posixpath.dirname(FILES["card"].format(task=task))
    relative = posixpath.normpath(path.removeprefix(f"{folder}/"))
    if not path or relative.startswith(("/", "..")) or re.search(r"[:\\?#\s]", relative):
        return None
    return relative


def lineage(ingest: Ingest, split: Split, manifest: Manifest, manifest_sha256: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the tuned prompt was made from, as titled lists of (name, text)."""
    prompt, base, training, code = manifest.soft_prompt, manifest.base_model, manifest.training, manifest.code
    state = {None: "not recorded", True: "yes, with changes that were not committed", False: "no"}[code.dirty]
    return [
        (
            "Tuned prompt",
            flatten(
                {
                    "soft prompt sha256": prompt.sha256,
                    "shape": " × ".join(str(size) for size in prompt.shape),
                    "dtype": prompt.dtype,
                    "manifest sha256": manifest_sha256,
                    "method": training.method.replace("_", " "),
                    "seed": training.seed,
                    "steps": training.steps,
                    "best step": training.best_step,
                    "params sha256": manifest.params_sha256,
                }
            ),
        ),
        (
            "Base model",
            flatten(
                {
                    "id": base.id,
                    "revision": base.revision,
                    "weights sha256": base.weights_sha256,
                    "tokenizer sha256": base.tokenizer_sha256,
                    "dtype": base.dtype,
                    "attention": base.attention,
                    "source": base.source,
                }
            ),
        ),
        (
            "Data",
            flatten(
                {
                    "source sha256": ingest.source_sha256,
                    "raw sha256": ingest.raw_sha256,
                    "train sha256": manifest.data.train_sha256,
                    "validation sha256": manifest.data.validation_sha256,
                    "split ids sha256": split.split_ids_sha256,
                }
            ),
        ),
        ("Code", flatten({"commit": code.commit, "dirty": state} | ({"diff sha256": code.diff_sha256} if code.dirty else {}))),
        ("Libraries", flatten(manifest.libraries)),
        ("Hardware", flatten(manifest.hardware, "" if isinstance(manifest.hardware, Mapping) else "machine")),
    ]
