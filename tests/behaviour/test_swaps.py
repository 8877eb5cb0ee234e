import pytest

from pipeline.behaviour.lexicons import FIRST_NAMES, GENDER_TERMS
from pipeline.behaviour.swaps import Swapped, built_in_swap, lexicon_swap, swap_pronouns


@pytest.mark.parametrize(
    ("text", "other", "direction"),
    [
        ("He lost his bag", "She lost her bag", "forward"),
        ("she told him that", "he told her that", "mixed"),
        ("I asked her about my seat", "I asked him about my seat", "backward"),
        ("her flight was late", "his flight was late", "backward"),
        ("The bag is his.", "The bag is hers.", "forward"),
        ("HE SAID SO HIMSELF", "SHE SAID SO HERSELF", "forward"),
        ("he's late", "she's late", "forward"),
        ("give it to her!", "give it to him!", "backward"),
        ("the bag is hers", "the bag is his", "backward"),
    ],
)
def test_pronouns(text: str, other: str, direction: str) -> None:
    assert swap_pronouns(text) == Swapped(other, direction)


@pytest.mark.parametrize("text", ["the plane", "@he is here", "#she", "there", "", "theme"])
def test_what_has_no_pronoun_is_not_swapped(text: str) -> None:
    assert swap_pronouns(text) is None


def test_terms_take_the_case_of_what_they_replace_and_swap_back() -> None:
    swap = built_in_swap("gender_terms")
    found = swap.apply("My Husband and two MEN, a boyfriend")
    assert found == Swapped("My Wife and two WOMEN, a girlfriend", "forward")
    assert swap.apply(found.text) == Swapped("My Husband and two MEN, a boyfriend", "backward")
    assert swap.sides == ("male", "female")


def test_names_are_matched_as_written() -> None:
    swap = built_in_swap("first_names")
    assert swap.apply("thanks James!") == Swapped("thanks Mary!", "forward")
    assert swap.apply("james") is None
    assert swap.apply("@James") is None


def test_the_users_own_lexicon_takes_the_longest_phrase() -> None:
    swap = lexicon_swap("religion", ("christian", "muslim"), [["church", "mosque"], ["church service", "friday prayer"]])
    assert swap.apply("After the Church service, at church") == Swapped("After the Friday prayer, at mosque", "forward")
    assert swap.apply("the mosque near the church") == Swapped("the church near the mosque", "mixed")


@pytest.mark.parametrize("pairs", [GENDER_TERMS, FIRST_NAMES])
def test_no_word_of_a_lexicon_has_two_counterparts(pairs: tuple[tuple[str, str], ...]) -> None:
    words = [word.lower() for pair in pairs for word in pair]
    assert len(words) == len(set(words)) == 2 * len(pairs)


def test_another_name_is_no_built_in_swap() -> None:
    with pytest.raises(KeyError):
        built_in_swap("dialect")
