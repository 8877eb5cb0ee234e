"""The files of the stage probe for a run of `card_run`: real probes of its rows, answered by a seeded rule instead of a model."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.behaviour.pair_files import TextPair
from pipeline.behaviour.probes import HeldOutRow, Probe, plan_probes
from pipeline.layout import Layout
from pipeline.params import BehaviourParams
from pipeline.records import write_json, write_parquet

BIAS_PAIRS, PAIRS = 40, 6
KINDS = ("gender", "profession")

BEHAVIOUR: dict[str, Any] = {
    "rows": 120,
    "minimum_rows": 50,
    "seed": 0,
    "confidence_level": 0.95,
    "field": None,
    "context": {},
    "swaps": ["travel", "rare words"],
    "lexicons": {
        "travel": {"sides": ["air", "rail"], "pairs": [["flight", "train"], ["tarmac", "platform"], ["crew", "staff"]]},
        "rare words": {"sides": ["one", "two"], "pairs": [["zymurgy", "zymology"]]},
    },
    "pairs": {"mine": {"format": "pairs", "path": "pairs.csv", "maximum_pairs": PAIRS}},
    "perturbations": ["typos", "case"],
    "tests": [
        {
            "kind": "minimum_functionality",
            "name": "plain praise",
            "cases": [{"text": "lovely", "label": "positive"}, {"text": "so kind", "label": "positive"}],
        },
        {"kind": "invariance", "name": "a mark at the end", "edit": {"append": " ."}},
        {
            "kind": "directional",
            "name": "added praise",
            "edit": {"append": " Great!"},
            "label": "positive",
            "change": "higher",
            "tolerance": 0.05,
        },
    ],
    "batch_invariance_rows": 8,
    "bias_pairs": {
        "stereotypes": {"format": "stereoset", "path": "stereotypes.jsonl", "maximum_pairs": BIAS_PAIRS},
        "skipped": {"format": "wino", "path": "wino.jsonl", "maximum_pairs": 3},
    },
}


def write_probes(layout: Layout, params: BehaviourParams, tuned: pd.DataFrame, labels: Sequence[str]) -> None:
    """What the stage probe writes for the rows of `tuned` (row_id, text, label)."""
    ordered = tuned.sort_values("row_id")
    rows = [
        HeldOutRow(str(row_id), {"text": str(text)}, str(label)) for row_id, text, label in ordered[["row_id", "text", "label"]].to_numpy()
    ]
    texts = [TextPair(number, "", "", f"his bag {number}", f"her bag {number}", None) for number in range(1, PAIRS + 1)]
    plan = plan_probes(params, rows, {"mine": texts}, ["text"])
    known = dict(zip(tuned["text"], tuned["label"], strict=True))
    write_parquet(layout.path("behaviour_predictions"), answers(plan.probes, known, labels))
    write_parquet(layout.path("bias_scores"), _bias_scores())
    file = {"package": None, "sha256": "0" * 64}
    report = {
        "task": layout.task,
        "searched": dict(plan.searched),
        "pairs": {"mine": {**file, "format": "pairs", "path": "pairs.csv", "pairs": PAIRS}},
        "bias_pairs": {
            "stereotypes": {**file, "format": "stereoset", "path": "stereotypes.jsonl", "pairs": BIAS_PAIRS},
            "skipped": {**file, "format": "wino", "path": "wino.jsonl", "pairs": 3},
        },
        "bias_skipped": {"skipped": "an encoder gives texts no likelihood"},
    }
    write_json(layout.path("probe_report"), report)


def answers(probes: Sequence[Probe], known: dict[str, str], labels: Sequence[str]) -> pd.DataFrame:
    """Answers that lean to the label of a known text and else go by the hash of the text alone, as one row or in a batch."""
    lines = []
    for probe in probes:
        text, label = probe.fields["text"], probe.label
        scores = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)).normal(size=len(labels))
        leaning = known.get(text, label)
        if leaning in labels:
            scores[list(labels).index(str(leaning))] += 1.6
        shares = np.exp(scores) / np.exp(scores).sum()
        lines.append((probe.probe, probe.row_id, probe.side, text, label, labels[int(shares.argmax())], *shares))
    columns = ["probe", "row_id", "side", "text", "label", "prediction", *(f"p.{label}" for label in labels)]
    return pd.DataFrame(lines, columns=pd.Index(columns))


def _bias_scores() -> pd.DataFrame:
    generator = np.random.default_rng(5)
    lines = [
        (
            "stereotypes",
            number,
            KINDS[number % 2],
            side,
            prompt,
            f"{side} {number}",
            float(-30 + 4 * generator.normal() - 12 * (side == "unrelated")),
            9,
        )
        for number in range(1, BIAS_PAIRS + 1)
        for side in ("first", "second", "unrelated")
        for prompt in ("base", "tuned")
    ]
    columns = ("file", "number", "kind", "side", "prompt", "text", "log_probability", "tokens")
    return pd.DataFrame(lines, columns=pd.Index(columns))
