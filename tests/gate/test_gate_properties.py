"""What must hold for any rule and any records: nothing that gets worse, and nothing that goes missing, moves the decision up."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.intervals import estimate, proportion
from pipeline.gates.checks import Check, Verdict
from pipeline.gates.cost_checks import cost_checks
from pipeline.gates.data_checks import drift_checks, leakage_checks
from pipeline.gates.decision import decide
from pipeline.gates.fairness_checks import fairness_checks
from pipeline.gates.metrics_checks import metrics_checks
from pipeline.gates.slice_checks import slice_checks
from pipeline.params import AssessFairnessParams, GateParams

LABELS = ("no", "yes")
ORDER = ["refuse", "ask", "promote"]
ASSESSED = AssessFairnessParams(groups={}, columns={}, intersections=[], minimum_denominator=20, confidence_level=0.95)
RULE = GateParams.model_validate(
    {
        "minimum_test_rows": 400,
        "value_thresholds": [{"metric": "accuracy", "minimum": 0.5}, {"metric": "per_class.yes.recall", "minimum": 0.4}],
        "change_thresholds": [{"metric": "accuracy", "baseline": "hard_prompt", "minimum_gain": 0.02}],
        "guards": [{"metric": "macro_f1", "baseline": "hard_prompt", "maximum_loss": 0.05}],
        "group_thresholds": [{"attribute": "kind", "metric": "accuracy", "groups": ["a", "b"], "minimum": 0.4}],
        "difference_thresholds": [{"attribute": "kind", "metric": "accuracy", "groups": ["a", "b"], "maximum": 0.4}],
        "slices": {
            "significance": 0.05,
            "minimum_rows": 50,
            "thresholds": [{"by": "label", "minimum": 0.4}, {"by": "kind", "groups": ["a", "b", "c", "d"], "minimum": 0.4}],
        },
        "degeneracy": {"maximum_prediction_share": 0.9},
        "cost": {"maximum_added_milliseconds": 20.0, "maximum_added_tokens": 30.0},
    }
)
# A limit on a difference alone can be met by making the better group worse: that is why floors stand beside it.
WITHOUT_DIFFERENCES = RULE.model_copy(update={"difference_thresholds": []})

Records = dict[str, Any]


def records(right: dict[str, int], groups: dict[str, int], gain: float, tokens: float) -> Records:
    """All records of one candidate on 600 rows: answers right per label (of 300) and per group (of 150, 150, 40, 30)."""
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
        "fairness": {"n": 600, "confidence_level": 0.95, "minimum_denominator": 20, "attributes": {"kind": {"groups": kinds}}},
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


def checks_of(found: Records, rule: GateParams = RULE) -> list[Check]:
    checks = metrics_checks(rule, LABELS, found["metrics"]) + fairness_checks(rule, ASSESSED, LABELS, found["fairness"])
    checks += slice_checks(rule, LABELS, found["metrics"], found["fairness"]) + cost_checks(rule, found["score"], found["metrics"])
    return checks + leakage_checks(found["leakage"], found["metrics"]) + drift_checks(found["drift"])


def rank(found: Records, rule: GateParams = RULE) -> int:
    return ORDER.index(decide(checks_of(found, rule))[0])


GOOD = records({"no": 240, "yes": 220}, {"a": 75, "b": 80, "c": 80, "d": 80}, 0.1, 10.0)
COUNTS = st.fixed_dictionaries({label: st.integers(90, 290) for label in LABELS})
GROUPS = st.fixed_dictionaries({name: st.integers(30, 95) for name in "abcd"})
CANDIDATES = st.builds(records, COUNTS, GROUPS, st.floats(-0.2, 0.3), st.floats(0.0, 40.0))


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
    assert len(checks) == 18


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


@given(COUNTS, GROUPS, st.floats(-0.2, 0.3), st.floats(0.0, 40.0), st.data())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_worsening_anything_never_moves_the_decision_up(
    right: dict[str, int], groups: dict[str, int], gain: float, tokens: float, data: st.DataObject
) -> None:
    before = rank(records(right, groups, gain, tokens), WITHOUT_DIFFERENCES)
    fewer = {label: data.draw(st.integers(0, count)) for label, count in right.items()}
    worse = {name: data.draw(st.integers(0, share)) for name, share in groups.items()}
    after = records(fewer, worse, gain - data.draw(st.floats(0, 0.3)), tokens + data.draw(st.floats(0, 30)))
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
        *(("fairness", "attributes", "kind", "groups", name, "predicted") for name in "cd"),
        *(("fairness", "attributes", "kind", "groups", name, "predicted", label) for name in "cd" for label in LABELS),
        *(("fairness", "attributes", "kind", "groups", name, "n") for name in "cd"),
    }
    expected = 2 if path in unread else 0
    assert rank(changed(GOOD, path, lambda parent, key: parent.pop(key))) == expected
