"""BLEU and chrF of a set of answers, from sacrebleu's own counts, so that they can be resampled.

A corpus score is no mean of sentence scores: counts are added up over the rows and turned into one figure. sacrebleu gives the
counts of each row; adding and the formula are done here for all replicates at once, and tests hold the figure to sacrebleu's
own `corpus_score`. sacrebleu's scale of 0 to 100 is divided by 100, so that all metrics have one scale.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.intervals import Floats

_ORDERS = 4  # BLEU's n-grams of words
_CHRF_ORDERS, _BETA = 6, 2  # chrF2: n-grams of characters, recall twice as important

CorpusScore = Callable[[Floats], Floats]


def bleu_counts(answers: Sequence[str], targets: Sequence[str]) -> tuple[Floats, str]:
    """[N, 10]: length of answer and reference, right n-grams of 1 to 4 words, n-grams; and sacrebleu's signature."""
    from sacrebleu.metrics.bleu import BLEU

    return _counts(BLEU(), answers, targets)


def chrf_counts(answers: Sequence[str], targets: Sequence[str]) -> tuple[Floats, str]:
    """[N, 18]: for each length of n-gram its number in the answer, in the reference, and in both; and sacrebleu's signature."""
    from sacrebleu.metrics.chrf import CHRF

    return _counts(CHRF(), answers, targets)


def bleu(totals: Floats) -> Floats:
    """BLEU [R] in [0, 1], ideal 1, of added counts [R, 10] (Papineni et al. 2002), smoothed as sacrebleu does by default.

    Where no n-gram of a length is right, each further length counts as half as much as one right n-gram (method "exp").
    """
    answer, reference = totals[:, 0], totals[:, 1]
    right, number = totals[:, 2 : 2 + _ORDERS], totals[:, 2 + _ORDERS :]
    missed = np.cumsum(right == 0, axis=1)
    precision = np.where(right > 0, right, 1 / 2.0**missed) / np.maximum(number, 1)
    with np.errstate(divide="ignore"):
        brevity = np.where(answer < reference, np.exp(1 - reference / np.maximum(answer, 1e-9)), 1.0)
        # An answer without one right word, or too short for four in a row, has BLEU 0.
        usable = (number > 0).all(axis=1) & (right > 0).any(axis=1) & (answer > 0)
        return np.where(usable, brevity * np.exp(np.log(precision).mean(axis=1)), 0.0)


def chrf(totals: Floats) -> Floats:
    """chrF2 [R] in [0, 1], ideal 1, of added counts [R, 18] (Popović 2015): mean precision and recall over the lengths that both have."""
    ours, theirs, both = (totals[:, start::3] for start in range(3))
    usable = (ours > 0) & (theirs > 0)
    lengths = np.maximum(usable.sum(axis=1), 1)
    precision = np.where(usable, both / np.maximum(ours, 1), 0).sum(axis=1) / lengths
    recall = np.where(usable, both / np.maximum(theirs, 1), 0).sum(axis=1) / lengths
    weighted = _BETA**2 * precision + recall
    return np.where(weighted > 0, (1 + _BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1), 0.0)


def _counts(metric: Any, answers: Sequence[str], targets: Sequence[str]) -> tuple[Floats, str]:
    # sacrebleu names no public way to the counts of single rows.
    counts = metric._extract_corpus_statistics(list(answers), [list(targets)])
    return np.array(counts, dtype=np.float64), str(metric.get_signature())
