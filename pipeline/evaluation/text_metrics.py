"""Metrics of written answers with bootstrap intervals, and the paired comparisons of the tuned prompt with each baseline."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.evaluation.corpus_scores import bleu, bleu_counts, chrf, chrf_counts
from pipeline.evaluation.intervals import (
    Estimate,
    Floats,
    estimate,
    no_estimate,
    percentile_interval,
    proportion,
    resampled_column_means,
    wilson,
)
from pipeline.evaluation.predictions import TUNED
from pipeline.evaluation.row_scores import ROW_METRICS, repetition, row_scores
from pipeline.evaluation.written_rows import Written, WrittenRows

METHOD = (
    "exact match, invalid output rate: Wilson score interval; token F1, ROUGE, repetition: percentile bootstrap of the mean over test rows; "
    "BLEU, chrF, perplexity, length ratio: of the rows' counts, added up anew in each replicate; a metric that is 0, or 1, on every row has "
    "the ends of Wilson's interval; differences: the same rows in each replicate"
)
# Metrics with a comparison: the more, the better, in [0, 1].
COMPARED = (*ROW_METRICS, "bleu", "chrf")


def evaluate_text(rows: WrittenRows, *, metric: str, confidence_level: float, replicates: int, seed: int) -> dict[str, Any]:
    """Metrics of every variant and the paired comparisons, ready for JSON; `metric` is the task's own (prompt.generation.metric)."""
    figures, signatures = resampled_figures(rows, replicates, seed)
    level = confidence_level
    return {
        "kind": "generation",
        "n": len(rows.row_ids),
        "metric": metric,
        "confidence_level": level,
        "replicates": replicates,
        "method": METHOD,
        "signatures": signatures,
        "variants": {name: _described(rows, rows.variants[name], found, level) for name, found in figures.items()},
        "comparisons": {
            f"{TUNED}_minus_{name}": {one: difference(figures[TUNED][one], found[one], len(rows.row_ids), level) for one in COMPARED}
            for name, found in figures.items()
            if name != TUNED
        },
    }


def resampled_figures(rows: WrittenRows, replicates: int, seed: int) -> tuple[dict[str, dict[str, Floats]], dict[str, str]]:
    """Variant -> metric -> its value and those of the replicates [1 + R]; and the signatures of sacrebleu's metrics."""
    columns, signatures = _columns(rows)
    # One matrix for all variants: each replicate has the same rows of all of them.
    together = np.concatenate(list(columns.values()), axis=1)
    means = np.concatenate([together.mean(axis=0, keepdims=True), resampled_column_means(together, replicates, seed)])
    parts = dict(zip(columns, np.split(means, len(columns), axis=1), strict=True))
    return {name: _figures(part, rows.variants[name].losses is not None) for name, part in parts.items()}, signatures


def _columns(rows: WrittenRows) -> tuple[dict[str, Floats], dict[str, str]]:
    """What is added up over the rows, of each variant, [N, M]; and the signatures of sacrebleu's metrics.

    In this order: the ROW_METRICS, repetition, words of the answer, words of the reference, loss x tokens of the reference, its tokens,
    BLEU's 10 counts, chrF's 18.
    """
    columns: dict[str, Floats] = {}
    signatures: dict[str, str] = {}
    words = [len(target.split()) for target in rows.targets]
    for name, written in rows.variants.items():
        scores = row_scores(written.answers, rows.targets)
        losses = np.zeros(len(words)) if written.losses is None else written.losses
        counts, signatures["bleu"] = bleu_counts(written.answers, rows.targets)
        characters, signatures["chrf"] = chrf_counts(written.answers, rows.targets)
        own = [
            *(scores[metric] for metric in ROW_METRICS),
            np.array([repetition(answer) for answer in written.answers]),
            np.array([len(answer.split()) for answer in written.answers]),
            np.array(words),
            losses * rows.target_tokens,
            rows.target_tokens,
        ]
        columns[name] = np.column_stack([*own, counts, characters]).astype(np.float64)
    return columns, signatures


def _figures(means: Floats, with_losses: bool) -> dict[str, Floats]:
    """Every figure of one variant from the columns' means [1 + R, M]; a mean serves as well as a sum, since all figures are ratios."""
    count = len(ROW_METRICS)
    found = {metric: means[:, index] for index, metric in enumerate(ROW_METRICS)}
    found |= {"bleu": bleu(means[:, count + 5 : count + 15]), "chrf": chrf(means[:, count + 15 :])}
    found |= {"repetition": means[:, count], "length_ratio": means[:, count + 1] / np.maximum(means[:, count + 2], 1e-9)}
    if with_losses:
        found["perplexity"] = np.exp(means[:, count + 3] / means[:, count + 4])
    return found


def _described(rows: WrittenRows, written: Written, figures: Mapping[str, Floats], level: float) -> dict[str, Any]:
    """One variant. Metrics of COMPARED lie in [0, 1], ideal 1.

    `perplexity` of the references, at least 1, ideal 1: exp of the mean loss of all their tokens. `invalid_output_rate`: answers that
    are empty or were cut short, in [0, 1], ideal 0. `length_ratio`: words of all answers over words of all references, ideal 1.
    `repetition`: share of repeated trigrams of an answer, in [0, 1], ideal 0.
    """
    n = len(rows.row_ids)
    empty, cut = np.array([not answer for answer in written.answers]), ~written.ended
    metrics = {name: text_estimate(values, n, level) for name, values in figures.items() if name not in ("exact_match", "perplexity")}
    text, count = min(Counter(written.answers).items(), key=lambda item: (-item[1], item[0]))
    return {
        "exact_match": proportion(round(float(figures["exact_match"][0]) * n), n, level, "there are no rows"),
        **metrics,
        "perplexity": text_estimate(figures["perplexity"], n, level)
        if "perplexity" in figures
        else no_estimate(n, "written without a model"),
        "invalid_output_rate": proportion(int((empty | cut).sum()), n, level, "there are no rows"),
        "empty": int(empty.sum()),
        "cut": int(cut.sum()),
        "distinct_answers": len(set(written.answers)),
        "commonest_answer": {"text": text, "rows": count},
    }


def text_estimate(values: Floats, n: int, level: float) -> Estimate:
    """A metric of one variant from its value and those of the replicates [1 + R], over `n` rows."""
    value = float(values[0])
    interval = percentile_interval(values[1:], level)
    if interval[0] == interval[1] and value in (0.0, 1.0):  # the bootstrap sees no other outcome
        interval = wilson(round(value * n), n, level)
    return estimate(value, interval, n)


def difference(ours: Floats, theirs: Floats, n: int, level: float) -> Estimate:
    """The paired difference, ours minus theirs, of a metric from its values and replicates [1 + R], over `n` rows."""
    return estimate(float(ours[0] - theirs[0]), percentile_interval(ours[1:] - theirs[1:], level), n)
