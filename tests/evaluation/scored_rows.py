"""Predictions in the long format of the stage `score`, built from lists of label indices."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

LABELS = ("negative", "neutral", "positive")


def long_frame(
    actual: Sequence[int],
    answers: dict[str, Sequence[int]],
    *,
    labels: Sequence[str] = LABELS,
    texts: Sequence[str] | None = None,
    certainty: float = 0.7,
) -> pd.DataFrame:
    """One row per (row, variant); the prediction has probability `certainty`, the other labels share the rest."""
    frames = []
    for variant, predicted in answers.items():
        probabilities = np.full((len(actual), len(labels)), (1 - certainty) / (len(labels) - 1))
        probabilities[np.arange(len(actual)), predicted] = certainty
        frame = pd.DataFrame(probabilities, columns=[f"p.{label}" for label in labels])
        frame.insert(0, "prediction", [labels[index] for index in predicted])
        frame.insert(0, "label", [labels[index] for index in actual])
        frame.insert(0, "text", list(texts) if texts is not None else [f"tweet {index}" for index in range(len(actual))])
        frame.insert(0, "variant", variant)
        frame.insert(0, "row_id", [f"r{index:05d}" for index in range(len(actual))])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def noisy(actual: np.ndarray, right: float, seed: int, classes: int = 3) -> np.ndarray:
    """Predictions that are right with probability `right` and otherwise uniform over the classes."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(len(actual)) < right, actual, generator.integers(0, classes, len(actual)))
