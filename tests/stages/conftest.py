"""A workspace with a small made-up task and a tiny base model, in which every stage runs in seconds."""

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from tests.engine.tiny_models import save_model

TASK = "praise"
OPENINGS = {"good": ["thank you for", "lovely", "great"], "bad": ["late and lost", "nobody said", "rude"]}
WORDS = ["the", "a", "this", "crew", "flight", "bag", "seat", "meal", "gate", "plane", "desk", "evening", "six", "four", "today", "again"]


def write_rows(path: Path, count: int = 900) -> None:
    randomness = random.Random(0)
    rows = []
    for index in range(count):
        label = "good" if index % 2 else "bad"
        text = " ".join([randomness.choice(OPENINGS[label]), *randomness.choices(WORDS, k=randomness.randint(4, 9)), f"@air{index % 3}"])
        rows.append({"body": text, "mood": label})
    pd.DataFrame(rows).to_csv(path, index=False)


def small_task(model: Path) -> dict[str, Any]:
    return {
        "ingest": {"source": {"kind": "file", "path": "rows.csv"}, "columns": {"fields": {"text": "body"}, "label": "mood"}},
        "validate": {"minimum_rows": 100, "maximum_text_characters": 200},
        "split": {"validation_share": 0.2, "test_share": 0.3},
        "profile": {},
        "reference": {},
        "drift": {},
        "prompt": {
            "template": "Tweet: {text}\nSentiment:",
            "verbalizers": {"bad": " bad", "good": " very good"},
            "hard_prompts": ["{text} is", "Tweet: {text}\nSentiment:"],
        },
        "base_model": {"source": {"kind": "directory", "id": "tiny/llama", "path": str(model)}, "dtype": "float32"},
        "tune": {
            "init": {"kind": "text", "text": "good or bad"},
            "trials": {"seeds": [0]},
            "batch_size": 16,
            "num_virtual_tokens": 4,
            "learning_rate": 0.05,
            "maximum_steps": 12,
            "evaluate_every": 6,
            "validation_rows": 60,
        },
        "lora_baseline": {},
        "score": {"hard_prompt_selection_rows": 40, "few_shot_per_label": 1},
        "evaluate": {"bootstrap_replicates": 200},
        "compare": {},
        "assess_fairness": {
            "groups": {"airline": {"derived_from": "text", "patterns": {"zero": "@air0", "one": "@air1"}}},
            "minimum_denominator": 10,
        },
        "behaviour": {},
        "gate": {"minimum_test_rows": 100, "value_thresholds": [{"metric": "accuracy", "minimum": 0.2}]},
        "report": {"title": "Praise", "description": "Made-up rows."},
        "promotion": {},
        "deployment": {},
        "execution": {},
    }


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    save_model("llama", folder)
    return folder


@pytest.fixture
def workspace(repo_root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    document = yaml.safe_load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"] = {TASK: small_task(model)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    write_rows(tmp_path / "rows.csv")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path
