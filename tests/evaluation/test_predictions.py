from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import StageInputError
from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.predictions import read_predictions
from tests.evaluation.scored_rows import LABELS

Write = Callable[[pd.DataFrame], Path]
TWO = ("tuned", "majority_class")
Change = Callable[[pd.DataFrame], pd.DataFrame]


def at(row_id: str, variant: str, column: str, value: object) -> Change:
    """A change of one cell."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.copy()
        frame.loc[(frame["row_id"] == row_id) & (frame["variant"] == variant), column] = value
        return frame

    return change


def without(row_id: str, variant: str) -> Change:
    return lambda frame: frame[(frame["row_id"] != row_id) | (frame["variant"] != variant)]


def repeated(row_id: str, variant: str) -> Change:
    return lambda frame: pd.concat([frame, frame[(frame["row_id"] == row_id) & (frame["variant"] == variant)]])


def swapped_prediction(frame: pd.DataFrame) -> pd.DataFrame:
    row = frame[(frame["row_id"] == "r00004") & (frame["variant"] == "tuned")].iloc[0]
    other = next(label for label in LABELS if label != row["prediction"])
    return at("r00004", "tuned", "prediction", other)(frame)


def test_good_predictions_come_back_in_the_order_of_their_ids(frame: pd.DataFrame, write: Write) -> None:
    found = read_predictions(write(frame.sample(frac=1, random_state=0)), LABELS)
    rows = frame[frame["variant"] == "hard_prompt"]
    assert found.row_ids == list(rows["row_id"])
    assert found.texts == list(rows["text"])
    assert [LABELS[index] for index in found.actual] == list(rows["label"])
    assert [LABELS[index] for index in found.variants["hard_prompt"].predicted] == list(rows["prediction"])


def test_without_hard_prompts_there_are_two_variants_and_a_third_one_is_refused(frame: pd.DataFrame, write: Write) -> None:
    found = read_predictions(write(frame[frame["variant"].isin(TWO)]), LABELS, variants=TWO)
    assert list(found.variants) == ["tuned", "majority_class"]
    assert list(evaluate(found, confidence_level=0.95, replicates=200, seed=0)["comparisons"]) == ["tuned_minus_majority_class"]
    with pytest.raises(StageInputError, match=r"unknown variants \['hard_prompt', 'zero_shot'\]; known: \['tuned', 'majority_class'\]"):
        read_predictions(write(frame), LABELS, variants=TWO)
    with pytest.raises(StageInputError, match="no rows of variant 'hard_prompt'"):
        read_predictions(write(frame[frame["variant"] != "hard_prompt"]), LABELS, variants=[*TWO, "zero_shot", "hard_prompt"])


def test_only_the_few_shot_variant_may_be_absent(frame: pd.DataFrame, write: Write) -> None:
    asked = ["tuned", "hard_prompt", "zero_shot", "few_shot", "majority_class"]
    assert list(read_predictions(write(frame), LABELS, variants=asked).variants) == [name for name in asked if name != "few_shot"]
    with pytest.raises(StageInputError, match="no rows of variant 'tuned'"):
        read_predictions(write(frame[frame["variant"] != "tuned"]), LABELS)


def test_sums_within_the_tolerance_are_made_exact(frame: pd.DataFrame, write: Write) -> None:
    frame[["p.negative", "p.neutral", "p.positive"]] *= 1.0009
    found = read_predictions(write(frame), LABELS)
    assert np.allclose(found.tuned.probabilities.sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (without("r00007", "hard_prompt"), ["'r00007'", "'tuned'", "'hard_prompt'"]),
        (without("r00007", "tuned"), ["'r00007'", "'hard_prompt'", "'tuned'"]),
        (repeated("r00008", "majority_class"), ["'r00008'", "'majority_class'", "more than once"]),
        (at("r00003", "tuned", "p.neutral", np.nan), ["'r00003'", "'tuned'", "nan", "finite"]),
        (at("r00003", "tuned", "p.neutral", np.inf), ["'r00003'", "'tuned'", "inf", "finite"]),
        (at("r00003", "hard_prompt", "p.neutral", 1.4), ["'r00003'", "'hard_prompt'", "1.4", "within 0 and 1"]),
        (at("r00003", "majority_class", "p.neutral", 0.2), ["'r00003'", "'majority_class'", "sum 1.05", "sum to 1 within 0.001"]),
        (swapped_prediction, ["'r00004'", "'tuned'", "highest probability"]),
        (at("r00005", "hard_prompt", "prediction", "angry"), ["'r00005'", "'hard_prompt'", "'angry'", "prompt.verbalizers"]),
        (at("r00005", "hard_prompt", "label", "angry"), ["'r00005'", "'hard_prompt'", "'angry'"]),
        (at("r00005", "hard_prompt", "text", "another"), ["'r00005'", "'hard_prompt'", "'another'", "'tweet 5'"]),
        (at("r00005", "tuned", "text", None), ["'tuned'", "without text"]),
        (at("r00005", "tuned", "row_id", None), ["'tuned'", "without row_id"]),
        (lambda frame: frame[frame["variant"] != "majority_class"], ["no rows of variant 'majority_class'"]),
        (lambda frame: frame.iloc[:0], ["no rows of variant 'tuned'"]),
        (lambda frame: pd.concat([frame, frame[frame["variant"] == "tuned"].assign(variant="best")]), ["unknown variants ['best']"]),
        (lambda frame: frame.drop(columns="p.neutral"), ["p.neutral"]),
        (lambda frame: frame.assign(**{"p.mixed": 0.0}), ["p.mixed", "prompt.verbalizers"]),
        (lambda frame: frame.assign(**{"p.neutral": "much"}), ["'tuned'", "not a number", "much"]),
    ],
)
def test_predictions_that_do_not_hold_together(frame: pd.DataFrame, write: Write, change: Change, fragments: list[str]) -> None:
    path = write(change(frame))
    with pytest.raises(StageInputError) as caught:
        read_predictions(path, LABELS)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in (str(path), *fragments):
        assert fragment in message


def test_a_tie_may_go_either_way(frame: pd.DataFrame, write: Write) -> None:
    for label in ("negative", "neutral"):
        frame.loc[frame["prediction"] == "neutral", f"p.{label}"] = 0.425
    assert len(read_predictions(write(frame), LABELS).row_ids) == 300
