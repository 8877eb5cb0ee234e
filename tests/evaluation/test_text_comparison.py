"""Free text against the champion on the same rows: the difference, its interval, who answers better, and the rows that show it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap

from pipeline.errors import StageInputError
from pipeline.evaluation.row_scores import row_scores, token_f1
from pipeline.evaluation.text_comparison import compare_written_with_champion
from pipeline.evaluation.written_rows import Written, WrittenRows, read_champion_written
from pipeline.params import CompareParams
from pipeline.records import write_parquet

SETTINGS = CompareParams.model_validate(
    {"metric": "accuracy", "mode": "superior", "margin": 0.02, "significance": 0.05, "first_version": "thresholds", "examples": 2}
)
WORDS = ["red", "green", "blue", "old", "new", "small"]


def written(answers: list[str]) -> Written:
    return Written(answers, np.ones(len(answers), dtype=np.int64), np.ones(len(answers), dtype=bool), None)


def rows_of(targets: list[str], answers: list[str]) -> WrittenRows:
    ids = [f"r{index:04}" for index in range(len(targets))]
    return WrittenRows(ids, [f"text {name}" for name in ids], targets, np.ones(len(ids), dtype=np.int64), {"tuned": written(answers)})


def compared(rows: WrittenRows, champion: Written, metric: str, attempts: int = 1) -> dict[str, Any]:
    return compare_written_with_champion(
        rows, champion, metric=metric, settings=SETTINGS, attempts=attempts, replicates=4000, confidence_level=0.95, seed=0
    )


def made(count: int) -> tuple[WrittenRows, Written]:
    """Targets of three words; the candidate gets more of them than the champion."""
    randomness = np.random.default_rng(0)
    targets = [list(randomness.choice(WORDS, 3)) for _ in range(count)]

    def spoilt(words: list[str], share: float) -> str:
        return " ".join(word if randomness.random() > share else "other" for word in words)

    answers = [[spoilt(words, share) for words in targets] for share in (0.2, 0.35)]
    return rows_of([" ".join(words) for words in targets], answers[0]), written(answers[1])


def test_the_interval_is_that_of_a_paired_bootstrap_at_the_level_of_the_attempt() -> None:
    """scipy's bootstrap of the rows' differences is the oracle."""
    rows, champion = made(300)
    found = compared(rows, champion, "token_f1", attempts=2)
    ours, theirs = (
        np.array([token_f1(*pair) for pair in zip(answers, rows.targets, strict=True)])
        for answers in (rows.tuned.answers, champion.answers)
    )
    level = 0.05 / 6
    assert (found["n"], found["attempts"], found["level"], found["confidence_level"]) == (
        300,
        2,
        pytest.approx(level),
        pytest.approx(1 - 2 * level),
    )
    assert found["difference"]["value"] == pytest.approx((ours - theirs).mean())
    expected = bootstrap((ours - theirs,), np.mean, confidence_level=1 - 2 * level, method="percentile", n_resamples=20_000, rng=1)
    low, high = found["difference"]["low"], found["difference"]["high"]
    assert (low, high) == pytest.approx((expected.confidence_interval.low, expected.confidence_interval.high), abs=0.006)
    assert low > 0
    assert found["better"] == {"candidate": (ours > theirs).sum(), "champion": (ours < theirs).sum(), "equal": (ours == theirs).sum()}
    assert (found["p_value"], found["paired"]) == (None, None)
    assert [found["metrics"][name]["value"] for name in ("candidate", "champion")] == pytest.approx([ours.mean(), theirs.mean()])
    guarded = row_scores(rows.tuned.answers, rows.targets)["rouge_l"].mean() - row_scores(champion.answers, rows.targets)["rouge_l"].mean()
    assert found["guarded"]["rouge_l"]["value"] == pytest.approx(guarded)
    assert set(found["guarded"]) == {"confidence_level", "exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"}


def test_exact_match_is_right_or_wrong_and_gets_mcnemars_test() -> None:
    rows, champion = made(300)
    found = compared(rows, champion, "exact_match")
    ours, theirs = (np.array(answers) == np.array(rows.targets) for answers in (rows.tuned.answers, champion.answers))
    alone = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert (found["better"]["candidate"], found["better"]["champion"]) == alone
    assert found["p_value"] == pytest.approx(binomtest(alone[0], sum(alone), 0.5, alternative="greater").pvalue)
    assert found["difference"]["value"] == pytest.approx(ours.mean() - theirs.mean())
    assert "McNemar" in found["method"]


def test_the_rows_with_the_largest_difference_are_shown_first() -> None:
    targets = ["red car", "red car", "red car", "blue car", "old car"]
    rows = rows_of(targets, ["red", "red car", "red car", "bus", "old car"])
    champion = written(["red car", "red", "bus", "car", "old car"])
    found = compared(rows, champion, "token_f1")["examples"]
    assert [row["row_id"] for row in found["candidate_only"]] == ["r0002", "r0001"]
    assert [row["row_id"] for row in found["champion_only"]] == ["r0003", "r0000"]
    assert found["champion_only"][0] == {
        "row_id": "r0003",
        "text": "text r0003",
        "label": "blue car",
        "candidate": "bus",
        "champion": "car",
    }


@pytest.mark.parametrize("column", ["row_id", "text", "target"])
def test_answers_to_other_rows_are_refused(tmp_path: Path, column: str) -> None:
    rows = rows_of(["red car", "blue car"], ["red", "blue"])
    frame = pd.DataFrame(
        {"row_id": rows.row_ids, "variant": "champion", "text": rows.texts, "target": rows.targets, "prediction": ["a", "b"], "tokens": 1, "ended": True,
         "reference_loss": [None, None], "reference_tokens": 2}
    )  # fmt: skip
    path = tmp_path / "champion.parquet"
    write_parquet(path, frame)
    found = read_champion_written(path, rows)
    assert found is not None
    assert found.answers == ["a", "b"]
    write_parquet(path, frame.assign(**{column: ["r0000", "zzz"]}))
    with pytest.raises(StageInputError, match=rf"the column {column} is not that of the 2 rows"):
        read_champion_written(path, rows)
    write_parquet(path, frame.head(0))
    assert read_champion_written(path, rows) is None
