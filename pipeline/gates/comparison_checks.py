"""The check against the champion: better beyond chance, or not worse than by a margin; and what holds where there is no champion."""

from collections.abc import Sequence
from functools import partial
from math import isclose

from pipeline.evaluation.comparison import RIGHT_OR_WRONG, method_of
from pipeline.evaluation.paired import level_of_attempt, mcnemar_superior
from pipeline.gates.checks import Check, Figure, Finding, NoFigure, Planned, against_minimum, judged
from pipeline.gates.estimates import Record, at, count_in, figure_in
from pipeline.params import CompareParams, Guard
from pipeline.variants import CHAMPION

# Everything the record holds. A record that lacks one of these was not written by the stage `compare`, and nothing is promoted on it.
KEYS = (
    "asked",
    "champion",
    "comparable",
    "reason",
    "n",
    "attempts",
    "level",
    "confidence_level",
    "metrics",
    "difference",
    "p_value",
    "paired",
    "better",
    "guarded",
    "examples",
    "method",
)
_RECORD = "the comparison record"
_FIRST_VERSION = {"thresholds": "PASS, and the other checks decide", "ask": "INCONCLUSIVE, and a person decides"}
_TOLERANCE = 1e-9


def comparison_checks(compare: CompareParams, comparison: Record, metrics: Record) -> list[Check]:
    """The one check of the candidate against the champion, on the record of the stage `compare`.

    A first version has neither figure nor limit: nothing is compared, and the rule says who decides.
    """
    first = "champion" in comparison and comparison["champion"] is None
    superior, metric = compare.mode == "superior", compared_metric(compare, metrics)
    if first:
        rule = f"without a champion: {_FIRST_VERSION[compare.first_version]}"
    elif superior and metric in RIGHT_OR_WRONG:
        rule = "PASS when one-sided exact McNemar p <= level; FAIL when value <= 0; else INCONCLUSIVE"
    elif superior:
        rule = "PASS when low > 0; FAIL when value <= 0; else INCONCLUSIVE"
    else:
        rule = "PASS when low >= limit; FAIL when high < limit; else INCONCLUSIVE"
    limit = None if first else 0.0 if superior else -compare.margin
    judge = partial(_judge, compare, comparison, metrics)
    rows, method = (None, None) if first else ("test rows that both answered", method_of(metric))
    return judged([Planned(f"{metric} minus champion", rule, limit, judge, rows, method)])


def compared_metric(compare: CompareParams, metrics: Record) -> str:
    """What versions are compared by: `compare.metric`, or the task's own metric where it answers in free text."""
    return str(at(metrics, ("metric",), "the metrics record")) if metrics.get("kind") == "generation" else compare.metric


def champion_guards(guards: Sequence[Guard], comparison: Record, metrics: Record) -> list[Check]:
    """The checks of the guards that name the champion, on the same record: a metric that may not fall far below the champion's."""
    rule = "PASS when low >= limit; FAIL when high < limit; a first version passes; the limit is the greatest loss that is allowed, below 0"
    return judged(
        Planned(
            f"{guard.metric} not below champion",
            rule,
            -guard.maximum_loss,
            partial(_judge_guard, guard, comparison, metrics),
            "test rows that both answered",
            "percentile bootstrap of the paired difference over test rows",
        )
        for guard in guards
        if guard.baseline == CHAMPION
    )


def _judge_guard(guard: Guard, comparison: Record, metrics: Record) -> Finding:
    champion, comparable, reason = (at(comparison, (key,), _RECORD) for key in ("champion", "comparable", "reason"))
    if champion is None:
        if not isinstance(reason, str) or not reason or comparable is not False:
            raise NoFigure("ERROR", "The comparison record names neither a champion nor the reason why there is none.")
        return Finding("PASS", f"This is a first version ({reason}): there is no champion to fall below.", value=0.0, n=0)
    version = count_in(at(champion, ("version",), "the champion"), "the champion's version")
    if comparable is not True:
        return Finding("INCONCLUSIVE", f"The champion, version {version}, cannot be compared with: {reason}. A person decides.")
    guarded = at(comparison, ("guarded",), _RECORD)
    what = f"{guard.metric} minus that of the champion, version {version},"
    figure = figure_in(at(guarded, (guard.metric,), _RECORD), guarded, what, lowest=-1.0)
    if figure.n != metrics.get("n"):
        raise NoFigure("ERROR", f"{what} rests on {figure.n} rows, the metrics are of {metrics.get('n')!r}.", figure.n)
    return against_minimum(figure, -guard.maximum_loss, what)


def _judge(compare: CompareParams, comparison: Record, metrics: Record) -> Finding:
    for key in KEYS:
        at(comparison, (key,), _RECORD)
    metric = compared_metric(compare, metrics)
    if dict(comparison["asked"]) != {**compare.model_dump(mode="json"), "metric": metric}:
        raise NoFigure("ERROR", "The comparison was made with other params than the gate has. Run the stage compare again.")
    champion, comparable = comparison["champion"], comparison["comparable"]
    if champion is None:
        return _first_version(compare, comparison)
    version = count_in(at(champion, ("version",), "the champion"), "the champion's version")
    at(champion, ("manifest_sha256",), "the champion")
    if comparable is not True:
        reason = str(comparison["reason"])
        return Finding(
            "INCONCLUSIVE",
            f"The champion, version {version}, cannot be compared with: {reason}. A person decides; without the alias `champion` this is a first version.",
        )
    return _compared(compare, metric, comparison, metrics, f"{metric} minus that of the champion, version {version},")


def _first_version(compare: CompareParams, comparison: Record) -> Finding:
    reason = comparison["reason"]
    if not isinstance(reason, str) or not reason or comparison["comparable"] is not False:
        raise NoFigure("ERROR", "The comparison record names neither a champion nor the reason why there is none.")
    if compare.first_version == "thresholds":
        return Finding("PASS", f"This is a first version ({reason}): there is nothing to compare with, and the other checks decide.")
    return Finding("INCONCLUSIVE", f"This is a first version ({reason}), and compare.first_version asks a person to decide.")


def _compared(compare: CompareParams, metric: str, comparison: Record, metrics: Record, what: str) -> Finding:
    (ours, theirs, n), level = _counts(comparison, metrics), _level(compare, comparison)
    figure = figure_in(comparison["difference"], comparison, what, lowest=-1.0)
    if figure.n != n:
        raise NoFigure("ERROR", f"{what} rests on {figure.n} rows, {n} were paired.", figure.n)
    attempts = comparison["attempts"]
    said = f"{what} is {figure}, attempt {attempts} on these rows"
    if compare.mode == "non_inferior":
        return _non_inferior(figure, compare.margin, said)
    if metric not in RIGHT_OR_WRONG:
        return _superior(figure, figure.low > 0, f"{said}: the interval is at the level of {level:.4g}")
    if abs(figure.value - (ours - theirs) / n) > _TOLERANCE:
        raise NoFigure("ERROR", f"{what} is {figure.value} in the record, its paired counts say otherwise.", figure.n)
    p = mcnemar_superior(ours, theirs)
    rows = f"{ours} rows that it alone has right, {theirs} that the champion alone has right"
    return _superior(figure, p <= level, f"{said}: {rows}, p = {p:.4g} at the level of {level:.4g}")


def _superior(figure: Figure, sure: bool, said: str) -> Finding:
    if figure.value <= 0:
        return Finding("FAIL", f"{said}; it is not better.", figure)
    if sure:
        return Finding("PASS", f"{said}; it is better beyond chance.", figure)
    return Finding("INCONCLUSIVE", f"{said}; so small a gain may be chance.", figure)


def _non_inferior(figure: Figure, margin: float, said: str) -> Finding:
    if figure.low >= -margin:
        return Finding("PASS", f"{said}; it is not worse than by the margin of {margin:.3f}.", figure)
    if figure.high < -margin:
        return Finding("FAIL", f"{said}; it is worse by more than the margin of {margin:.3f}.", figure)
    return Finding("INCONCLUSIVE", f"{said}; the interval holds the margin of -{margin:.3f}, so these rows cannot decide.", figure)


def _counts(comparison: Record, metrics: Record) -> tuple[int, int, int]:
    """Rows that the candidate alone has right (free text: answers better), those of the champion, and all that were compared."""
    if metrics.get("kind") == "generation":
        found, names = at(comparison, ("better",), _RECORD), ("candidate", "champion", "equal")
    else:
        found, names = comparison["paired"], ("candidate_only", "champion_only", "both_right", "both_wrong")
    counts = [count_in(at(found, (name,), "the paired counts"), f"rows {name}") for name in names]
    n = count_in(comparison["n"], "the number of compared rows")
    if not n == sum(counts) == metrics.get("n") or n == 0:
        raise NoFigure(
            "ERROR", f"{n} rows were compared, the paired counts sum to {sum(counts)}, the metrics are of {metrics.get('n')!r}.", n
        )
    return counts[0], counts[1], n


def _level(compare: CompareParams, comparison: Record) -> float:
    attempts = count_in(comparison["attempts"], "the number of attempts")
    if attempts < 1:
        raise NoFigure("ERROR", "The comparison record counts 0 attempts; this one is the first.")
    level = level_of_attempt(compare.significance, attempts)
    stated = comparison["confidence_level"]
    if not isinstance(stated, float) or not isclose(stated, 1 - 2 * level, abs_tol=_TOLERANCE):
        raise NoFigure("ERROR", f"The interval has confidence level {stated!r}, attempt {attempts} needs {1 - 2 * level:.6g}.")
    return level
