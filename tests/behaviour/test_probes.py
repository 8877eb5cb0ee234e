import pytest

from pipeline.behaviour.pair_files import TextPair
from pipeline.behaviour.probes import HeldOutRow, plan_probes
from tests.behaviour.asked import behaviour

ROWS = [
    HeldOutRow("a", {"text": "he was late"}, "bad"),
    HeldOutRow("b", {"text": "the plane was late"}, "bad"),
    HeldOutRow("c", {"text": "She was great"}, "good"),
    HeldOutRow("d", {"text": "he told her"}, "good"),
]


def planned(test_rows=ROWS, fields=("text",), pairs=None, **changes):
    plan = plan_probes(behaviour(**changes), test_rows, pairs or {}, fields)
    return {(one.probe, one.row_id, one.side): one for one in plan.probes}, plan.searched


def test_nothing_is_asked_that_is_not_named() -> None:
    assert planned() == ({}, {})


def test_a_swap_asks_the_rows_it_changes_and_their_originals_once() -> None:
    probes, searched = planned(swaps=["pronouns"], batch_invariance_rows=1)
    assert {key: one.fields["text"] for key, one in probes.items() if key[0] == "swap.pronouns"} == {
        ("swap.pronouns", "a", "forward"): "she was late",
        ("swap.pronouns", "c", "backward"): "He was great",
        ("swap.pronouns", "d", "mixed"): "she told him",
    }
    assert [key[1] for key in probes if key[0] == "original"] == ["a", "c", "d"]
    assert [key[1] for key in probes if key[0] == "alone"] == ["a"]
    assert searched == {"swap.pronouns": 4}
    assert {one.label for key, one in probes.items() if key[1] == "c"} == {"good"}


def test_a_cap_counts_changed_rows_and_says_how_many_were_searched() -> None:
    probes, searched = planned(swaps=["pronouns"], rows=2)
    assert [key[1] for key in probes if key[0] == "swap.pronouns"] == ["a", "c"]
    assert searched == {"swap.pronouns": 3}


def test_all_perturbations_are_asked_of_the_same_rows() -> None:
    probes, searched = planned(perturbations=["case", "contractions"], rows=3)
    assert [key[1] for key in probes if key[0] == "original"] == ["a", "b", "c"]
    assert [key[1] for key in probes if key[0] == "robustness.case"] == ["c"]
    assert searched == {"robustness.case": 3, "robustness.contractions": 3}


def test_every_field_is_swapped_and_the_directions_are_put_together() -> None:
    rows = [
        HeldOutRow("a", {"one": "he", "two": "she"}, "x"),
        HeldOutRow("b", {"one": "he", "two": "his bag"}, "x"),
        HeldOutRow("c", {"one": "-", "two": "her"}, "x"),
    ]
    probes, _ = planned(rows, ("one", "two"), swaps=["pronouns"])
    assert {key[1:]: dict(one.fields) for key, one in probes.items() if key[0] == "swap.pronouns"} == {
        ("a", "mixed"): {"one": "she", "two": "he"},
        ("b", "forward"): {"one": "she", "two": "her bag"},
        ("c", "backward"): {"one": "-", "two": "him"},
    }


def test_cases_pairs_and_edits_go_into_the_named_field() -> None:
    rows = [HeldOutRow("a", {"one": "x", "two": "call 911"}, "x"), HeldOutRow("b", {"one": "x", "two": "call"}, "x")]
    tests = [
        {
            "kind": "minimum_functionality",
            "name": "m",
            "cases": [{"text": "fine", "label": "good"}],
            "template": "{a} {b}",
            "values": {"a": ["so", "very"], "b": ["bad", "late"]},
            "label": "bad",
        },
        {"kind": "invariance", "name": "i", "edit": {"pattern": "[0-9]+", "by": "7"}},
        {"kind": "directional", "name": "d", "edit": {"append": "!", "prepend": "<"}, "label": "bad", "change": "lower", "tolerance": 0.0},
    ]
    pairs = {"p": [TextPair(4, "", "So.", "he came", "she came", None)]}
    probes, searched = planned(rows, ("one", "two"), pairs, field="two", context={"one": "C"}, tests=tests)
    cases = {key[1]: (one.fields["two"], one.label, one.fields["one"]) for key, one in probes.items() if key[0] == "test.m"}
    assert list(cases.values()) == [
        ("fine", "good", "C"),
        ("so bad", "bad", "C"),
        ("so late", "bad", "C"),
        ("very bad", "bad", "C"),
        ("very late", "bad", "C"),
    ]
    assert {key[1]: one.fields["two"] for key, one in probes.items() if key[0] == "test.i"} == {"a": "call 7"}
    assert probes["test.d", "b", "changed"].fields == {"one": "x", "two": "<call!"}
    assert probes["pairs.p", "pair 4", "second"].fields == {"one": "C", "two": "So. she came"}
    assert searched == {"test.i": 2, "test.d": 2}


@pytest.mark.parametrize("seed", [0, 1])
def test_new_rows_do_not_change_how_a_row_is_perturbed(seed: int) -> None:
    few, _ = planned(ROWS[1:3], perturbations=["typos", "spacing"], seed=seed)
    all_, _ = planned(ROWS, perturbations=["typos", "spacing"], seed=seed)
    for key, one in few.items():
        assert all_[key].fields == one.fields
