"""A workspace as the stages leave it, small and written by hand, and ways to damage what MLflow stores."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from safetensors.numpy import save_file

from pipeline.data.drift import drift_report
from pipeline.data.profiles import make_profile, write_profile, write_reference
from pipeline.layout import STAGES, Layout, Stage
from pipeline.manifest import write_manifest
from pipeline.params import TaskParams, load_task
from pipeline.records import write_json, write_jsonl, write_parquet
from pipeline.registry import registry, tracking
from pipeline.registry.connection import connect

TASK = "tweet_sentiment"
LABELS = ["negative", "neutral", "positive"]
WORDS = "the crew was late again and lost my bag at gate four thank you for a lovely flight"
OTHER_WORDS = "personal data shall be shared with third parties under applicable law unless otherwise required"
DAMAGES = ("one bit flipped", "truncated", "file added", "file missing", "manifest altered", "another bundle")
PARAMS_YAML = Path(__file__).parents[2] / "params.yaml"


@dataclass(frozen=True)
class Workspace:
    """One workspace root with the outputs of every stage of TASK."""

    root: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.root, TASK)

    @property
    def lock(self) -> Path:
        return self.root / "dvc.lock"

    @property
    def params(self) -> TaskParams:
        return load_task(self.root / "params.yaml", TASK)

    @property
    def artifacts(self) -> Path:
        return self.root / ".promptmill" / "mlflow" / "artifacts"

    def record(self) -> tracking.RecordedRun:
        return tracking.record_run(root=self.root, task=TASK, params=self.params, layout=self.layout, lock=self.lock)

    def register(self) -> int:
        run = self.record()
        return registry.register_version(root=self.root, task=TASK, run_id=run.run_id, layout=self.layout, stage_key=run.stage_key)

    def make(self, seed: int, decision: str = "promote", steps: int = 3) -> None:
        """Write the outputs of another pass through the stages."""
        write_outputs(self.root, seed, decision, steps)

    def stored_bundle(self, version: int) -> Path:
        """The folder in which MLflow keeps that version's bundle."""
        source = connect(root=self.root).client.get_model_version(TASK, str(version)).source
        return Path(url2pathname(urlsplit(source).path)) / "data" / TASK


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 100}


def write_bundle(bundle: Path, seed: int) -> None:
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    tensor = np.random.default_rng(seed).standard_normal((20, 64)).astype(np.float32)
    save_file({"prompt_embeddings": tensor}, bundle / "adapter_model.safetensors")
    write_json(bundle / "adapter_config.json", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20, "token_dim": 64})
    write_json(bundle / "template.json", {"template": "Tweet: {text}\nSentiment:"})
    write_json(bundle / "verbalizers.json", {label: f" {label}" for label in LABELS})
    code = {"commit": "c0ffee" + "0" * 34, "dirty": False, "diff_sha256": None}
    write_manifest(bundle, {"task": TASK, "fields": ["text"], "labels": LABELS, "code": code})


def write_outputs(root: Path, seed: int, decision: str = "promote", steps: int = 3) -> None:
    layout = Layout(root, TASK)
    write_bundle(layout.path("bundle"), seed)
    write_json(layout.path("lora") / "lora.json", {"task": TASK, "enabled": False, "reason": "lora_baseline.enabled is false"})
    per_class = {label: {"precision": estimate(0.5), "recall": estimate(0.25), "f1": estimate(0.4), "support": 33} for label in LABELS}
    variant = {
        "accuracy": estimate(0.625),
        "macro_f1": estimate(0.5),
        "log_loss": {"value": None, "low": None, "high": None, "n": 0, "why": "none"},
    }
    variants = {name: {**variant, "per_class": per_class} for name in ("tuned", "hard_prompt", "majority_class")}
    comparisons = {"tuned_minus_hard_prompt": {"accuracy": estimate(0.125), "macro_f1": estimate(0.25)}}
    write_json(layout.path("metrics"), {"task": TASK, "n": 100, "labels": LABELS, "variants": variants, "comparisons": comparisons})
    groups = {"airline": {"groups": {"united": {"n": 100, "accuracy": estimate(0.75)}, "jet/blue!": {"n": 2, "accuracy": estimate(0.5)}}}}
    write_json(layout.path("fairness"), {"task": TASK, "attributes": groups})
    reasons = [] if decision == "promote" else ["accuracy 0.41 is below 0.50.", "airline jetblue has 12 rows."]
    write_json(layout.path("gate"), {"task": TASK, "decision": decision, "reasons": reasons, "checks": [], "inputs": {}})
    write_json(layout.path("score_report"), {"task": TASK})
    write_comparison(layout)
    write_data(layout, seed)
    write_data_profile(layout, seed)
    log = [
        {"event": "step", "trial": 0, "step": step, "loss": 2.0 - step / 1000, "learning_rate": 0.01, "seconds": 0.1}
        for step in range(steps)
    ]
    evaluation = {"event": "evaluation", "trial": 0, "step": 600, "accuracy": 0.6, "macro_f1": 0.5, "loss": 1.0, "rows": 10, "best": True}
    write_jsonl(layout.path("train_log"), [*log, evaluation])
    layout.path("card").write_text(f"<html>{seed}</html>", encoding="utf-8")
    layout.path("model_card").write_text(f"---\nlibrary_name: peft\n---\n{seed}\n", encoding="utf-8")
    for name in ("plots", "data_docs", "pictures"):
        layout.path(name).mkdir(exist_ok=True)
    (layout.path("data_docs") / "index.html").write_text("<html>contract</html>", encoding="utf-8")
    (layout.path("pictures") / "forest.png").write_bytes(f"PNG {seed}".encode())
    (layout.path("plots") / "confusion_matrix.csv").write_text("actual,predicted\nneutral,neutral\n", encoding="utf-8")
    (root / "params.yaml").write_text(PARAMS_YAML.read_text(encoding="utf-8"), encoding="utf-8")
    entries = {
        f"{stage.name}@{TASK}": {"cmd": f"python -m pipeline {stage.name} {seed}", "outs": list(_locked(layout, stage))} for stage in STAGES
    }
    lock = {"schema": "2.0", "stages": {**entries, "tune@another_task": {"cmd": "x"}}}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")


def write_comparison(layout: Layout) -> None:
    """What the stages that look at the champion write when there is none."""
    champion = {"version": None, "manifest_sha256": None, "reason": "no champion yet"}
    write_json(layout.path("champion") / "champion.json", champion)
    write_json(layout.path("attempts"), {"task": TASK, "champion": None, "test_sha256": f"{0:064}", "registered": []})
    write_json(layout.path("champion_report"), {"task": TASK, **champion, "base_model_id": None, "comparable": False, "rows": 0})
    asked = load_task(PARAMS_YAML, TASK).compare.model_dump(mode="json")
    names = ("n", "attempts", "level", "confidence_level", "metrics", "difference", "p_value", "paired", "better", "guarded", "examples")
    record = {"task": TASK, "asked": asked, "champion": None, "comparable": False, "reason": "no champion yet"}
    write_json(layout.path("comparison"), {**record, **dict.fromkeys(names), "method": "none"})


def write_data(layout: Layout, seed: int) -> None:
    """The tables of the data stages, of which every text tells the seed, and their reports."""
    texts = [f"Text {number} of {seed}" for number in range(120)]
    rows = pd.DataFrame({"row_id": texts, "text": texts, "label": [LABELS[number % 3] for number in range(120)]})
    parts = {"raw": (0, 120), "accepted": (0, 100), "train": (0, 80), "validation": (80, 90), "test": (90, 100)}
    for name, (first, end) in parts.items():
        write_parquet(layout.path(name), rows[first:end])
    sums = {name: hashlib.sha256(layout.path(name).read_bytes()).hexdigest() for name in parts}
    ingest = {"source": "rows.csv (utf-8)", "source_sha256": f"{seed:064}", "rows": 120, "raw_sha256": sums["raw"]}
    write_json(layout.path("ingest_report"), ingest)
    check = {"column": "text", "expected": "3 to 400 characters", "observed": "20 of 120 rows", "fix": "Mend it."}
    met = [{**check, "severity": name, "success": success} for name, success in (("critical", True), ("warning", False), ("info", True))]
    data = {"rows": 120, "accepted": 100, "quarantined": 20, "expectations": met, "data_docs": "data_docs/index.html"}
    write_json(layout.path("data_report"), data)
    splits = {name: {"rows": end - first, "labels": {}, "sha256": sums[name]} for name, (first, end) in list(parts.items())[2:]}
    write_json(layout.path("split_report"), {"splits": splits, "split_ids_sha256": f"{seed + 1:064}", "seed": 0})
    for name in ("probe_report", "behaviour", "virtual_tokens"):
        write_json(layout.path(name), {"task": TASK})
    write_json(layout.path("leakage"), {"task": TASK, "rows": {"train": 80, "validation": 10, "test": 10}, "pairs": {}})


def write_data_profile(layout: Layout, seed: int) -> None:
    """The profile of `made_up_rows`, no reference, and the drift report that follows."""
    params = load_task(PARAMS_YAML, TASK)
    made = make_profile(
        [made_up_rows(seed)], fields=["text"], groups={}, settings=params.profile, embed=letters, base_model={"id": "letters"}
    )
    write_profile(made, record=layout.path("data_profile"), arrays=layout.path("profile_arrays"), task=TASK)
    layout.path("reference").mkdir(parents=True, exist_ok=True)
    against = write_reference(layout.path("reference"), asked="champion", version=None, reason="no champion yet")
    write_json(layout.path("drift"), {"task": TASK, **drift_report(made, None, against=against, limits=params.drift)})


def made_up_rows(seed: int, rows: int = 300) -> pa.RecordBatch:
    """Labelled texts; those of seeds 0 to 9 are from one source, the others from one with other words and labels."""
    generator = np.random.default_rng(seed)
    words, shares = (WORDS, (0.4, 0.4, 0.2)) if seed < 10 else (OTHER_WORDS, (0.1, 0.1, 0.8))
    texts = [" ".join(generator.choice(words.split(), 8)) for _ in range(rows)]
    ids = [f"{number:016x}" for number in generator.permutation(rows)]
    return pa.RecordBatch.from_pydict({"row_id": ids, "text": texts, "label": generator.choice(LABELS, rows, p=shares).tolist()})


def letters(texts: Sequence[str]) -> np.ndarray:
    """A stand-in for the base model's embeddings: how often each letter is in a text, [N, 26]."""
    return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=np.float32)


def _locked(layout: Layout, stage: Stage) -> Iterator[dict[str, str]]:
    for name in stage.outputs:
        path = layout.path(name)
        if path.is_file():
            yield {"path": path.relative_to(layout.root).as_posix(), "md5": hashlib.md5(path.read_bytes()).hexdigest()}


def damage(bundle: Path, how: str) -> None:
    """Let a stored bundle go bad in one of the ways of DAMAGES."""
    weights, manifest_file = bundle / "adapter_model.safetensors", bundle / "manifest.json"
    content = bytearray(weights.read_bytes())
    manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
    if how == "one bit flipped":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "truncated":
        weights.write_bytes(content[:-1])
    elif how == "file added":
        (bundle / "extra.bin").write_bytes(b"x")
    elif how == "file missing":
        (bundle / "template.json").unlink()
    elif how == "manifest altered":
        manifest_file.write_text(json.dumps(manifest | {"labels": ["b", "a"]}), encoding="utf-8")
    elif how == "another bundle":
        write_bundle(bundle, 99)
    else:
        raise AssertionError(how)
