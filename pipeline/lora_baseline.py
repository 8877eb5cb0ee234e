"""The LoRA baseline's folder, and what either training cost."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StageInputError
from pipeline.layout import Paths
from pipeline.manifest import verify_bundle
from pipeline.records import read_json, read_jsonl

RECORD_FILE, BUNDLE_FOLDER, LOG_FILE = "lora.json", "bundle", "train_log.jsonl"


def lora_bundle(folder: Path, *, wanted: bool) -> Path | None:
    """The verified bundle in the folder `lora`, None when the params want none; raises StageInputError when folder and params disagree."""
    enabled = read_json(folder / RECORD_FILE).get("enabled")
    if enabled is not wanted:
        raise StageInputError(
            f"{folder / RECORD_FILE} has enabled {enabled!r}, lora_baseline.enabled is {wanted}. Run the stage tune_lora again: `dvc repro`."
        )
    if not wanted:
        return None
    verify_bundle(folder / BUNDLE_FOLDER)
    return folder / BUNDLE_FOLDER


def training_costs(inputs: Paths, lora: Path | None) -> dict[str, dict[str, Any]]:
    """What the training of the soft prompt, and of the LoRA at `lora` if there is one, took (see `training_cost`)."""
    costs = {"tuned": training_cost(verify_bundle(inputs.bundle), read_jsonl(inputs.train_log))}
    if lora is not None:
        costs["lora"] = training_cost(verify_bundle(lora), read_jsonl(lora.with_name(LOG_FILE)))
    return costs


def training_cost(manifest: Mapping[str, Any], log: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`seconds` of all optimiser steps of all trials (without evaluations), `steps`, `trials`, and `values`: the numbers the adapter holds.

    Trials that share a pass share its time, which the log repeats for each of them.
    """
    seconds: dict[int, float] = {}
    for record in log:
        if record["event"] == "step":
            seconds[record["step"]] = max(float(record["seconds"]), seconds.get(record["step"], 0.0))
    return {
        "seconds": math.fsum(seconds.values()),
        "steps": len(seconds),
        "trials": len(manifest["training"]["trials"]),
        "values": math.prod(manifest["soft_prompt"]["shape"]),
    }
