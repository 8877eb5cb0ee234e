"""Small changes that leave a text's meaning as it is: typos, case, spacing and contractions, as HELM's robustness scenarios have them (Liang et al. 2022).

A perturbation takes a text and a source of randomness and gives the changed text, or the same one where there is nothing to change.
"""

import re
from collections.abc import Callable, Mapping
from random import Random

from pipeline.params import Perturbation

TYPO_SHARE = 0.1  # of the words long enough, one at least
_LONG_WORD = re.compile(r"(?<![\w@#/.])[A-Za-z]{4,}(?![\w/])")

CONTRACTIONS = (
    ("is not", "isn't"),
    ("are not", "aren't"),
    ("was not", "wasn't"),
    ("were not", "weren't"),
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("did not", "didn't"),
    ("cannot", "can't"),
    ("could not", "couldn't"),
    ("would not", "wouldn't"),
    ("should not", "shouldn't"),
    ("will not", "won't"),
    ("has not", "hasn't"),
    ("have not", "haven't"),
    ("had not", "hadn't"),
    ("i am", "i'm"),
    ("you are", "you're"),
    ("we are", "we're"),
    ("they are", "they're"),
    ("it is", "it's"),
    ("that is", "that's"),
    ("i have", "i've"),
    ("you have", "you've"),
    ("we have", "we've"),
    ("they have", "they've"),
    ("i will", "i'll"),
    ("you will", "you'll"),
    ("we will", "we'll"),
    ("they will", "they'll"),
)
_OTHER_FORM: Mapping[str, str] = dict(CONTRACTIONS) | {short: long for long, short in CONTRACTIONS}
_EITHER_FORM = re.compile(rf"(?<![\w@#])(?:{'|'.join(map(re.escape, _OTHER_FORM))})(?!\w)", re.IGNORECASE)


def typos(text: str, randomness: Random) -> str:
    """Two neighbouring inner letters exchanged in a tenth of the words of four letters or more, in one at least; URLs and handles stay."""
    words = [match for match in _LONG_WORD.finditer(text) if _exchangeable(match[0])]
    chosen = randomness.sample(words, max(1, round(TYPO_SHARE * len(words)))) if words else []
    for match in sorted(chosen, key=lambda one: -one.start()):
        at = match.start() + randomness.choice(_exchangeable(match[0]))
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def case(text: str, _: Random) -> str:
    """Everything in small letters."""
    return text.lower()


def spacing(text: str, randomness: Random) -> str:
    """Up to three spaces in place of each."""
    return re.sub(" +", lambda match: " " * randomness.randint(1, 3), text)


def contractions(text: str, _: Random) -> str:
    """The long form for each contraction (do not for don't) and the contraction for each long form."""

    def other(match: re.Match[str]) -> str:
        word = _OTHER_FORM[match[0].lower()]
        return word[:1].upper() + word[1:] if match[0][:1].isupper() else word

    return _EITHER_FORM.sub(other, text)


PERTURBATIONS: Mapping[Perturbation, Callable[[str, Random], str]] = {
    "typos": typos,
    "case": case,
    "spacing": spacing,
    "contractions": contractions,
}


def perturbed(name: Perturbation, text: str, *, row_id: str, seed: int) -> str:
    """The text changed by one perturbation; a row is always changed in the same way, whatever other rows there are."""
    return PERTURBATIONS[name](text, Random(f"{seed} {name} {row_id}"))


def _exchangeable(word: str) -> list[int]:
    """Positions of inner letters that differ from their right, also inner, neighbour."""
    return [at for at in range(1, len(word) - 2) if word[at].lower() != word[at + 1].lower()]
