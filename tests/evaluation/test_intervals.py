import sys
import time

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest

from pipeline.evaluation.intervals import (
    f1_interval,
    newcombe,
    no_estimate,
    percentile_interval,
    proportion,
    resampled_means,
    resampled_sums,
    wilson,
)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 1700])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(n: int, level: float) -> None:
    for successes in sorted({0, 1, n // 3, n - 1, n}):
        expected = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
        assert wilson(successes, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_keeps_a_width_when_every_row_is_right_or_wrong() -> None:
    assert wilson(20, 20, 0.95)[1] == 1.0
    assert wilson(20, 20, 0.95)[0] < 0.85
    assert wilson(0, 20, 0.95)[0] == 0.0
    assert wilson(0, 20, 0.95)[1] > 0.15


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"found {successes} of {n}"):
        wilson(successes, n, 0.95)


@pytest.mark.parametrize("n", [30, 100, 400])
def test_coverage_of_wilson_is_near_the_stated_level(n: int) -> None:
    """Exact coverage, averaged over true shares: the sum over all outcomes of their probability where the interval holds the share."""
    ends = np.array([wilson(k, n, 0.95) for k in range(n + 1)])
    shares = np.linspace(0.05, 0.95, 181)
    covered = [binom.pmf(np.arange(n + 1), n, share)[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum() for share in shares]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.90


def test_newcombe_agrees_with_the_published_examples() -> None:
    """Newcombe (1998), table II, method 10."""
    assert newcombe((56, 70), (48, 80), 0.95) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe((9, 10), (3, 10), 0.95) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe((10, 10), (0, 20), 0.95) == pytest.approx((0.6791, 1.0), abs=5e-5)
    assert newcombe((0, 10), (0, 20), 0.95) == pytest.approx((-0.1611, 0.2775), abs=5e-5)


def test_f1_interval_maps_the_wilson_ends() -> None:
    low, high = wilson(30, 70, 0.95)
    assert f1_interval(30, 70, 0.95) == pytest.approx((2 / (1 + 1 / low), 2 / (1 + 1 / high)))
    assert f1_interval(0, 10, 0.95)[0] == 0.0
    assert f1_interval(10, 10, 0.95)[1] == 1.0


def test_resampled_sums_do_not_depend_on_the_order_of_rows() -> None:
    rows = np.random.default_rng(0).integers(0, 2, size=(500, 4))
    shuffled = rows[np.random.default_rng(1).permutation(500)]
    assert np.array_equal(resampled_sums(rows, 300, seed=0), resampled_sums(shuffled, 300, seed=0))


def test_the_bootstrap_of_a_share_agrees_with_its_exact_distribution() -> None:
    """The resampled number of successes is Binomial(n, share): compare quantiles."""
    rows = np.array([[1]] * 120 + [[0]] * 80)
    sums = resampled_sums(rows, 20_000, seed=3)[:, 0]
    for level in (0.025, 0.25, 0.5, 0.75, 0.975):
        assert np.quantile(sums, level) == pytest.approx(binom.ppf(level, 200, 0.6), abs=1.5)


def test_the_bootstrap_of_a_mean_agrees_with_resampling_by_index() -> None:
    values = beta.rvs(2, 5, size=150, random_state=4)
    generator = np.random.default_rng(9)
    plain = np.array([generator.choice(values, size=150).mean() for _ in range(4000)])
    means = resampled_means(values, 4000, seed=3)
    assert means.mean() == pytest.approx(values.mean(), abs=0.001)
    assert percentile_interval(means, 0.95) == pytest.approx(percentile_interval(plain, 0.95), abs=0.003)


def test_a_seed_fixes_the_replicates_and_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(40)
    rows = np.random.default_rng(0).integers(0, 2, size=(40, 3))
    whole = resampled_means(values, 100, seed=0), resampled_sums(rows, 100, seed=0)
    monkeypatch.setattr("pipeline.evaluation.intervals._CHUNK", 90)
    assert np.array_equal(whole[0], resampled_means(values, 100, seed=0))
    assert np.array_equal(whole[1], resampled_sums(rows, 100, seed=0))
    assert not np.array_equal(whole[0], resampled_means(values, 100, seed=1))


def test_replicates_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        percentile_interval(np.array([0.1, np.nan]), 0.95)


def test_undefined_proportion() -> None:
    assert proportion(0, 0, 0.95, "nothing there") == no_estimate(0, "nothing there")


def test_time_of_ten_thousand_replicates_of_two_thousand_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed for the reader, not asserted: the machine may be busy."""
    rows = np.random.default_rng(0).integers(0, 2, size=(2000, 9))
    values = np.random.default_rng(0).random(2000)
    started = time.perf_counter()
    assert resampled_sums(rows, 10_000, seed=0).shape == (10_000, 9)
    middle = time.perf_counter()
    assert resampled_means(values, 10_000, seed=0).shape == (10_000,)
    with capsys.disabled():
        sys.stdout.write(f"\n10,000 replicates of 2,000 rows: sums {middle - started:.2f} s, means {time.perf_counter() - middle:.2f} s\n")
