from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.records import write_parquet
from tests.evaluation.scored_rows import long_frame, noisy


@pytest.fixture
def frame() -> pd.DataFrame:
    actual = np.random.default_rng(1).choice(3, size=300, p=[0.45, 0.35, 0.2])
    return long_frame(
        actual,
        {
            "tuned": noisy(actual, 0.6, 2),
            "hard_prompt": noisy(actual, 0.2, 3),
            "zero_shot": noisy(actual, 0.1, 4),
            "majority_class": np.zeros(300, dtype=int),
        },
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[pd.DataFrame], Path]:
    def write_frame(frame: pd.DataFrame) -> Path:
        path = tmp_path / "predictions.parquet"
        write_parquet(path, frame)
        return path

    return write_frame
