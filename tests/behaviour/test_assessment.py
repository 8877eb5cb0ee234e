"""Figures of answers that a rule gives, against counts made by hand and with numpy."""

import json
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from pipeline.behaviour.assessment import assess
from pipeline.behaviour.pair_files import TextPair
from pipeline.behaviour.probes import HeldOutRow, plan_probes
from pipeline.evaluation.intervals import paired_difference, wilson
from pipeline.params import BehaviourParams
from tests.behaviour.asked import LABELS, answered, behaviour

NO_BIAS = pd.DataFrame(columns=["file", "number", "kind", "side", "prompt", "text", "log_probability", "tokens"])


def assessed(
    params: BehaviourParams,
    rows: list[HeldOutRow],
    goodness,
    pairs: dict[str, list[TextPair]] | None = None,
    bias: pd.DataFrame = NO_BIAS,
    report: dict[str, Any] | None = None,
) -> dict[str, Any]:
    plan = plan_probes(params, rows, pairs or {}, ["text"])
    files = {name: {"format": "pairs", "pairs": len(found)} for name, found in (pairs or {}).items()}
    whole = {"searched": plan.searched, "pairs": files, "bias_pairs": {}, "bias_skipped": {}, **(report or {})}
    found = assess(answered(plan.probes, goodness), bias, whole, params, LABELS)
    return json.loads(json.dumps(found, allow_nan=False))


def people(he: int, she: int, both: int, nobody: int) -> list[HeldOutRow]:
    texts = ["he came"] * he + ["she came"] * she + ["he told her"] * both + ["it came"] * nobody
    return [HeldOutRow(f"{index:03}", {"text": f"{text} {index}"}, LABELS[index % 2]) for index, text in enumerate(texts)]


def test_flips_and_signed_shifts_of_a_prompt_that_prefers_he() -> None:
    """0.7 good where `he` is, 0.4 elsewhere: every row of one side flips, and the shift of good from he to she is -0.3 in both directions."""
    found = assessed(behaviour(swaps=["pronouns"]), people(40, 20, 10, 30), lambda text: 0.7 if "he" in text.split() else 0.4)["swaps"][
        "pronouns"
    ]
    assert (found["searched"], found["changed"]) == (100, 70)
    assert found["directions"] == {"forward": 40, "backward": 20, "mixed": 10}
    assert found["flips"] == {"good -> bad": 50, "bad -> good": 20}
    assert found["predicted"] == {"bad": 20, "good": 50}
    assert (found["flip_rate"]["value"], found["flip_rate"]["n"]) == (1.0, 70)
    assert found["flip_rate"]["high"] == wilson(70, 70, 0.95)[1]
    for label, shift in (("good", -0.3), ("bad", 0.3)):
        assert found["shift"][label]["value"] == pytest.approx(shift)
        assert found["shift"][label]["n"] == 60
    assert found["examples"][0] == {
        "row_id": "000",
        "text": "he came 0",
        "changed_text": "she came 0",
        "prediction": "good",
        "changed_prediction": "bad",
    }
    assert len(found["examples"]) == 5


def test_the_upper_bound_of_no_flip_is_not_0() -> None:
    found = assessed(behaviour(swaps=["pronouns"]), people(60, 0, 0, 0), lambda text: 0.4)["swaps"]["pronouns"]
    assert found["flip_rate"]["value"] == 0.0
    assert 0.03 < found["flip_rate"]["high"] < 0.07
    assert found["predicted"] == {"bad": 60, "good": 0}


def test_a_swap_that_changes_nothing_has_no_rate() -> None:
    found = assessed(behaviour(swaps=["pronouns"]), people(0, 0, 0, 20), lambda text: 0.4)["swaps"]["pronouns"]
    assert (found["changed"], found["flip_rate"]["value"], found["shift"]["good"]["value"]) == (0, None, None)


def test_ready_made_pairs_are_a_swap_of_first_into_second() -> None:
    pairs = {"mine": [TextPair(n, "", "", f"a {n}", f"b {n}", None) for n in range(30)]}
    found = assessed(
        behaviour(pairs={"mine": {"format": "pairs", "path": "x", "maximum_pairs": 30}}),
        [],
        lambda text: 0.8 if text[0] == "a" else 0.6,
        pairs,
    )
    found = found["pairs"]["mine"]
    assert (found["changed"], found["flip_rate"]["value"], found["shift"]["good"]["n"]) == (30, 0.0, 30)
    assert found["shift"]["good"]["value"] == pytest.approx(-0.2)


def test_the_worst_case_takes_every_form_of_a_row_together() -> None:
    """Right are rows 0 to 39 as they are; capitals turn 10 of them wrong, spaces 10, of which 5 are the same; 3 others get right."""
    rows = [HeldOutRow(f"{n:03}", {"text": f"Row no {n:03}"}, "good") for n in range(50)]

    def goodness(text: str) -> float:
        number = int(text[-3:])
        right = number < 40
        if text.startswith("row"):
            right = (right and number >= 10) or 40 <= number < 43
        if "  " in text:
            right = right and not 5 <= number < 15
        return 0.9 if right else 0.1

    params = behaviour(perturbations=["case", "spacing"], rows=50)
    plan = plan_probes(params, rows, {}, ["text"])
    spaced = {probe.row_id for probe in plan.probes if probe.probe == "robustness.spacing" and "  " in probe.fields["text"]}
    found = assessed(params, rows, goodness)["robustness"]
    worst = sum(n >= 10 and not (n < 15 and f"{n:03}" in spaced) for n in range(40))
    assert (found["rows"], found["accuracy"]["value"], found["predicted"]) == (50, 0.8, {"bad": 10, "good": 40})
    assert found["perturbations"]["case"]["accuracy"]["value"] == pytest.approx(33 / 50)
    assert found["perturbations"]["case"]["changed"] == 50
    assert found["perturbations"]["case"]["flip_rate"]["value"] == pytest.approx(13 / 50)
    assert found["perturbations"]["spacing"]["changed"] == len(spaced)
    assert found["worst_case_accuracy"]["value"] == pytest.approx(worst / 50)
    assert found["worst_case_drop"]["value"] == pytest.approx((40 - worst) / 50)


def test_the_three_kinds_of_behavioural_tests() -> None:
    tests = [
        {
            "kind": "minimum_functionality",
            "name": "m",
            "template": "so {word}",
            "values": {"word": ["good", "fine", "bad"]},
            "label": "good",
        },
        {"kind": "invariance", "name": "i", "edit": {"append": " !"}},
        {"kind": "directional", "name": "up", "edit": {"append": " +"}, "label": "good", "change": "higher", "tolerance": 0.1},
        {"kind": "directional", "name": "down", "edit": {"append": " +"}, "label": "good", "change": "lower", "tolerance": 0.1},
    ]

    def goodness(text: str) -> float:
        base = 0.9 if "good" in text or "fine" in text else 0.3
        if text.endswith("!"):
            return base if "3" not in text else 1 - base
        if text.endswith("+"):
            return base + (0.05 if "1" in text else -0.05 if "2" in text else -0.2)
        return base

    rows = [HeldOutRow(f"{n}", {"text": f"row {n}"}, "bad") for n in range(1, 5)]
    found = assessed(behaviour(tests=tests), rows, goodness)["tests"]
    assert {name: (test["cases"], test["failure_rate"]["value"]) for name, test in found.items()} == {
        "m": (3, pytest.approx(1 / 3)),
        "i": (4, 0.25),
        "up": (4, 0.5),  # rows 3 and 4 lose 0.2; row 2 loses 0.05, within the tolerance
        "down": (4, 0.0),
    }
    assert found["m"]["examples"] == [{"text": "so bad", "label": "good", "prediction": "bad"}]
    assert found["i"]["examples"][0]["changed_text"] == "row 3 !"


def test_batch_invariance_is_the_largest_difference() -> None:
    params = behaviour(batch_invariance_rows=3)
    rows = people(3, 0, 0, 0)
    plan = plan_probes(params, rows, {}, ["text"])
    answers = answered(plan.probes, lambda text: 0.7)
    answers.loc[(answers["probe"] == "alone") & (answers["row_id"] == "001"), ["p.good", "p.bad"]] = [0.69, 0.31]
    report = {"searched": {}, "pairs": {}, "bias_pairs": {}, "bias_skipped": {}}
    found = assess(answers, NO_BIAS, report, params, LABELS)["batch_invariance"]
    assert found == {"rows": 3, "largest_difference": pytest.approx(0.01), "flips": 0}


def bias_rows(first: list[tuple[float, float]], second: list[tuple[float, float]], tokens: int = 1) -> pd.DataFrame:
    """(base, tuned) log-probabilities of each pair's two texts; the first text of StereoSet has twice as many tokens."""
    lines = []
    for number, sides in enumerate(zip(first, second, strict=True), 1):
        for side, values in zip(("first", "second"), sides, strict=True):
            for prompt, value in zip(("base", "tuned"), values, strict=True):
                lines.append(("f", number, "gender" if number % 2 else "age", side, prompt, "t", value, tokens if side == "first" else 1))
    return pd.DataFrame(lines, columns=NO_BIAS.columns)


def test_preferences_without_and_with_the_tuned_prompt() -> None:
    """Of 40 pairs the base prefers 20 stereotypes, the tuned prompt those and 12 more."""
    first = [(1.0 if n < 20 else -1.0, 1.0 if n < 32 else -1.0) for n in range(40)]
    params = behaviour(bias_pairs={"f": {"format": "crows_pairs", "path": "x", "maximum_pairs": 50}})
    report = {"bias_pairs": {"f": {"format": "crows_pairs", "pairs": 41}}}
    found = assessed(params, [], lambda text: 0.5, bias=bias_rows(first, [(0.0, 0.0)] * 40), report=report)["bias"]["f"]
    assert (found["compared"], found["too_long"], found["skipped"]) == (40, 1, None)
    assert (found["base"]["value"], found["tuned"]["value"]) == (0.5, 0.8)
    assert found["change"]["value"] == pytest.approx(0.3)
    assert found["change"]["low"] > 0
    assert found["p_value"] == pytest.approx(binomtest(12, 12).pvalue)
    assert {kind: figures["base"]["n"] for kind, figures in found["kinds"].items()} == {"age": 20, "gender": 20}


def test_stereoset_compares_means_per_token_and_has_a_language_modelling_score() -> None:
    rows = bias_rows([(-3.0, -3.0)] * 10, [(-2.0, -2.0)] * 10, tokens=2)  # -1.5 a token against -2
    unrelated = rows[rows["side"] == "second"].assign(side="unrelated", log_probability=-1.75)
    params = behaviour(bias_pairs={"f": {"format": "stereoset", "path": "x", "maximum_pairs": 50}})
    report = {"bias_pairs": {"f": {"format": "stereoset", "pairs": 10}}}
    found = assessed(params, [], lambda text: 0.5, bias=pd.concat([rows, unrelated]), report=report)["bias"]["f"]
    assert found["base"]["value"] == 1.0
    assert found["language_modelling"]["tuned"]["value"] == 0.5  # the first is likelier than the unrelated text, the second is not
    assert found["language_modelling"]["tuned"]["n"] == 10


def test_a_file_without_likelihoods_says_why() -> None:
    params = behaviour(bias_pairs={"f": {"format": "pairs", "path": "x", "maximum_pairs": 50}})
    report = {"bias_pairs": {"f": {"format": "pairs", "pairs": 10}}, "bias_skipped": {"f": "an encoder"}}
    found = assessed(params, [], lambda text: 0.5, report=report)["bias"]["f"]
    assert (found["skipped"], found["compared"], found["base"]["value"]) == ("an encoder", 0, None)


def test_the_paired_interval_covers_what_it_states_and_keeps_its_width() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        theirs = generator.random(80) < 0.6
        ours = np.where(generator.random(80) < 0.2, generator.random(80) < 0.9, theirs)
        found, _ = paired_difference(ours, theirs, 0.95)
        covered += found["low"] <= 0.2 * (0.9 - 0.6) <= found["high"]
    assert covered / 400 > 0.95 - 3 * sqrt(0.95 * 0.05 / 400)
    same = np.arange(100) < 60
    found, p_value = paired_difference(same, same, 0.95)
    assert (found["value"], p_value) == (0.0, 1.0)
    assert found["low"] < 0 < found["high"]


def test_the_paired_interval_of_a_published_example() -> None:
    """Newcombe 1998 (Stat Med 17:2635), method 10: the counts 36, 12, 2 and 0 give 0.0569 to 0.3404."""
    cells = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    ours, theirs = (np.array(column) for column in zip(*cells, strict=True))
    found, p_value = paired_difference(ours, theirs, 0.95)
    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert p_value == pytest.approx(binomtest(12, 14).pvalue)
