"""Counterfactual swaps: the same text with the words of one side in place of those of the other.

Every word of either side is swapped, so "he thanked his mother" becomes "she thanked her father" with two lexicons and "she thanked her mother" with
pronouns alone. English pronouns are ambiguous without grammar: `her` is taken as a possessive (his) before a word that can be possessed and
else as an object (him), `his` likewise as her or hers. The rule looks at the next word alone and errs on some texts; a swap with wrong
grammar then counts like any other.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.behaviour.lexicons import CLEAR_PRONOUNS, FIRST_NAMES, GENDER_TERMS, MALE_FEMALE, NOT_POSSESSED

Direction = Literal["forward", "backward", "mixed"]

# (the words that follow, those that the rule looks at) of a match.
_NEXT_WORD = re.compile(r"\s+([A-Za-z']+)")
_PRONOUN = re.compile(r"(?<![\w@#])(he|she|him|her|his|hers|himself|herself)(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Swapped:
    """The other text, and from which side its words came: `forward` from the first to the second, `mixed` where both occur."""

    text: str
    direction: Direction


@dataclass(frozen=True)
class Swap:
    """A swap between two `sides`; `apply` gives the other text, or None where no word of either side occurs."""

    name: str
    sides: tuple[str, str]
    apply: Callable[[str], Swapped | None]


def built_in_swap(name: str) -> Swap:
    """One of params.BUILT_IN_SWAPS; raises KeyError for another name."""
    made: dict[str, Callable[[], Swap]] = {
        "pronouns": lambda: Swap("pronouns", MALE_FEMALE, swap_pronouns),
        "gender_terms": lambda: lexicon_swap("gender_terms", MALE_FEMALE, GENDER_TERMS),
        "first_names": lambda: lexicon_swap("first_names", MALE_FEMALE, FIRST_NAMES, as_written=True),
    }
    return made[name]()


def lexicon_swap(name: str, sides: tuple[str, str], pairs: Sequence[Sequence[str]], *, as_written: bool = False) -> Swap:
    """A swap of the words or phrases in `pairs`, longest first; `as_written` matches them only in the given case, as names need.

    A handle or a hashtag is no word. The replacement takes the case of what it replaces.
    """
    forward = {_key(first, as_written): second for first, second in pairs}
    backward = {_key(second, as_written): first for first, second in pairs}
    phrases = sorted((re.escape(word) for pair in pairs for word in pair), key=lambda word: (-len(word), word))
    pattern = re.compile(rf"(?<![\w@#])(?:{'|'.join(phrases)})(?!\w)", 0 if as_written else re.IGNORECASE)

    def replace(match: re.Match[str]) -> tuple[str, bool]:
        key = _key(match[0], as_written)
        return (forward[key], True) if key in forward else (backward[key], False)

    return Swap(name, sides, lambda text: _substituted(pattern, replace, text))


def swap_pronouns(text: str) -> Swapped | None:
    """The text with she for he, her for him and so on, and the other way round."""
    return _substituted(_PRONOUN, _other_pronoun, text)


def _other_pronoun(match: re.Match[str]) -> tuple[str, bool]:
    word = match[0].lower()
    following = _NEXT_WORD.match(match.string, match.end())
    possessed = following is not None and following[1].lower() not in NOT_POSSESSED
    clear: Mapping[str, str] = dict(CLEAR_PRONOUNS)
    if word in clear:
        return clear[word], True
    if word == "him":
        return "her", True
    if word == "his":
        return ("her" if possessed else "hers"), True
    if word == "her":
        return ("his" if possessed else "him"), False
    if word == "hers":
        return "his", False
    return {female: male for male, female in CLEAR_PRONOUNS}[word], False


def _substituted(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], tuple[str, bool]], text: str) -> Swapped | None:
    found: set[bool] = set()

    def substitute(match: re.Match[str]) -> str:
        word, is_forward = replace(match)
        found.add(is_forward)
        return _in_case_of(match[0], word)

    swapped = pattern.sub(substitute, text)
    if not found or swapped == text:
        return None
    return Swapped(swapped, "mixed" if len(found) == 2 else "forward" if True in found else "backward")


def _key(word: str, as_written: bool) -> str:
    return word if as_written else word.lower()


def _in_case_of(model: str, word: str) -> str:
    """`word` in capitals or with a capital where `model` has them."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
