"""A candidate against the champion on the same rows: counts, Tango's interval, levels, examples."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from pipeline.evaluation.comparison import PairedCounts, compare_with_champion, paired_counts, tango
from pipeline.evaluation.paired import level_of_attempt, mcnemar_superior
from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.params import CompareParams

SETTINGS = {"metric": "accuracy", "mode": "superior", "margin": 0.02, "significance": 0.05, "first_version": "thresholds", "examples": 2}


@pytest.mark.parametrize(
    "counts", [PairedCounts(360, 60, 40, 40), PairedCounts(90, 3, 1, 6), PairedCounts(10, 0, 4, 6), PairedCounts(50, 0, 0, 0)]
)
@pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
def test_both_ends_are_where_the_score_test_stops_rejecting(counts: PairedCounts, level: float) -> None:
    """The likeliest champion-only share at each end, found by numerical search, gives a score of the normal quantile."""
    z = {0.9: 1.6448536, 0.95: 1.9599640, 0.999: 3.2905267}[level]
    for end in tango(counts, level):
        b, c, n = counts.candidate_only, counts.champion_only, counts.n

        def unlikely(share: float, end: float = end, b: int = b, c: int = c, n: int = n) -> float:
            parts = ((b, share + end), (c, share), (n - b - c, 1 - 2 * share - end))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

        found = minimize_scalar(unlikely, bounds=(max(0.0, -end), (1 - end) / 2), method="bounded", options={"xatol": 1e-12})
        variance = n * (2 * found.x + end - end * end)
        assert abs(b - c - n * end) / math.sqrt(variance) == pytest.approx(z, rel=2e-3)


def test_without_discordant_rows_the_interval_still_has_a_width() -> None:
    low, high = tango(PairedCounts(70, 0, 0, 30), 0.95)
    assert (low, high) == pytest.approx((-0.0370, 0.0370), abs=1e-4)  # z^2 / (n + z^2)
    assert tango(PairedCounts(0, 5, 0, 0), 0.95)[1] == 1.0
    with pytest.raises(ValueError, match="needs rows"):
        tango(PairedCounts(0, 0, 0, 0), 0.95)


def made(actual: list[int], ours: list[int], theirs: list[int]) -> tuple[Predictions, Scored]:
    def scored(answers: list[int]) -> Scored:
        return Scored(np.array(answers), np.eye(2)[answers])

    ids = [f"r{index}" for index in range(len(actual))]
    return Predictions(("no", "yes"), ids, [f"text {name}" for name in ids], np.array(actual), {"tuned": scored(ours)}), scored(theirs)


def test_the_record_counts_pairs_and_shows_rows_of_both_sides() -> None:
    predictions, champion = made([1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 1])
    found = compare_with_champion(
        predictions, champion, settings=CompareParams.model_validate(SETTINGS), attempts=2, replicates=200, confidence_level=0.95, seed=0
    )
    assert found["paired"] == {"both_right": 1, "candidate_only": 3, "champion_only": 1, "both_wrong": 1}
    assert found["difference"]["value"] == pytest.approx(2 / 6)
    assert (found["attempts"], found["level"], found["confidence_level"]) == (2, pytest.approx(0.05 / 6), pytest.approx(1 - 0.1 / 6))
    assert found["metrics"]["champion"]["value"] == pytest.approx(2 / 6)
    assert found["p_value"] == pytest.approx(5 / 16)
    assert [row["row_id"] for row in found["examples"]["candidate_only"]] == ["r0", "r1"]
    assert found["examples"]["champion_only"] == [{"row_id": "r3", "text": "text r3", "label": "yes", "candidate": "no", "champion": "yes"}]


def test_macro_f1_is_compared_by_the_bootstrap() -> None:
    predictions, champion = made([0, 1] * 50, [0, 1] * 50, [0, 1, 1, 0] * 25)
    settings = CompareParams.model_validate({**SETTINGS, "metric": "macro_f1"})
    found = compare_with_champion(predictions, champion, settings=settings, attempts=1, replicates=500, confidence_level=0.95, seed=0)
    assert found["p_value"] is None
    assert found["difference"]["value"] == pytest.approx(0.5)
    assert 0.3 < found["difference"]["low"] < 0.5 < found["difference"]["high"] < 0.7


def test_equal_candidates_rarely_win_even_in_20_attempts() -> None:
    """Series of 20 equal candidates against one champion on one test set of 500 rows: at most 5 % contain a winner."""
    generator, series, won = np.random.default_rng(3), 400, 0
    for _ in range(series):
        champion = generator.random(500) < 0.7
        for attempt in range(1, 21):
            candidate = generator.random(500) < np.where(champion, 1 - 0.1 / 0.7, 0.1 / 0.3)
            counts = paired_counts(np.ones(500, int), candidate.astype(int), champion.astype(int))
            if mcnemar_superior(counts.candidate_only, counts.champion_only) <= level_of_attempt(0.05, attempt):
                won += 1
                break
    assert won <= 0.05 * series + 2 * math.sqrt(series * 0.05 * 0.95)
