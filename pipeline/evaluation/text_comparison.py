"""A candidate that answers in free text against the champion on the same test rows, by the task's own metric of single rows.

Exact match is right or wrong in each row: McNemar's test and Tango's interval, as for labels. The other metrics are means over the
rows, compared by the percentile bootstrap of the paired difference. The level is that of `paired.level_of_attempt` in both cases.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluation.comparison import RIGHT_OR_WRONG, counts_of, method_of, tango
from pipeline.evaluation.intervals import Estimate, Floats, estimate, proportion
from pipeline.evaluation.paired import level_of_attempt, mcnemar_superior
from pipeline.evaluation.predictions import CHAMPION_VARIANT, TUNED
from pipeline.evaluation.row_scores import row_scores
from pipeline.evaluation.text_metrics import COMPARED, difference, resampled_figures, text_estimate
from pipeline.evaluation.written_rows import Written, WrittenRows
from pipeline.params import CompareParams


def compare_written_with_champion(
    rows: WrittenRows,
    champion: Written,
    *,
    metric: str,
    settings: CompareParams,
    attempts: int,
    replicates: int,
    confidence_level: float,
    seed: int,
) -> dict[str, Any]:
    """The figures of comparison.json by `metric`, one of ROW_METRICS; `champion` has answered the rows in their order.

    `confidence_level` is that of each one's own metric, the difference has 1 - 2 * level. `better` counts the rows that each of the
    two answers better. `guarded` has the difference of every metric that a guard may name, at `confidence_level`.
    """
    both = replace(rows, variants={TUNED: replace(rows.tuned, losses=None), CHAMPION_VARIANT: replace(champion, losses=None)})
    figures, _ = resampled_figures(both, replicates, seed)
    ours, theirs = figures[TUNED], figures[CHAMPION_VARIANT]
    n, level = len(rows.row_ids), level_of_attempt(settings.significance, attempts)
    scores = [row_scores(written.answers, rows.targets)[metric] for written in (rows.tuned, champion)]
    higher, lower = int((scores[0] > scores[1]).sum()), int((scores[0] < scores[1]).sum())
    confidence = 1 - 2 * level
    return {
        "n": n,
        "attempts": attempts,
        "level": level,
        "confidence_level": confidence,
        "metrics": {
            "candidate": _own(metric, ours[metric], scores[0], n, confidence_level),
            "champion": _own(metric, theirs[metric], scores[1], n, confidence_level),
        },
        "difference": _exact(scores, confidence) if metric in RIGHT_OR_WRONG else difference(ours[metric], theirs[metric], n, confidence),
        "p_value": mcnemar_superior(higher, lower) if metric in RIGHT_OR_WRONG else None,
        "paired": None,
        "better": {"candidate": higher, "champion": lower, "equal": n - higher - lower},
        "guarded": {
            "confidence_level": confidence_level,
            **{name: difference(ours[name], theirs[name], n, confidence_level) for name in COMPARED},
        },
        "examples": examples_of(rows, champion, scores[0] - scores[1], settings.examples),
        "method": method_of(metric),
    }


def examples_of(rows: WrittenRows, champion: Written, gains: Floats, count: int) -> dict[str, list[dict[str, str]]]:
    """Up to `count` rows that the candidate answers better, and as many of the champion's, those with the largest difference first."""

    def shown(row: int) -> dict[str, str]:
        answers = {"label": rows.targets[row], "candidate": rows.tuned.answers[row], "champion": champion.answers[row]}
        return {"row_id": rows.row_ids[row], "text": rows.texts[row], **answers}

    sides = {"candidate_only": gains, "champion_only": -gains}
    # A stable sort: row ids are hashes, so that of equal differences the first are a sample.
    return {
        side: [shown(row) for row in np.argsort(-values, kind="stable").tolist() if values[row] > 0][:count]
        for side, values in sides.items()
    }


def _own(metric: str, values: Floats, scores: Floats, n: int, confidence_level: float) -> Estimate:
    if metric in RIGHT_OR_WRONG:
        return proportion(int(scores.sum()), n, confidence_level, "there are no rows")
    return text_estimate(values, n, confidence_level)


def _exact(scores: list[Floats], confidence_level: float) -> Estimate:
    counts = counts_of(scores[0] == 1, scores[1] == 1)
    return estimate((counts.candidate_only - counts.champion_only) / counts.n, tango(counts, confidence_level), counts.n)
