"""Candidates against a champion: real stages, a tiny real base model, a real MLflow store."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.__main__ import run_stage
from pipeline.layout import STAGES, Layout
from pipeline.manifest import manifest_sha256
from pipeline.params import load_task
from pipeline.records import read_json, read_parquet
from pipeline.registry import promotion, registry, tracking
from tests.engine.tiny_models import save_model
from tests.stages.conftest import TASK

GROUPS = ["zero", "one"]
LIMITS = [
    {"attribute": "airline", "metric": "accuracy", "groups": GROUPS, "maximum_increase": 0.0},
    {"attribute": "airline", "metric": "equal_opportunity_difference", "groups": GROUPS, "labels": ["good"], "maximum_increase": 1.0},
]
AFTER_REFERENCE = [stage.name for stage in STAGES if stage.name not in ("ingest", "validate", "split", "profile")]


def change(root: Path, section: str, **values: Any) -> None:
    path = root / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["tasks"][TASK][section].update(values)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def run(root: Path, stages: list[str]) -> dict[str, Any]:
    for stage in stages:
        run_stage(root, stage, TASK)
    return read_json(Layout(root, TASK).path("comparison"))


def register(root: Path, number: int) -> int:
    """Record and register the present outputs, under a lock that says they are the pass with this number."""
    layout = Layout(root, TASK)
    entries: dict[str, Any] = {}
    for stage in STAGES:
        outs = [path for _, path in layout.outputs(stage).items() if path.is_file()]
        listed = [{"path": path.relative_to(root).as_posix(), "md5": hashlib.md5(path.read_bytes()).hexdigest()} for path in outs]
        entries[f"{stage.name}@{TASK}"] = {"cmd": f"pass {number}", "outs": listed}
    lock = root / "dvc.lock"
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}), encoding="utf-8")
    made = tracking.record_run(root=root, task=TASK, params=load_task(root / "params.yaml", TASK), layout=layout, lock=lock)
    return registry.register_version(root=root, task=TASK, run_id=made.run_id, layout=layout, stage_key=made.stage_key)


def gap_of(answers: Any) -> float:
    """The difference of two airlines' accuracies, counted anew."""
    shares = [(rows["label"] == rows["prediction"]).mean() for rows in (answers[answers["text"].str.contains(f"@air{k}")] for k in (0, 1))]
    return abs(shares[0] - shares[1])


@pytest.fixture
def first(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace with its first version as champion."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    change(workspace, "gate", degeneracy={"maximum_prediction_share": 0.99}, relative_difference_thresholds=LIMITS)
    comparison = run(workspace, [stage.name for stage in STAGES])
    assert (comparison["champion"], comparison["reason"]) == (None, "no champion yet")
    gate = read_json(Layout(workspace, TASK).path("gate"))
    (check,) = [check for check in gate["checks"] if check["name"] == "accuracy minus champion"]
    assert check["verdict"] == "PASS"
    assert [check["verdict"] for check in gate["checks"] if check["name"].endswith("against the champion")] == ["PASS", "PASS"]
    assert register(workspace, 1) == 1
    promotion.connect(root=workspace).client.set_registered_model_alias(TASK, "champion", "1")
    return workspace


def test_candidates_are_compared_with_the_champion_on_their_own_rows_and_attempts_are_counted(first: Path):
    layout = Layout(first, TASK)
    champion = manifest_sha256(layout.path("bundle"))
    before = read_parquet(layout.path("predictions")).query("variant == 'tuned'")

    same = run(first, ["reference", "score_champion", "compare", "assess_fairness", "gate"])
    changes = read_json(layout.path("fairness"))["relative"]["differences"]
    assert [(one["change"]["value"], one["change"]["low"], one["change"]["high"]) for one in changes] == [(0.0, 0.0, 0.0)] * 2
    assert same["champion"] == {"version": 1, "manifest_sha256": champion, "base_model_id": "tiny/llama"}
    answers = read_parquet(layout.path("champion_predictions"))
    assert list(answers["p.good"]) == list(before["p.good"]), "the champion answers as it did as a candidate"
    assert same["paired"]["candidate_only"] == same["paired"]["champion_only"] == 0
    gate = read_json(layout.path("gate"))
    assert gate["decision"] == "refuse", "an equal candidate is not promoted"
    assert any("it is not better" in reason for reason in gate["reasons"])

    change(first, "tune", learning_rate=0.01, maximum_steps=2, evaluate_every=2)
    second = run(first, AFTER_REFERENCE)
    assert (second["attempts"], second["level"]) == (1, pytest.approx(0.025))
    tuned, test = read_parquet(layout.path("predictions")).query("variant == 'tuned'"), read_parquet(layout.path("test"))
    assert list(read_parquet(layout.path("champion_predictions"))["row_id"]) == list(test["row_id"])
    right = (tuned["label"] == tuned["prediction"]).mean() - (before["label"] == before["prediction"]).mean()
    assert second["difference"]["value"] == pytest.approx(right)
    (accuracy, _) = read_json(layout.path("fairness"))["relative"]["differences"]
    gaps = [gap_of(answers.reset_index(drop=True)) for answers in (tuned, before)]
    assert (accuracy["candidate"], accuracy["champion"]) == pytest.approx(tuple(gaps))
    verdicts = {check["name"]: check["verdict"] for check in read_json(layout.path("gate"))["checks"]}
    assert verdicts["equal_opportunity_difference of good of airline against the champion"] in ("PASS", "DEGENERATE")
    assert register(first, 2) == 2

    run_stage(first, "reference", TASK)
    assert run(first, ["compare"])["attempts"] == 1, "the same bundle, registered meanwhile, is no second attempt"
    change(first, "tune", learning_rate=0.02)
    third = run(first, AFTER_REFERENCE)
    assert (third["attempts"], third["level"]) == (2, pytest.approx(0.05 / 6))
    figures = tracking.comparison_figures(third)
    assert figures["champion/attempts"] == 2
    assert figures["tuned_minus_champion/accuracy"] == third["difference"]["value"]


def test_a_champion_on_another_base_model_answers_on_its_own(first: Path):
    layout = Layout(first, TASK)
    before = read_parquet(layout.path("predictions")).query("variant == 'tuned'")
    save_model("gpt2", first / "gpt2")
    change(first, "base_model", source={"kind": "directory", "id": "tiny/gpt2", "path": "gpt2"})
    found = run(first, AFTER_REFERENCE)
    assert (found["comparable"], found["champion"]["base_model_id"]) == (True, "tiny/llama")
    assert list(read_parquet(layout.path("champion_predictions"))["prediction"]) == list(before["prediction"])


def test_a_champion_of_other_labels_is_not_comparable_and_a_person_decides(first: Path):
    layout = Layout(first, TASK)
    change(first, "prompt", verbalizers={"bad": " bad", "good": " very good", "mixed": " so"})
    for stage in ("reference", "score_champion", "compare"):
        run_stage(first, stage, TASK)
    found = read_json(layout.path("comparison"))
    assert (found["comparable"], found["champion"]["version"]) == (False, 1)
    assert found["reason"] == "its labels are ['bad', 'good'], the task now has ['bad', 'good', 'mixed']"
    assert read_parquet(layout.path("champion_predictions")).empty
