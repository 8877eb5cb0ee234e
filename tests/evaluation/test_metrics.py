import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from pipeline.evaluation.intervals import percentile_interval, wilson
from pipeline.evaluation.metrics import compare, describe, evaluate, macro_f1
from pipeline.evaluation.predictions import Predictions, read_predictions
from tests.evaluation.scored_rows import LABELS, long_frame, noisy

SETTINGS = {"confidence_level": 0.95, "replicates": 2000, "seed": 0}
Write = Callable[[pd.DataFrame], Path]


def predictions_of(write: Write, actual: object, tuned: object, other: object | None = None) -> Predictions:
    actual = np.asarray(actual)
    baseline = np.zeros(len(actual), dtype=int)
    answers = {"tuned": tuned, "hard_prompt": baseline if other is None else other, "majority_class": baseline}
    return read_predictions(write(long_frame(actual, answers)), LABELS)


def test_point_values_agree_with_scikit_learn_on_strings(frame: pd.DataFrame, write: Write) -> None:
    record = evaluate(read_predictions(write(frame), LABELS), **SETTINGS)
    assert list(record["variants"]) == ["tuned", "hard_prompt", "zero_shot", "majority_class"]
    for variant, found in record["variants"].items():
        rows = frame[frame["variant"] == variant]
        actual, predicted = rows["label"], rows["prediction"]
        probabilities = rows[[f"p.{label}" for label in LABELS]].to_numpy()
        assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(actual, predicted))
        assert found["macro_f1"]["value"] == pytest.approx(sk.f1_score(actual, predicted, average="macro"))
        assert found["log_loss"]["value"] == pytest.approx(sk.log_loss(actual, probabilities, labels=LABELS))
        assert found["confusion_matrix"] == sk.confusion_matrix(actual, predicted, labels=LABELS).tolist()
        assert found["predicted"] == {label: int((predicted == label).sum()) for label in LABELS}
        for label in LABELS:
            for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
                expected = score(actual == label, predicted == label, zero_division=np.nan)
                value = found["per_class"][label][name]["value"]
                assert value is None if np.isnan(expected) else value == pytest.approx(expected)
            assert found["per_class"][label]["support"] == (actual == label).sum()


def test_intervals_hold_their_point_values_and_state_n(frame: pd.DataFrame, write: Write) -> None:
    found = evaluate(read_predictions(write(frame), LABELS), **SETTINGS)["variants"]["tuned"]
    for name in ("accuracy", "macro_f1", "log_loss"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        assert found[name]["n"] == 300
    successes = round(found["accuracy"]["value"] * 300)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == wilson(successes, 300, 0.95)
    assert found["per_class"]["positive"]["recall"]["n"] == found["per_class"]["positive"]["support"]
    assert found["per_class"]["positive"]["precision"]["n"] == found["predicted"]["positive"]


def test_macro_f1_interval_agrees_with_resampling_rows_through_scikit_learn(frame: pd.DataFrame, write: Write) -> None:
    predictions = read_predictions(write(frame), LABELS)
    found = describe(predictions, predictions.tuned, **SETTINGS)["macro_f1"]
    generator = np.random.default_rng(7)
    plain = []
    for _ in range(1000):
        rows = generator.integers(0, 300, 300)
        plain.append(sk.f1_score(predictions.actual[rows], predictions.tuned.predicted[rows], average="macro"))
    assert (found["low"], found["high"]) == pytest.approx(percentile_interval(np.array(plain), 0.95), abs=0.012)


def test_paired_differences_agree_with_resampling_rows_through_scikit_learn(frame: pd.DataFrame, write: Write) -> None:
    predictions = read_predictions(write(frame), LABELS)
    found = compare(predictions, predictions.variants["hard_prompt"], **SETTINGS)
    actual, tuned, hard = predictions.actual, predictions.tuned.predicted, predictions.variants["hard_prompt"].predicted
    assert found["accuracy"]["value"] == pytest.approx((tuned == actual).mean() - (hard == actual).mean())
    f1 = [sk.f1_score(actual, answers, average="macro") for answers in (tuned, hard)]
    assert found["macro_f1"]["value"] == pytest.approx(f1[0] - f1[1])
    generator = np.random.default_rng(7)
    rows = generator.integers(0, 300, (4000, 300))
    plain = (tuned == actual)[rows].mean(axis=1) - (hard == actual)[rows].mean(axis=1)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx(percentile_interval(plain, 0.95), abs=0.012)


def test_pairing_makes_the_difference_of_similar_variants_narrow(write: Write) -> None:
    actual = np.random.default_rng(1).choice(3, size=600)
    hard = noisy(actual, 0.5, 2)
    tuned = hard.copy()
    tuned[:30] = actual[:30]
    paired = compare(p := predictions_of(write, actual, tuned, hard), p.variants["hard_prompt"], **SETTINGS)["accuracy"]
    alone = describe(p, p.tuned, **SETTINGS)["accuracy"]
    assert paired["high"] - paired["low"] < 0.5 * (alone["high"] - alone["low"])
    assert paired["low"] > 0


def test_identical_variants_differ_by_nothing(write: Write) -> None:
    actual = np.random.default_rng(1).choice(3, size=100)
    answers = noisy(actual, 0.5, 2)
    p = predictions_of(write, actual, answers, answers)
    for difference in compare(p, p.variants["hard_prompt"], **SETTINGS).values():
        assert (difference["value"], difference["low"], difference["high"]) == (0.0, 0.0, 0.0)


def test_a_perfect_prompt_still_has_an_interval(write: Write) -> None:
    actual = np.arange(30) % 3
    found = describe(p := predictions_of(write, actual, actual), p.tuned, **SETTINGS)
    for figure in (found["accuracy"], found["macro_f1"], found["per_class"]["neutral"]["f1"]):
        assert figure["value"] == figure["high"] == 1.0
        assert 0.5 < figure["low"] < 0.95


def test_a_constant_predictor_has_no_precision_for_what_it_never_says(write: Write) -> None:
    actual = np.arange(60) % 3
    found = describe(p := predictions_of(write, actual, np.zeros(60, dtype=int)), p.tuned, **SETTINGS)
    positive = found["per_class"]["positive"]
    assert positive["precision"]["value"] is None
    assert "'positive' is never predicted" in positive["precision"]["why"]
    assert positive["recall"]["value"] == 0.0
    assert positive["f1"]["value"] == 0.0
    assert found["macro_f1"]["value"] == pytest.approx(sk.f1_score(actual, np.zeros(60), average="macro"))


def test_a_label_without_rows_leaves_macro_f1_undefined(write: Write) -> None:
    actual = np.arange(60) % 2
    p = predictions_of(write, actual, actual)
    record = evaluate(p, **SETTINGS)
    json.dumps(record, allow_nan=False)
    tuned = record["variants"]["tuned"]
    assert tuned["macro_f1"]["value"] is None
    assert "no row has label 'positive'" in tuned["macro_f1"]["why"]
    assert tuned["per_class"]["positive"]["recall"]["value"] is None
    assert tuned["per_class"]["positive"]["f1"]["why"] == "no row has or is given label 'positive'"
    assert record["comparisons"]["tuned_minus_hard_prompt"]["macro_f1"]["value"] is None
    assert record["comparisons"]["tuned_minus_hard_prompt"]["accuracy"]["value"] == 0.5


def test_replicates_without_a_rare_label_stay_finite_and_lower_the_interval(write: Write) -> None:
    actual = np.array([0] * 20 + [1] * 20 + [2])
    found = describe(p := predictions_of(write, actual, actual.copy()), p.tuned, **SETTINGS)["macro_f1"]
    assert found["value"] == 1.0
    assert found["low"] == pytest.approx(2 / 3)  # about a third of the replicates lack the single row


def test_a_certain_and_wrong_answer_has_a_finite_log_loss(write: Write) -> None:
    answers = {variant: [1, 1, 1] for variant in ("tuned", "hard_prompt", "majority_class")}
    p = read_predictions(write(long_frame([0, 1, 2], answers, certainty=1.0)), LABELS)
    found = describe(p, p.tuned, **SETTINGS)["log_loss"]
    assert found["value"] == pytest.approx(-np.log(np.finfo(np.float64).eps) * 2 / 3)
    assert np.isfinite([found["low"], found["high"]]).all()


def test_the_record_depends_on_the_seed_alone_and_not_on_the_order_of_rows(frame: pd.DataFrame, write: Write) -> None:
    first = evaluate(read_predictions(write(frame), LABELS), **SETTINGS)
    shuffled = frame.sample(frac=1, random_state=3, ignore_index=True)
    assert evaluate(read_predictions(write(shuffled), LABELS), **SETTINGS) == first
    other = evaluate(read_predictions(write(frame), LABELS), **{**SETTINGS, "seed": 1})
    assert other["variants"]["tuned"]["macro_f1"]["value"] == first["variants"]["tuned"]["macro_f1"]["value"]
    assert other["variants"]["tuned"]["macro_f1"]["low"] != first["variants"]["tuned"]["macro_f1"]["low"]


def test_coverage_of_the_macro_f1_interval() -> None:
    """Simulation: samples of 400 rows from a known confusion; the interval holds the true macro F1 about as often as stated."""
    joint = np.array([[0.30, 0.08, 0.04], [0.08, 0.22, 0.06], [0.03, 0.06, 0.13]])
    truth = np.mean(2 * joint.diagonal() / (joint.sum(axis=0) + joint.sum(axis=1)))
    generator = np.random.default_rng(11)
    covered = 0
    for repeat in range(200):
        cells = generator.choice(9, size=400, p=joint.ravel())
        p = Predictions(LABELS, [], [], cells // 3, {})
        found = macro_f1(p.actual, cells % 3, LABELS, confidence_level=0.95, replicates=500, seed=repeat)
        covered += found["low"] <= truth <= found["high"]
    assert 0.90 < covered / 200 <= 1.0


@pytest.mark.parametrize("module", ["pipeline.stages.evaluate", "pipeline.stages.assess_fairness", "pipeline.stages.gate"])
def test_the_stage_imports_without_torch(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('torch', 'transformers', 'peft', 'pipeline.engine') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
