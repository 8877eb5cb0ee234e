import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.evaluation.averages import averaged
from pipeline.evaluation.intervals import percentile_interval
from tests.evaluation.scored_rows import noisy

LABELS = ("a", "b", "c")
SETTINGS = {"confidence_level": 0.95, "replicates": 2000, "seed": 0}
ACTUAL = np.random.default_rng(1).choice(3, size=300, p=[0.5, 0.3, 0.2])


def test_point_values_are_scikit_learns() -> None:
    predicted = noisy(ACTUAL, 0.5, 2)
    found = averaged(ACTUAL, predicted, LABELS, **SETTINGS)
    for average in ("macro", "weighted"):
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            assert found[f"{average}_{name}"]["value"] == pytest.approx(score(ACTUAL, predicted, average=average))
    assert found["mcc"]["value"] == pytest.approx(sk.matthews_corrcoef(ACTUAL, predicted))
    assert len(found) == 7


def test_intervals_agree_with_resampling_rows_through_scikit_learn() -> None:
    scores = {
        "mcc": sk.matthews_corrcoef,
        "weighted_precision": lambda actual, predicted: sk.precision_score(actual, predicted, average="weighted"),
        "macro_recall": lambda actual, predicted: sk.recall_score(actual, predicted, average="macro"),
    }
    predicted = noisy(ACTUAL, 0.5, 2)
    found = averaged(ACTUAL, predicted, LABELS, **SETTINGS)
    generator = np.random.default_rng(7)
    draws = [generator.integers(0, 300, 300) for _ in range(400)]
    for name, score in scores.items():
        plain = np.array([score(ACTUAL[rows], predicted[rows]) for rows in draws])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(percentile_interval(plain, 0.95), abs=0.02)


def test_one_answer_for_all_rows_has_no_correlation_and_no_perfect_average() -> None:
    found = averaged(ACTUAL, np.zeros(300, dtype=int), LABELS, **SETTINGS)
    assert found["mcc"]["value"] is None
    assert "given one label" in found["mcc"]["why"]
    assert found["macro_recall"]["value"] == pytest.approx(1 / 3)
    assert found["macro_precision"]["value"] == pytest.approx((ACTUAL == 0).mean() / 3)  # precision 0 for what is never said


def test_a_label_without_rows_leaves_macro_averages_undefined_and_weighted_ones_as_they_are() -> None:
    actual = np.array([0, 0, 1, 1] * 20)
    found = averaged(actual, noisy(actual, 0.7, 3), LABELS, **SETTINGS)
    assert found["macro_recall"]["value"] is None
    assert "'c'" in found["macro_recall"]["why"]
    assert found["weighted_recall"]["value"] == pytest.approx((actual == noisy(actual, 0.7, 3)).mean())


@pytest.mark.parametrize("rows", [30, 300])
def test_perfect_answers_keep_an_interval_that_narrows_with_rows(rows: int) -> None:
    found = averaged(ACTUAL[:rows], ACTUAL[:rows], LABELS, **SETTINGS)
    for figure in found.values():
        assert figure["value"] == 1.0
        assert 0.6 < figure["low"] < 1.0 == figure["high"]
    wrong = ACTUAL[:rows].copy()
    wrong[: max(1, round(0.12 * rows))] = (wrong[: max(1, round(0.12 * rows))] + 1) % 3
    # What 30 rows cannot rule out (an error share of 11 %) stands near the lower end.
    if rows == 30:
        assert found["mcc"]["low"] == pytest.approx(sk.matthews_corrcoef(ACTUAL[:rows], wrong), abs=0.1)
