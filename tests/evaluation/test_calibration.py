import itertools

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from pipeline.evaluation.calibration import BINS, calibration
from pipeline.evaluation.intervals import percentile_interval, resampled_column_means

SETTINGS = {"confidence_level": 0.95, "replicates": 2000, "seed": 0}


def calibrated(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers drawn from the stated probabilities, which are therefore right."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([1.0, 1.0, 1.0], rows)
    actual = (probabilities.cumsum(axis=1) > generator.random((rows, 1))).argmax(axis=1)
    return actual, probabilities.argmax(axis=1), probabilities


def plain_ece(actual: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> float:
    """Guo et al. 2017, bin by bin."""
    confidence, right = probabilities.max(axis=1), predicted == actual
    edges = np.linspace(0, 1, BINS + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_brier_is_scikit_learns_and_ece_is_the_sum_over_bins() -> None:
    actual, predicted, probabilities = calibrated(400, 1)
    found = calibration(actual, predicted, probabilities, **SETTINGS)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(actual, probabilities, labels=[0, 1, 2], scale_by_half=False))
    assert found["ece"]["value"] == pytest.approx(plain_ece(actual, predicted, probabilities))
    assert found["ece_excess"]["value"] == pytest.approx(found["ece"]["value"] - found["ece_null"]["value"])


def test_a_worked_example_of_two_bins() -> None:
    """Four rows at confidence 0.8, three of them right (gap 0.05), and six at 0.6, three right (gap 0.1): ECE = 0.4 x 0.05 + 0.6 x 0.1."""
    confidence = np.array([0.8] * 4 + [0.6] * 6)
    right = np.array([True, True, True, False] + [True] * 3 + [False] * 3)
    found = calibration(np.where(right, 0, 1), np.zeros(10, dtype=int), np.column_stack([confidence, 1 - confidence]), **SETTINGS)
    assert found["ece"]["value"] == pytest.approx(0.08)
    assert [(item["accuracy"]["value"], item["accuracy"]["n"]) for item in found["reliability"]] == [(0.5, 6), (0.75, 4)]
    assert [item["confidence"] for item in found["reliability"]] == pytest.approx([0.6, 0.8])
    assert found["selective_accuracy"]["0.5"]["value"] == pytest.approx(0.8)  # the four surest and the first of the others
    assert found["selective_accuracy"]["0.5"]["n"] == 5


def test_the_null_band_is_what_calibrated_samples_show() -> None:
    """The shares of fresh calibrated samples below the band's ends are the stated ones, within the noise of 400 samples."""
    actual, predicted, probabilities = calibrated(300, 2)
    null = calibration(actual, predicted, probabilities, **SETTINGS)["ece_null"]
    generator = np.random.default_rng(3)
    confidence = probabilities.max(axis=1)
    fresh = np.array(
        [
            plain_ece(np.where(generator.random(300) < confidence, predicted, (predicted + 1) % 3), predicted, probabilities)
            for _ in range(400)
        ]
    )
    assert null["value"] == pytest.approx(fresh.mean(), abs=0.002)
    assert (null["low"], null["high"]) == pytest.approx(percentile_interval(fresh, 0.95), abs=0.006)
    assert null["value"] > 0.03  # a sample of 300 never shows 0


def test_the_excess_of_calibrated_probabilities_is_about_0_and_that_of_boasting_ones_is_above() -> None:
    excess = [calibration(*calibrated(300, seed), **SETTINGS)["ece_excess"] for seed in range(20, 40)]
    assert abs(np.mean([one["value"] for one in excess])) < 0.008
    assert sum(one["low"] <= 0 for one in excess) >= 18
    actual, predicted, probabilities = calibrated(300, 4)
    sharp = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)
    boasting = calibration(actual, predicted, sharp, **SETTINGS)["ece_excess"]
    assert boasting["low"] > 0.05


def test_the_reliability_bins_hold_all_rows_and_the_ends_of_the_scale() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.99, 0.01]])
    found = calibration(np.array([0, 1, 0]), np.zeros(3, dtype=int), probabilities, **SETTINGS)
    assert sum(item["accuracy"]["n"] for item in found["reliability"]) == 3
    assert found["reliability"][-1]["to"] == 1.0
    for item in found["reliability"]:
        assert item["from"] < item["confidence"] <= item["to"]
        assert item["null_low"] <= item["null_high"]


def test_resampled_columns_are_paired_and_agree_with_resampling_by_index() -> None:
    values = np.random.default_rng(5).normal(size=(200, 2))
    columns = np.column_stack([values, values[:, 0]])
    found = resampled_column_means(columns, 3000, 0)
    assert found.shape == (3000, 3)
    np.testing.assert_allclose(found[:, 0], found[:, 2])
    rows = np.random.default_rng(6).integers(0, 200, (3000, 200))
    plain = values[rows, 1].mean(axis=1)
    assert found[:, 1].mean() == pytest.approx(values[:, 1].mean(), abs=0.01)
    assert percentile_interval(found[:, 1], 0.95) == pytest.approx(percentile_interval(plain, 0.95), abs=0.02)
