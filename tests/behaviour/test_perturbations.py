from collections import Counter
from random import Random

import pytest

from pipeline.behaviour.perturbations import CONTRACTIONS, PERTURBATIONS, perturbed

TEXT = "@united I do not know why the flight to Boston isn't here, see http://t.co/abcdef and  call"


def test_typos_exchange_two_neighbouring_inner_letters_of_a_tenth_of_the_long_words() -> None:
    text = " ".join(["wonderful"] * 20 + ["on", "the"])
    found = perturbed("typos", text, row_id="a", seed=0)
    changed = [(one, other) for one, other in zip(text.split(), found.split(), strict=True) if one != other]
    assert len(changed) == 2
    for one, other in changed:
        assert Counter(one) == Counter(other)
        assert (one[0], one[-1]) == (other[0], other[-1])
        places = [at for at in range(len(one)) if one[at] != other[at]]
        assert places[1] == places[0] + 1
    one_word = perturbed("typos", "a late plane", row_id="a", seed=0)
    assert one_word != "a late plane"


@pytest.mark.parametrize("row", range(20))
def test_typos_leave_handles_and_addresses_alone(row: int) -> None:
    found = perturbed("typos", TEXT, row_id=str(row), seed=0)
    assert found.startswith("@united ")
    assert "http://t.co/abcdef" in found
    assert found != TEXT


def test_case_spacing_and_contractions() -> None:
    assert perturbed("case", "Late AGAIN", row_id="a", seed=0) == "late again"
    spaced = perturbed("spacing", "a b c d e f g h", row_id="a", seed=0)
    assert spaced.split() == ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert "  " in spaced
    assert perturbed("contractions", TEXT, row_id="a", seed=0) == TEXT.replace("do not", "don't").replace("isn't", "is not")
    assert perturbed("contractions", "Do not! I'M here", row_id="a", seed=0) == "Don't! I am here"


def test_contractions_go_both_ways() -> None:
    for long, short in CONTRACTIONS:
        assert PERTURBATIONS["contractions"](f"so {long} now", Random(0)) == f"so {short} now"
        assert PERTURBATIONS["contractions"](f"so {short} now", Random(0)) == f"so {long} now"


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_a_row_is_changed_in_one_way_by_its_id_and_seed(name: str) -> None:
    """Whatever other rows there are; and a text without anything to change stays."""
    assert perturbed(name, TEXT, row_id="r", seed=3) == perturbed(name, TEXT, row_id="r", seed=3)
    assert perturbed(name, "", row_id="r", seed=3) == ""
    if name in ("typos", "spacing"):
        long = TEXT * 5
        assert len({perturbed(name, long, row_id=row, seed=seed) for row in "abc" for seed in (0, 1)}) == 6
