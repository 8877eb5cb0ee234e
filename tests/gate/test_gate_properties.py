"""What must hold for any rule and any records: nothing that gets worse, and nothing that goes missing, moves the decision up."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.comparison import PairedCounts, tango
from pipeline.evaluation.intervals import estimate, proportion
from pipeline.gates.behaviour_checks import behaviour_checks
from pipeline.gates.checks import Check, Verdict
from pipeline.gates.comparison_checks import champion_guards, comparison_checks
from pipeline.gates.cost_checks import cost_checks
from pipeline.gates.data_checks import drift_checks, leakage_checks
from pipeline.gates.decision import decide
from pipeline.gates.fairness_checks import fairness_checks
from pipeline.gates.metrics_checks import metrics_checks
from pipeline.gates.relative_checks import relative_checks
from pipeline.gates.slice_checks import slice_checks
from pipeline.params import AssessFairnessParams, CompareParams, GateParams

LABELS = ("no", "yes")
ORDER = ["refuse", "ask", "promote"]
ASSESSED = AssessFairnessParams(groups={}, columns={}, intersections=[], minimum_denominator=20, confidence_level=0.95)
RULE = GateParams.model_validate(
    {
        "minimum_test_rows": 400,
        "value_thresholds": [{"metric": "accuracy", "minimum": 0.5}, {"metric": "per_class.yes.recall", "minimum": 0.4}],
        "change_thresholds": [{"metric": "accuracy", "baseline": "hard_prompt", "minimum_gain": 0.02}],
        "guards": [
            {"metric": "macro_f1", "baseline": "hard_prompt", "maximum_loss": 0.05},
            *({"metric": name, "baseline": "champion", "maximum_loss": 0.05} for name in ("accuracy", "macro_f1")),
        ],
        "group_thresholds": [{"attribute": "kind", "metric": "accuracy", "groups": ["a", "b"], "minimum": 0.4}],
        "difference_thresholds": [{"attribute": "kind", "metric": "accuracy", "groups": ["a", "b"], "maximum": 0.4}],
        "relative_difference_thresholds": [{"attribute": "kind", "metric": "accuracy", "groups": ["a", "b"], "maximum_increase": 0.1}],
        "slices": {
            "significance": 0.05,
            "minimum_rows": 50,
            "thresholds": [{"by": "label", "minimum": 0.4}, {"by": "kind", "groups": ["a", "b", "c", "d"], "minimum": 0.4}],
        },
        "degeneracy": {"maximum_prediction_share": 0.9},
        "cost": {"maximum_added_milliseconds": 20.0, "maximum_added_tokens": 30.0},
        "behaviour": {
            "swaps": {"pronouns": {"maximum_flip_rate": 0.15, "maximum_shift": 0.1}},
            "worst_case_accuracy": 0.5,
            "worst_case_drop": 0.25,
            "tests": {"link": 0.2},
            "batch_difference": 0.001,
            "bias_increase": {"crows": 0.1},
        },
    }
)
COMPARE = CompareParams(metric="accuracy", mode="superior", margin=0.02, significance=0.05, first_version="thresholds", examples=0)
# A limit on a difference alone can be met by making the better group worse: that is why floors stand beside it.
WITHOUT_DIFFERENCES = RULE.model_copy(update={"difference_thresholds": []})

Records = dict[str, Any]


def records(
    right: dict[str, int],
    groups: dict[str, int],
    gain: float,
    tokens: float,
    *,
    apart: tuple[int, int] = (60, 20),
    widened: float = 0.0,
    flips: int = 10,
) -> Records:
    """All records of one candidate on 600 rows: answers right per label (of 300) and per group (of 150, 150, 40, 30).

    `apart`: rows that it alone, and that the champion alone has right; `widened`: how much more groups differ than with the champion;
    `flips`: of 200 probed rows, how many go wrong in each way.
    """
    per_class = {label: {"recall": proportion(right[label], 300, 0.95, "")} for label in LABELS}
    difference = estimate(gain, (gain - 0.03, gain + 0.03), 600)
    sizes = {"a": 150, "b": 150, "c": 40, "d": 30}
    kinds = {
        name: {"n": n, "accuracy": proportion(round(groups[name] * n / 100), n, 0.95, ""), "predicted": {"no": n // 2, "yes": n - n // 2}}
        for name, n in sizes.items()
    }
    pairs = ("validation in train", "test in train", "test in validation", "external_test in train", "external_test in validation")
    return {
        "metrics": {
            "n": 600,
            "confidence_level": 0.95,
            "variants": {
                "tuned": {
                    "accuracy": proportion(sum(right.values()), 600, 0.95, ""),
                    "per_class": per_class,
                    "predicted": {"no": 320, "yes": 280},
                }
            },
            "comparisons": {"tuned_minus_hard_prompt": {"accuracy": difference, "macro_f1": difference}},
        },
        "fairness": {
            "n": 600,
            "confidence_level": 0.95,
            "minimum_denominator": 20,
            "attributes": {"kind": {"groups": kinds}},
            "relative": relative(widened),
        },
        "comparison": comparison(*apart),
        "behaviour": behaviour(flips),
        "score": {
            "rows": 600,
            "seconds_per_row": {"tuned": 0.03, "hard_prompt": 0.02},
            "tokens_per_row": {"tuned": 40.0 + tokens, "hard_prompt": 40.0},
        },
        "leakage": {
            "rows": {"train": 4800, "validation": 600, "test": 600, "external_test": 100},
            "pairs": {pair: dict.fromkeys(("exact", "normalised", "near", "origin"), 0) for pair in pairs},
        },
        "drift": {
            "on_drift": "refuse",
            "rows": {"current": 4800},
            "checks": [{"name": "labels", "verdict": "PASS", "sentence": "They are alike."}],
        },
    }


def relative(widened: float) -> Records:
    change = {
        "attribute": "kind",
        "metric": "accuracy",
        "label": None,
        "groups": ["a", "b"],
        "rows": {"a": 150, "b": 150},
        "smallest_denominator": 150,
        "candidate": 0.1,
        "champion": 0.1 - widened,
        "change": estimate(widened, (widened - 0.05, widened + 0.05), 300),
    }
    return {"champion": 3, "comparable": True, "reason": None, "number": 1, "differences": [change]}


def comparison(wins: int, losses: int) -> Records:
    """The record of a first attempt; what only people read is left empty."""
    counts = PairedCounts(300 - wins, wins, losses, 300 - losses)
    value = (wins - losses) / 600
    difference = estimate(value, tango(counts, 0.95), 600)
    return {
        "asked": COMPARE.model_dump(mode="json"),
        "champion": {"version": 3, "manifest_sha256": "a"},
        "comparable": True,
        "reason": None,
        "n": 600,
        "attempts": 1,
        "level": 0.025,
        "confidence_level": 0.95,
        "metrics": {},
        "difference": difference,
        "p_value": None,
        "paired": vars(counts),
        "better": None,
        "guarded": {"confidence_level": 0.95, "accuracy": dict(difference), "macro_f1": dict(difference)},
        "examples": {},
        "method": "",
    }


def behaviour(flips: int) -> Records:
    mixed = {"no": 80, "yes": 120}
    share = flips / 200
    return {
        "labels": list(LABELS),
        "confidence_level": 0.95,
        "minimum_rows": 50,
        "swaps": {
            "pronouns": {
                "flip_rate": proportion(flips, 200, 0.95, ""),
                "predicted": dict(mixed),
                "shift": {label: estimate(share, (share - 0.02, share + 0.02), 150) for label in LABELS},
            }
        },
        "robustness": {
            "predicted": dict(mixed),
            "worst_case_accuracy": proportion(160 - flips, 200, 0.95, ""),
            "worst_case_drop": proportion(flips, 200, 0.95, ""),
        },
        "tests": {"link": {"kind": "invariance", "failure_rate": proportion(flips, 200, 0.95, ""), "predicted": dict(mixed)}},
        "batch_invariance": {"rows": 16, "largest_difference": flips * 1e-6, "flips": 0},
        "bias": {"crows": {"skipped": None, "change": estimate(share - 0.1, (share - 0.2, share), 100)}},
    }


def checks_of(found: Records, rule: GateParams = RULE) -> list[Check]:
    checks = metrics_checks(rule, LABELS, found["metrics"]) + fairness_checks(rule, ASSESSED, LABELS, found["fairness"])
    checks += slice_checks(rule, LABELS, found["metrics"], found["fairness"]) + cost_checks(rule, found["score"], found["metrics"])
    checks += relative_checks(rule, LABELS, found["fairness"], found["comparison"])
    checks += comparison_checks(COMPARE, found["comparison"], found["metrics"])
    checks += champion_guards(rule.guards, found["comparison"], found["metrics"])
    checks += behaviour_checks(rule.behaviour, found["behaviour"])
    return checks + leakage_checks(found["leakage"], found["metrics"]) + drift_checks(found["drift"])


def rank(found: Records, rule: GateParams = RULE) -> int:
    return ORDER.index(decide(checks_of(found, rule))[0])


GOOD = records({"no": 240, "yes": 220}, {"a": 75, "b": 80, "c": 80, "d": 80}, 0.1, 10.0)
COUNTS = st.fixed_dictionaries({label: st.integers(90, 290) for label in LABELS})
GROUPS = st.fixed_dictionaries({name: st.integers(30, 95) for name in "abcd"})
APART = st.tuples(st.integers(0, 120), st.integers(0, 60))
WIDENED, FLIPS = st.floats(-0.2, 0.3), st.integers(0, 60)
CANDIDATES = st.builds(records, COUNTS, GROUPS, st.floats(-0.2, 0.3), st.floats(0.0, 40.0), apart=APART, widened=WIDENED, flips=FLIPS)


def paths(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key of a nested record, those below list items included."""
    for key, value in record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ():
        if isinstance(record, dict):
            yield (*path, key)
        yield from paths(value, (*path, key))


EVERY_KEY = [path for path in paths(GOOD) if len(path) > 1]  # a record that is not there at all is an error of the stage


def changed(found: Records, path: tuple[Any, ...], change: Callable[[dict[str, Any], str], None]) -> Records:
    result = copy.deepcopy(found)
    parent: Any = result
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return result


def test_the_good_candidate_passes_every_kind_of_check() -> None:
    checks = checks_of(GOOD)
    assert decide(checks) == ("promote", [])
    assert len(checks) == 29


@pytest.mark.parametrize("verdict", [verdict for verdict in get_args(Verdict) if verdict != "PASS"])
def test_each_check_alone_keeps_the_good_candidate_from_promotion(verdict: Verdict) -> None:
    checks = checks_of(GOOD)
    for position, check in enumerate(checks):
        flipped: list[Check] = [*checks[:position], {**check, "verdict": verdict}, *checks[position + 1 :]]
        assert decide(flipped)[0] == ("ask" if verdict in ("INCONCLUSIVE", "INSUFFICIENT") else "refuse"), check["name"]


@pytest.mark.parametrize(
    ("worse", "names"),
    [
        ({"apart": (40, 40)}, {"accuracy minus champion"}),
        ({"apart": (30, 70)}, {"accuracy minus champion", "accuracy not below champion", "macro_f1 not below champion"}),
        ({"widened": 0.2}, {"accuracy difference of kind against the champion"}),
        (
            {"flips": 60},
            {
                "flip rate of swap pronouns",
                "shift of swap pronouns",
                "worst-case accuracy",
                "worst-case drop",
                "failures of test link",
                "amplified preference of crows",
            },
        ),
    ],
)
def test_a_candidate_that_is_worse_in_one_respect_is_stopped_by_the_checks_of_it(worse: dict[str, Any], names: set[str]) -> None:
    checks = checks_of(records({"no": 240, "yes": 220}, {"a": 75, "b": 80, "c": 80, "d": 80}, 0.1, 10.0, **worse))
    assert {check["name"] for check in checks if check["verdict"] != "PASS"} == names
    assert decide(checks)[0] != "promote"


@given(st.lists(st.sampled_from(get_args(Verdict)), min_size=1, max_size=12), st.data())
@settings(derandomize=True, deadline=None, max_examples=200)
def test_flipping_any_one_check_flips_the_decision(verdicts: list[Verdict], data: st.DataObject) -> None:
    """The decision is that of the worst verdict, so one check alone decides when all others pass."""
    template = checks_of(GOOD)[0]
    worst = {"PASS": 2, "INCONCLUSIVE": 1, "INSUFFICIENT": 1}
    checks: list[Check] = [{**template, "verdict": verdict} for verdict in verdicts]
    assert ORDER.index(decide(checks)[0]) == min(worst.get(verdict, 0) for verdict in verdicts)
    position, verdict = data.draw(st.integers(0, len(verdicts) - 1)), data.draw(st.sampled_from(get_args(Verdict)))
    passing: list[Check] = [{**template, "verdict": "PASS"} for _ in verdicts]
    assert decide(passing)[0] == "promote"
    passing[position] = {**template, "verdict": verdict}
    assert ORDER.index(decide(passing)[0]) == worst.get(verdict, 0)


@given(COUNTS, GROUPS, st.floats(-0.2, 0.3), st.floats(0.0, 40.0), APART, WIDENED, FLIPS, st.data())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_worsening_anything_never_moves_the_decision_up(
    right: dict[str, int],
    groups: dict[str, int],
    gain: float,
    tokens: float,
    apart: tuple[int, int],
    widened: float,
    flips: int,
    data: st.DataObject,
) -> None:
    before = rank(records(right, groups, gain, tokens, apart=apart, widened=widened, flips=flips), WITHOUT_DIFFERENCES)
    fewer = {label: data.draw(st.integers(0, count)) for label, count in right.items()}
    worse = {name: data.draw(st.integers(0, share)) for name, share in groups.items()}
    after = records(
        fewer,
        worse,
        gain - data.draw(st.floats(0, 0.3)),
        tokens + data.draw(st.floats(0, 30)),
        apart=(data.draw(st.integers(0, apart[0])), apart[1] + data.draw(st.integers(0, 60))),
        widened=widened + data.draw(st.floats(0, 0.3)),
        flips=flips + data.draw(st.integers(0, 60)),
    )
    assert rank(after, WITHOUT_DIFFERENCES) <= before


@given(CANDIDATES, st.sampled_from(EVERY_KEY))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_removing_any_key_of_any_record_never_moves_the_decision_up(found: Records, path: tuple[Any, ...]) -> None:
    assert rank(changed(found, path, lambda parent, key: parent.pop(key))) <= rank(found)


@given(CANDIDATES, st.sampled_from(EVERY_KEY), st.sampled_from([None, float("nan"), float("inf"), "0.9", True, [], {}, -1]))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_breaking_any_key_of_any_record_never_promotes_what_was_not(found: Records, path: tuple[Any, ...], broken: object) -> None:
    if path[0] == "score" and broken == -1:
        return  # a tuned prompt that costs less is better; a cost below 0 is judged in test_cost_checks.py
    assert rank(changed(found, path, lambda parent, key: parent.__setitem__(key, broken))) <= max(rank(found), ORDER.index("ask"))


@pytest.mark.parametrize("path", [path for path in EVERY_KEY if path[0] != "drift" or path[-1] != "sentence"], ids=str)
def test_no_key_that_is_read_can_be_missing(path: tuple[Any, ...]) -> None:
    """The good candidate is not promoted without any key but those that only a failure would quote, or that nothing reads."""
    unread = {
        ("leakage", "rows", "train"),
        ("leakage", "rows", "validation"),
        ("leakage", "rows", "external_test"),
        ("drift", "checks", 0, "name"),
        ("fairness", "n"),
        *(
            ("fairness", "relative", "differences", 0, name) for name in ("candidate", "champion")
        ),  # quoted on the card; the change is judged
        ("behaviour", "bias", "crows", "skipped"),  # only says why there is no figure
        *(("fairness", "attributes", "kind", "groups", name, "predicted") for name in "cd"),
        *(("fairness", "attributes", "kind", "groups", name, "predicted", label) for name in "cd" for label in LABELS),
        *(("fairness", "attributes", "kind", "groups", name, "n") for name in "cd"),
    }
    expected = 2 if path in unread else 0
    assert rank(changed(GOOD, path, lambda parent, key: parent.pop(key))) == expected
