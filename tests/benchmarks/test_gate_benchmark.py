"""The simulation of the gate judges candidates as the gate does: its verdicts are those of the exact test at the level of the attempt."""

import numpy as np
from scipy.stats import binomtest

from benchmarks import gate


def test_promotion_is_that_of_the_exact_test_at_the_level_of_each_attempt():
    wins, losses = gate._apart(500, 0.1, 0.04, 3, 40, 0)
    promoted = gate._promoted(500, wins, losses)
    for row, column in np.ndindex(*wins.shape):
        won, lost, attempt = int(wins[row, column]), int(losses[row, column]), column + 1
        p = binomtest(won, won + lost, 0.5, alternative="greater").pvalue if won + lost else 1.0
        assert promoted[row, column] == (won > lost and p <= 0.05 / (attempt * (attempt + 1)))
    assert 0 < promoted.mean() < 1


def test_every_share_has_a_goal_or_is_said_to_be_of_another_rule():
    lines = [*gate.equal_candidates(20, 0), *gate.better_candidates(20, 0)]
    assert [line["case"] for line in lines if line["goal"] is None and "were the level divided" not in line["case"]] == []
    assert "and no others" in " ".join(gate.INTRODUCTION)
