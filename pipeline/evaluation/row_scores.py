"""How well one written answer agrees with its reference: exact match, token F1 and ROUGE, each in [0, 1], ideal 1."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.intervals import Floats

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
ROW_METRICS = ("exact_match", "token_f1", *ROUGE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_words(text: str) -> list[str]:
    """The words of an answer as SQuAD's evaluation compares them: small letters, without ASCII punctuation and the articles a, an, the.

    Rajpurkar et al. 2016; the order of the steps is that of their evaluate-v1.1.py.
    """
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, target: str) -> float:
    """1 when both are the same words in the same order (SQuAD normalisation), else 0."""
    return float(squad_words(answer) == squad_words(target))


def token_f1(answer: str, target: str) -> float:
    """F1 of the words that both have, counted with their repetitions (SQuAD normalisation); 1 when neither has any, as in SQuAD 2.0."""
    ours, theirs = squad_words(answer), squad_words(target)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def row_scores(answers: Sequence[str], targets: Sequence[str]) -> dict[str, Floats]:
    """Every metric of ROW_METRICS of each answer, [N]. ROUGE is the F-measure of rouge-score with Porter stemming (Lin 2004).

    rouge-score keeps small ASCII letters and digits only: an answer in another script has no words and scores 0.
    """
    pairs = list(zip(answers, targets, strict=True))
    found = {"exact_match": [exact_match(*pair) for pair in pairs], "token_f1": [token_f1(*pair) for pair in pairs]}
    rouge: list[Any] = [_scorer().score(target, answer) for answer, target in pairs]
    found |= {name: [float(scores[theirs].fmeasure) for scores in rouge] for name, theirs in ROUGE.items()}
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def repetition(text: str) -> float:
    """Share of the words' three in a row that stand in the answer before, in [0, 1], ideal 0 (1 - distinct-3 of Li et al. 2016)."""
    words = text.split()
    trigrams = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


@cache
def _scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE.values()), use_stemmer=True)
