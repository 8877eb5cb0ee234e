import copy
import json
import math
from collections.abc import Callable
from itertools import combinations, product
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.evaluation.intervals import estimate, newcombe, no_estimate, proportion, wilson
from pipeline.gates.checks import Check, Verdict
from pipeline.gates.decision import decide, decision_of
from pipeline.gates.fairness_checks import fairness_checks
from pipeline.gates.metrics_checks import metrics_checks
from pipeline.params import AssessFairnessParams, GateParams

LABELS = ("negative", "neutral", "positive")
VERDICTS = get_args(Verdict)
ASSESSED = AssessFairnessParams(groups={}, columns={}, intersections=[], minimum_denominator=50, confidence_level=0.95)
EXPECTED = {"PASS": "promote", "INCONCLUSIVE": "ask", "INSUFFICIENT": "ask"} | dict.fromkeys(
    ("FAIL", "MISSING", "DEGENERATE", "ERROR"), "refuse"
)


def gate(**changes: object) -> GateParams:
    """A rule with one check of each kind; `changes` replace sections."""
    sections: dict[str, object] = {
        "minimum_test_rows": 500,
        "value_thresholds": [{"metric": "accuracy", "minimum": 0.55}, {"metric": "per_class.positive.recall", "minimum": 0.3}],
        "change_thresholds": [{"metric": "accuracy", "baseline": "hard_prompt", "minimum_gain": 0.1}],
        "group_thresholds": [{"attribute": "airline", "metric": "accuracy", "groups": ["united", "jetblue"], "minimum": 0.4}],
        "difference_thresholds": [{"attribute": "airline", "metric": "accuracy", "groups": ["united", "jetblue"], "maximum": 0.4}],
        "degeneracy": {"maximum_prediction_share": 0.9},
        "guards": [],
        "slices": {"significance": 0.05, "minimum_rows": 50, "thresholds": []},
        "cost": {"maximum_added_milliseconds": None, "maximum_added_tokens": None},
    }
    return GateParams.model_validate({**sections, **changes})


def good_metrics() -> dict[str, Any]:
    return {
        "n": 1700,
        "confidence_level": 0.95,
        "variants": {
            "tuned": {
                "accuracy": proportion(1105, 1700, 0.95, ""),
                "macro_f1": estimate(0.6, (0.575, 0.625), 1700),
                "log_loss": estimate(0.8, (0.77, 0.83), 1700),
                "per_class": {label: {"recall": proportion(180, 300, 0.95, "")} for label in LABELS},
                "predicted": {"negative": 800, "neutral": 600, "positive": 300},
            }
        },
        "comparisons": {"tuned_minus_hard_prompt": {"accuracy": estimate(0.17, (0.14, 0.2), 1700)}},
    }


def group(successes: int, n: int) -> dict[str, Any]:
    return {
        "n": n,
        "accuracy": proportion(successes, n, 0.95, "no rows"),
        "predicted": {"negative": n - n // 2, "neutral": n // 2, "positive": 0},
        "sufficient": n >= 50,
    }


def good_fairness() -> dict[str, Any]:
    groups = {"united": group(112, 170), "jetblue": group(63, 100), "virginamerica": group(14, 22), "delta": group(0, 0)}
    return {"n": 1700, "confidence_level": 0.95, "minimum_denominator": 50, "attributes": {"airline": {"groups": groups}}}


def checks_of(rule: GateParams | None = None, metrics: object = None, fairness: object = None) -> list[Check]:
    rule = rule or gate()
    checks = metrics_checks(rule, LABELS, good_metrics() if metrics is None else metrics)
    checks += fairness_checks(rule, ASSESSED, LABELS, good_fairness() if fairness is None else fairness)
    json.dumps(checks, allow_nan=False)
    return checks


def verdicts(checks: list[Check]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in checks}


def only(check_kind: str, threshold: dict[str, object], metrics: object = None, fairness: object = None) -> Check:
    """The single check that `threshold` plans."""
    empty = {"change_thresholds": [], "group_thresholds": [], "difference_thresholds": []}
    rule = gate(**{**empty, check_kind: [threshold]})
    checks = checks_of(rule, metrics, fairness)
    position = {"value_thresholds": 1, "change_thresholds": 3}
    return checks[position.get(check_kind, -1)]


def test_a_good_prompt_passes_every_check() -> None:
    checks = checks_of()
    assert verdicts(checks) == {
        "test_rows": "PASS",
        "accuracy": "PASS",
        "per_class.positive.recall": "PASS",
        "accuracy minus hard_prompt": "PASS",
        "degeneracy": "PASS",
        "accuracy of airline=united": "PASS",
        "accuracy of airline=jetblue": "PASS",
        "accuracy difference of airline": "PASS",
    }
    assert decide(checks) == ("promote", [])
    for check in checks:
        assert list(check) == [
            "name",
            "verdict",
            "value",
            "low",
            "high",
            "n",
            "denominator",
            "limit",
            "method",
            "rule",
            "sentence",
            "more_rows",
        ]
        assert check["sentence"].endswith(".")
        assert "\n" not in check["sentence"]


def test_nothing_is_promoted_without_checks() -> None:
    decision, reasons = decide([])
    assert decision == "refuse"
    assert len(reasons) == 1


def test_changing_the_verdict_of_any_one_check_changes_the_decision() -> None:
    checks = checks_of()
    for index, verdict in product(range(len(checks)), VERDICTS):
        changed = copy.deepcopy(checks)
        changed[index]["verdict"] = verdict
        decision, reasons = decide(changed)
        assert decision == EXPECTED[verdict]
        assert len(reasons) == (verdict != "PASS")
        if reasons:
            assert changed[index]["name"] in reasons[0]
            assert verdict in reasons[0]


@pytest.mark.parametrize("verdict", [verdict for verdict in VERDICTS if EXPECTED[verdict] == "refuse"])
def test_a_person_is_asked_only_when_nothing_fails(verdict: str) -> None:
    assert decision_of(["PASS", "INCONCLUSIVE", "INSUFFICIENT"]) == "ask"
    assert decision_of(["PASS", "INCONCLUSIVE", verdict, "INSUFFICIENT"]) == "refuse"


def test_an_unknown_verdict_refuses() -> None:
    assert decision_of(["PASS", "PROBABLY"]) == "refuse"
    assert decision_of([]) == "refuse"


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (0.55, 0.60, 0.65, "PASS"),
        (0.549, 0.60, 0.65, "INCONCLUSIVE"),
        (0.40, 0.50, 0.55, "INCONCLUSIVE"),
        (0.40, 0.50, 0.549, "FAIL"),
    ],
)
def test_value_threshold(low: float, value: float, high: float, verdict: str) -> None:
    metrics = good_metrics()
    metrics["variants"]["tuned"]["accuracy"] = estimate(value, (low, high), 1700)
    check = only("value_thresholds", {"metric": "accuracy", "minimum": 0.55}, metrics)
    assert check["verdict"] == verdict
    assert (check["value"], check["low"], check["high"], check["n"], check["limit"]) == (value, low, high, 1700, 0.55)
    for shown in (f"{value:.3f}", f"{low:.3f} to {high:.3f}", "n=1700", "0.550", "95 % interval"):
        assert shown in check["sentence"]


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict", "fragment"),
    [
        (0.01, 0.10, 0.20, "PASS", "lies above 0"),
        (0.0, 0.10, 0.20, "INCONCLUSIVE", "includes 0"),
        (-0.05, 0.12, 0.20, "INCONCLUSIVE", "includes 0"),
        (0.05, 0.09, 0.13, "FAIL", "below the required gain of 0.100"),
        (-0.2, -0.1, 0.0, "FAIL", "below the required gain"),
    ],
)
def test_change_threshold(low: float, value: float, high: float, verdict: str, fragment: str) -> None:
    metrics = good_metrics()
    metrics["comparisons"]["tuned_minus_hard_prompt"]["accuracy"] = estimate(value, (low, high), 1700)
    check = only("change_thresholds", {"metric": "accuracy", "baseline": "hard_prompt", "minimum_gain": 0.1}, metrics)
    assert check["verdict"] == verdict
    assert fragment in check["sentence"]


def test_no_gain_over_the_baseline_fails_even_when_none_is_required() -> None:
    metrics = good_metrics()
    metrics["comparisons"]["tuned_minus_hard_prompt"]["accuracy"] = estimate(0.0, (0.0, 0.0), 1700)
    check = only("change_thresholds", {"metric": "accuracy", "baseline": "hard_prompt", "minimum_gain": 0.0}, metrics)
    assert check["verdict"] == "FAIL"
    assert "at or below 0" in check["sentence"]


@pytest.mark.parametrize(
    ("name", "verdict", "n", "fragment"),
    [
        ("united", "PASS", 170, "reaches the minimum"),
        ("virginamerica", "INSUFFICIENT", 22, "22 test rows, fewer than the minimum denominator of 50"),
        ("delta", "MISSING", 0, "No test row belongs to airline delta"),
        ("lufthansa", "MISSING", None, "lufthansa"),
    ],
)
def test_group_threshold(name: str, verdict: str, n: int | None, fragment: str) -> None:
    check = only("group_thresholds", {"attribute": "airline", "metric": "accuracy", "groups": [name], "minimum": 0.4})
    assert (check["verdict"], check["n"]) == (verdict, n)
    assert fragment in check["sentence"]


def test_group_below_and_around_its_floor() -> None:
    fairness = good_fairness()
    fairness["attributes"]["airline"]["groups"] |= {"a": group(20, 100), "b": group(42, 100)}
    floor = {"attribute": "airline", "metric": "accuracy", "groups": ["a"], "minimum": 0.4}
    assert only("group_thresholds", floor, fairness=fairness)["verdict"] == "FAIL"
    assert only("group_thresholds", {**floor, "groups": ["b"]}, fairness=fairness)["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize(("maximum", "verdict"), [(0.6, "PASS"), (0.45, "INCONCLUSIVE"), (0.2, "FAIL")])
def test_difference_threshold(maximum: float, verdict: str) -> None:
    fairness = good_fairness()
    fairness["attributes"]["airline"]["groups"] |= {"a": group(80, 100), "b": group(40, 100)}
    limit = {"attribute": "airline", "metric": "accuracy", "groups": ["b", "a"], "maximum": maximum}
    check = only("difference_thresholds", limit, fairness=fairness)
    low, high = newcombe((80, 100), (40, 100), 0.95)
    assert low > 0.2
    assert high < 0.6
    assert check["verdict"] == verdict
    assert (check["value"], check["low"], check["high"], check["n"]) == pytest.approx((0.4, low, high, 200))
    assert "between a and b" in check["sentence"]


def test_a_difference_of_three_groups_is_corrected_for_three_pairs() -> None:
    fairness = good_fairness()
    fairness["attributes"]["airline"]["groups"] |= {"a": group(80, 100)}
    limit = {"attribute": "airline", "metric": "accuracy", "groups": ["united", "jetblue", "a"], "maximum": 0.4}
    check = only("difference_thresholds", limit, fairness=fairness)
    ends = [newcombe(*pair, 1 - 0.05 / 3) for pair in combinations([(112, 170), (63, 100), (80, 100)], 2)]
    assert check["high"] == pytest.approx(max(abs(end) for pair in ends for end in pair))


@pytest.mark.parametrize(("name", "verdict"), [("virginamerica", "INSUFFICIENT"), ("delta", "MISSING"), ("lufthansa", "MISSING")])
def test_a_difference_is_as_undecided_as_its_worst_group(name: str, verdict: str) -> None:
    limit = {"attribute": "airline", "metric": "accuracy", "groups": ["united", name], "maximum": 0.99}
    check = only("difference_thresholds", limit)
    assert check["verdict"] == verdict
    assert name in check["sentence"]


@pytest.mark.parametrize(
    ("predicted", "verdict", "fragment"),
    [
        ({"negative": 1530, "neutral": 100, "positive": 70}, "PASS", "0.900"),
        ({"negative": 1531, "neutral": 100, "positive": 69}, "DEGENERATE", "too much"),
        ({"negative": 1000, "neutral": 700, "positive": 0}, "DEGENERATE", "never predicted: positive"),
        ({"negative": 1700, "neutral": 0, "positive": 0}, "DEGENERATE", "never predicted: neutral, positive"),
        ({"negative": 1000, "neutral": 700}, "MISSING", "positive"),
        ({"negative": 1000, "neutral": 100, "positive": 100}, "ERROR", "sum to 1200"),
        ({"negative": 1000.0, "neutral": 350, "positive": 350}, "ERROR", "1000.0"),
        ({"negative": 1701, "neutral": -1, "positive": 0}, "ERROR", "-1"),
        (None, "MISSING", "negative"),
    ],
)
def test_degeneracy(predicted: object, verdict: str, fragment: str) -> None:
    metrics = good_metrics()
    metrics["variants"]["tuned"]["predicted"] = predicted
    check = metrics_checks(gate(), LABELS, metrics)[-1]
    assert check["verdict"] == verdict
    assert fragment in check["sentence"]


@pytest.mark.parametrize(
    ("n", "verdict"), [(500, "PASS"), (499, "INSUFFICIENT"), (0, "INSUFFICIENT"), (None, "ERROR"), (True, "ERROR"), (600.0, "ERROR")]
)
def test_minimum_test_rows(n: object, verdict: str) -> None:
    assert checks_of(metrics={**good_metrics(), "n": n})[0]["verdict"] == verdict


@pytest.mark.parametrize("metric", ["log_loss", "recall", "per_class.angry.recall", "per_class.positive.support", "per_class", ""])
def test_a_minimum_on_what_is_no_metric_is_missing(metric: str) -> None:
    check = only("value_thresholds", {"metric": metric, "minimum": 0.0})
    assert check["verdict"] == "MISSING"
    assert "macro_f1" in check["sentence"]


def test_a_label_may_contain_dots() -> None:
    metrics = good_metrics()
    metrics["variants"]["tuned"]["per_class"]["e.g."] = {"recall": proportion(90, 100, 0.95, "")}
    rule = gate(value_thresholds=[{"metric": "per_class.e.g..recall", "minimum": 0.5}])
    assert metrics_checks(rule, (*LABELS, "e.g."), metrics)[1]["value"] == 0.9


BROKEN = [math.nan, math.inf, -math.inf, None, "0.9", True, [0.9], 1.5]


@pytest.mark.parametrize("key", ["value", "low", "high"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_figure_that_is_no_number_is_an_error_in_every_kind_of_check(key: str, broken: object) -> None:
    metrics, fairness = good_metrics(), good_fairness()
    metrics["variants"]["tuned"]["accuracy"][key] = broken
    metrics["comparisons"]["tuned_minus_hard_prompt"]["accuracy"][key] = broken
    fairness["attributes"]["airline"]["groups"]["united"]["accuracy"][key] = broken
    found = verdicts(checks := checks_of(metrics=metrics, fairness=fairness))
    for name in ("accuracy", "accuracy minus hard_prompt", "accuracy of airline=united", "accuracy difference of airline"):
        assert found[name] == "ERROR"
    assert decide(checks)[0] == "refuse"
    assert repr(broken) in checks[1]["sentence"]
    assert broken == 1.5 or "expected a finite number" in checks[1]["sentence"]


def test_an_undefined_figure_says_why() -> None:
    metrics = good_metrics()
    metrics["variants"]["tuned"]["accuracy"] = no_estimate(1700, "no row has label 'positive'")
    check = checks_of(metrics=metrics)[1]
    assert (check["verdict"], check["n"]) == ("ERROR", 1700)
    assert "no row has label 'positive'" in check["sentence"]


def test_an_interval_upside_down_is_an_error() -> None:
    metrics = good_metrics()
    metrics["variants"]["tuned"]["accuracy"] = estimate(0.8, (0.9, 0.7), 1700)
    assert checks_of(metrics=metrics)[1]["verdict"] == "ERROR"


def test_a_figure_of_other_rows_than_its_group_is_an_error() -> None:
    fairness = good_fairness()
    fairness["attributes"]["airline"]["groups"]["united"]["n"] = 171
    assert verdicts(checks_of(fairness=fairness))["accuracy of airline=united"] == "ERROR"


def walk(record: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key of a nested record."""
    paths = []
    for key, value in record.items():
        paths.append((*path, key))
        if isinstance(value, dict):
            paths += walk(value, (*path, key))
    return paths


# Keys that no check of `gate()` reads; everything else is needed.
UNREAD = ("macro_f1", "log_loss", "sufficient", "virginamerica", "delta")


def changed_everywhere(change: Callable[[dict[str, Any], str], None]) -> list[tuple[tuple[str, ...], list[Check]]]:
    results = []
    for side, original in (("metrics", good_metrics()), ("fairness", good_fairness())):
        for path in walk(original):
            unread = any(part in UNREAD for part in path) or path[:4] in {("variants", "tuned", "per_class", label) for label in LABELS[:2]}
            if unread or (side == "fairness" and path == ("n",)):
                continue
            record = copy.deepcopy(original)
            parent: Any = record
            for key in path[:-1]:
                parent = parent[key]
            change(parent, path[-1])
            results.append((path, checks_of(**{side: record})))
    return results


def test_any_key_that_is_missing_refuses() -> None:
    results = changed_everywhere(lambda parent, key: parent.pop(key))
    assert len(results) > 30
    for path, checks in results:
        assert decide(checks)[0] == "refuse", path
        assert "MISSING" in verdicts(checks).values(), path


@pytest.mark.parametrize("broken", [math.nan, None, "much", [], -1])
def test_any_key_that_is_broken_refuses(broken: object) -> None:
    for path, checks in changed_everywhere(lambda parent, key: parent.__setitem__(key, broken)):
        if not (broken == -1 and path[0] == "comparisons"):  # a difference may be negative, though a low end of -1 must not pass either
            assert decide(checks)[0] == "refuse", path


def test_empty_records_refuse_every_check() -> None:
    checks = checks_of(metrics={}, fairness={})
    assert len(checks) == 8
    assert set(verdicts(checks).values()) == {"MISSING"}


def test_a_check_that_raises_refuses() -> None:
    class Exploding(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise RuntimeError("disk on fire")

    checks = checks_of(metrics=Exploding(good_metrics()))
    assert decide(checks)[0] == "refuse"
    assert checks[1]["verdict"] == "ERROR"
    assert "RuntimeError: disk on fire" in checks[1]["sentence"]


def test_worsening_a_figure_never_promotes_what_was_refused() -> None:
    """Lower accuracy, recall, gain or group accuracy never moves the decision up in the order refuse, ask, promote."""
    order = ["refuse", "ask", "promote"]
    generator = np.random.default_rng(0)
    rule = gate(difference_thresholds=[])
    seen = set()
    for _ in range(400):
        metrics, fairness = good_metrics(), good_fairness()
        tuned, groups = metrics["variants"]["tuned"], fairness["attributes"]["airline"]["groups"]
        right = int(generator.integers(850, 1200))
        gain = generator.uniform(0.05, 0.25)
        tuned["accuracy"] = proportion(right, 1700, 0.95, "")
        metrics["comparisons"]["tuned_minus_hard_prompt"]["accuracy"] = estimate(gain, (gain - 0.05, gain + 0.05), 1700)
        groups["united"] = group(int(generator.integers(70, 120)), 170)
        before = decide(checks_of(rule, metrics, fairness))[0]
        match generator.integers(3):
            case 0:
                tuned["accuracy"] = proportion(right - int(generator.integers(1, 200)), 1700, 0.95, "")
            case 1:
                lower = gain - generator.uniform(0, 0.2)
                metrics["comparisons"]["tuned_minus_hard_prompt"]["accuracy"] = estimate(lower, (lower - 0.05, lower + 0.05), 1700)
            case _:
                successes = round(groups["united"]["accuracy"]["value"] * 170)
                groups["united"] = group(successes - int(generator.integers(1, 50)), 170)
        after = decide(checks_of(rule, metrics, fairness))[0]
        assert order.index(after) <= order.index(before)
        seen.add((before, after))
    assert seen == {(before, after) for before in order for after in order if order.index(after) <= order.index(before)}


def test_making_the_worst_group_worse_never_passes_a_difference() -> None:
    order = ["FAIL", "INCONCLUSIVE", "PASS"]
    previous = len(order)
    for successes in range(100, -1, -1):
        fairness = good_fairness()
        fairness["attributes"]["airline"]["groups"] |= {"a": group(100, 100), "b": group(successes, 100)}
        limit = {"attribute": "airline", "metric": "accuracy", "groups": ["a", "b"], "maximum": 0.4}
        rank = order.index(only("difference_thresholds", limit, fairness=fairness)["verdict"])
        assert rank <= previous
        previous = rank
    assert previous == 0


def test_fewer_rows_of_the_same_share_never_pass_a_floor_that_more_rows_did_not() -> None:
    low = [wilson(round(0.6 * n), n, 0.95)[0] for n in (50, 100, 500, 1000)]
    assert low == sorted(low)
