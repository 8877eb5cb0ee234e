"""The three stages after scoring, run one after the other on predictions whose right verdict is known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StageInputError
from pipeline.evaluation.intervals import estimate, proportion
from pipeline.layout import Layout, stage_named
from pipeline.params import GateParams, TaskParams, load_task
from pipeline.records import sha256_file, write_json, write_parquet
from pipeline.stages import assess_fairness, evaluate, gate
from tests.evaluation.scored_rows import LABELS, long_frame, noisy
from tests.registry.registry_workspace import write_comparison

ROOT = Path(__file__).parents[2]
AIRLINES = ("united", "usairways", "americanair", "southwestair", "jetblue", "virginamerica")
SHARES = (0.107, 0.081, 0.077, 0.067, 0.060, 0.013)

NO_DRIFT = {"task": "tweet_sentiment", "on_drift": "report", "rows": {"current": 13000}, "checks": []}

MIXED = {"negative": 60, "neutral": 50, "positive": 40}


def steady(count: int, n: int) -> dict[str, object]:
    """A rate that is no reason to refuse."""
    return dict(proportion(count, n, 0.95, "none"))


PROBED = {
    "task": "tweet_sentiment",
    "labels": ["negative", "neutral", "positive"],
    "confidence_level": 0.95,
    "minimum_rows": 50,
    "swaps": {name: {"flip_rate": steady(4, 90), "predicted": MIXED} for name in ("pronouns", "gender_terms")},
    "robustness": {"predicted": MIXED, "worst_case_drop": steady(25, 150)},
    "tests": {
        "a link at the end": {"kind": "invariance", "failure_rate": steady(20, 150), "predicted": MIXED},
        "added praise": {"kind": "directional", "failure_rate": steady(2, 150), "predicted": MIXED},
    },
    "batch_invariance": {"rows": 16, "largest_difference": 0.0, "flips": 0},
    "bias": {"crows_pairs": {"skipped": None, "change": estimate(-0.05, (-0.13, 0.03), 120)}},
}

NO_LEAKS = dict.fromkeys(("exact", "normalised", "near", "origin"), 0)

Decide = Callable[..., dict[str, object]]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, "tweet_sentiment")


@pytest.fixture
def params() -> TaskParams:
    return load_task(ROOT / "params.yaml", "tweet_sentiment")


@pytest.fixture
def run_stages(layout: Layout, params: TaskParams) -> Decide:
    """Run evaluate, assess_fairness and gate with the demo's own params on 1,700 tweets of the demo's composition."""

    def run(right: float, *, tuned: np.ndarray | None = None, rows: int = 1700, seed: int = 0) -> dict[str, object]:
        generator = np.random.default_rng(seed)
        actual = generator.choice(3, size=rows, p=[0.432, 0.389, 0.179])
        airlines = generator.choice([*AIRLINES, ""], size=rows, p=[*SHARES, 1 - sum(SHARES)])
        texts = [f"@{name} tweet {index}" if name else f"tweet {index}" for index, name in enumerate(airlines)]
        answers = {
            "tuned": noisy(actual, right, seed + 1) if tuned is None else tuned,
            "hard_prompt": noisy(actual, 0.2, seed + 2),
            "zero_shot": noisy(actual, 0.1, seed + 3),
            "majority_class": np.zeros(rows, dtype=int),
        }
        write_json(layout.path("drift"), NO_DRIFT)
        write_comparison(layout)
        pairs = dict.fromkeys(("validation in train", "test in train", "test in validation"), NO_LEAKS)
        write_json(layout.path("behaviour"), PROBED)
        write_json(layout.path("leakage"), {"task": "tweet_sentiment", "rows": {"test": rows}, "pairs": pairs})
        write_parquet(layout.path("predictions"), long_frame(actual, answers, texts=texts))
        write_json(layout.path("score_report"), {"rows": rows, "tokens_per_row": {"tuned": 60.0, "hard_prompt": 48.0}})
        for name, module in (("evaluate", evaluate), ("assess_fairness", assess_fairness), ("gate", gate)):
            stage = stage_named(name)
            report = module.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))
        return report

    return run


def test_a_good_prompt_is_promoted_by_the_demos_own_gate(run_stages: Decide, layout: Layout, params: TaskParams) -> None:
    report = run_stages(0.5)  # accuracy about 0.5 + 0.5 / 3 = 0.67
    assert report["reasons"] == []
    assert report["decision"] == "promote"
    stored = json.loads(layout.path("gate").read_text())
    assert stored == report
    assert list(stored) == ["task", "decision", "reasons", "checks", "inputs"]
    assert stored["inputs"] == {
        "metrics_sha256": sha256_file(layout.path("metrics")),
        "comparison_sha256": sha256_file(layout.path("comparison")),
        "fairness_sha256": sha256_file(layout.path("fairness")),
        "leakage_sha256": sha256_file(layout.path("leakage")),
        "behaviour_sha256": sha256_file(layout.path("behaviour")),
        "drift_sha256": sha256_file(layout.path("drift")),
    }
    rule: GateParams = params.gate
    groups = sum(len(threshold.groups) for threshold in rule.group_thresholds)
    behaviour = rule.behaviour
    probes = len(behaviour.swaps) + len(behaviour.tests) + len(behaviour.bias_increase) + 2  # the worst case and batch invariance
    assert probes == 7
    planned = 6 + len(LABELS) + len(rule.value_thresholds) + len(rule.change_thresholds) + groups + len(rule.difference_thresholds) + probes
    assert len(report["checks"]) == planned


def test_the_same_inputs_give_the_same_bytes(run_stages: Decide, layout: Layout) -> None:
    run_stages(0.5)
    first = layout.path("gate").read_bytes()
    run_stages(0.5)
    assert layout.path("gate").read_bytes() == first


def test_a_prompt_no_better_than_the_hard_prompt_is_refused_and_that_is_no_error(run_stages: Decide) -> None:
    report = run_stages(0.2)
    assert report["decision"] == "refuse"
    failed = {check["name"] for check in report["checks"] if check["verdict"] == "FAIL"}
    assert {"accuracy", "macro_f1", "accuracy minus hard_prompt"} <= failed


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_constant_predictor_is_refused(run_stages: Decide, label: int) -> None:
    report = run_stages(0.0, tuned=np.full(1700, label))
    assert report["decision"] == "refuse"
    assert {check["name"]: check["verdict"] for check in report["checks"]}["degeneracy"] == "DEGENERATE"


def test_a_perfect_prompt_on_too_few_rows_is_left_to_a_person(run_stages: Decide) -> None:
    report = run_stages(1.0, rows=90)
    assert report["decision"] == "ask"
    assert {check["verdict"] for check in report["checks"] if check["name"].startswith("accuracy of airline")} <= {
        "INSUFFICIENT",
        "MISSING",
    }


def test_records_of_different_predictions_are_an_error(run_stages: Decide, layout: Layout, params: TaskParams) -> None:
    run_stages(0.5)
    path = layout.path("fairness")
    path.write_text(json.dumps({**json.loads(path.read_text()), "n": 1699}))
    stage = stage_named("gate")
    layout.path("gate").unlink()
    with pytest.raises(StageInputError, match=r"n 1700.*n 1699"):
        gate.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))
    assert not layout.path("gate").exists()


def test_a_record_of_another_task_is_an_error(run_stages: Decide, layout: Layout, params: TaskParams) -> None:
    run_stages(0.5)
    path = layout.path("metrics")
    path.write_text(json.dumps({**json.loads(path.read_text()), "task": "spam"}))
    stage = stage_named("gate")
    with pytest.raises(StageInputError, match="'spam'"):
        gate.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))
