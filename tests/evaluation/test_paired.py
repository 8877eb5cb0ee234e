"""Two sets of answers on the same rows: counts, figures and the exact test, against figures made by hand."""

from math import comb
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.paired import compare_answers, level_of_attempt, mcnemar_exact, mcnemar_superior, measure

LABELS = ("no", "yes")


@pytest.mark.parametrize(("first", "second"), [(10, 0), (12, 5), (5, 12), (7, 7), (1, 0), (40, 22)])
def test_mcnemar_sums_the_tosses_at_least_as_uneven(first: int, second: int) -> None:
    n, fewer = first + second, min(first, second)
    both_tails = 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n
    assert mcnemar_exact(first, second) == pytest.approx(min(1.0, both_tails))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (-1, 3)])
def test_mcnemar_needs_rows_on_which_one_is_right_alone(first: int, second: int) -> None:
    with pytest.raises(ValueError, match=f"found {first} and {second}"):
        mcnemar_exact(first, second)


def test_a_comparison_by_hand() -> None:
    actual = ["yes"] * 6 + ["no"] * 4
    first = ["yes"] * 5 + ["no"] + ["no"] * 3 + ["yes"]  # right on 5 + 3
    second = ["yes"] * 2 + ["no"] * 4 + ["yes"] + ["no"] * 3  # right on 2 + 3
    found = compare_answers(LABELS, actual, first, second)
    assert (found["both_right"], found["only_first_right"], found["only_second_right"], found["both_wrong"]) == (4, 4, 1, 1)
    assert found["p_value"] == pytest.approx(2 * (1 + 5) / 2**5)
    assert found["first"]["accuracy"]["value"] == 0.8
    assert found["second"]["accuracy"]["value"] == 0.5
    assert found["difference"]["accuracy"]["value"] == pytest.approx(0.3)
    # F1 of yes and no: first 2x5/(5+6+... ) = 10/12 and 6/8; second 4/(6+3) and 6/(4+7)
    assert found["first"]["macro_f1"]["value"] == pytest.approx((10 / 12 + 6 / 8) / 2)
    assert found["difference"]["macro_f1"]["value"] == pytest.approx((10 / 12 + 6 / 8) / 2 - (4 / 9 + 6 / 11) / 2)
    assert found["difference"]["accuracy"]["low"] < 0 < found["difference"]["accuracy"]["high"]


def test_right_on_the_same_rows_is_no_test() -> None:
    assert compare_answers(LABELS, ["yes", "no"], ["yes", "yes"], ["yes", "yes"])["p_value"] is None


def test_measures_of_probabilities() -> None:
    probabilities: Any = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], dtype=np.float32)
    found = measure(LABELS, ["no", "no", "yes", "yes"], probabilities)
    assert found["accuracy"]["value"] == 0.75
    assert found["per_class"]["no"]["recall"]["value"] == 0.5
    assert found["confusion_matrix"] == [[1, 1], [0, 2]]
    assert found["log_loss"]["value"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.8]).mean(), rel=1e-6)


@pytest.mark.parametrize(("first", "second"), [(10, 0), (12, 5), (5, 12), (7, 7), (0, 3), (0, 0)])
def test_superiority_sums_one_tail(first: int, second: int) -> None:
    n = first + second
    assert mcnemar_superior(first, second) == pytest.approx(sum(comb(n, k) for k in range(first, n + 1)) / 2**n)


def test_the_levels_of_all_attempts_sum_to_the_significance() -> None:
    levels = [level_of_attempt(0.05, attempt) for attempt in range(1, 100_000)]
    assert levels[:3] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert 0.0499 < sum(levels) < 0.05
    with pytest.raises(ValueError, match="found 0"):
        level_of_attempt(0.05, 0)
