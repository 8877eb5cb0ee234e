"""Checks of written answers: they differ from row to row, and hardly any is empty or cut short."""

from functools import partial

from pipeline.gates.checks import Finding, NoFigure, Planned, against_maximum
from pipeline.gates.estimates import Record, at, count_in, figure_in
from pipeline.params import DegeneracyThreshold


def text_checks(threshold: DegeneracyThreshold, metrics: Record) -> list[Planned]:
    """The checks that stand in place of those on labels: the commonest answer's share, and the share of invalid answers."""
    return [
        Planned(
            "degeneracy",
            "PASS when no answer takes more than limit of the rows",
            threshold.maximum_prediction_share,
            partial(_judge_commonest, threshold, metrics),
            denominator="test rows",
        ),
        Planned(
            "invalid_output_rate",
            "PASS when high <= limit; FAIL when low > limit",
            threshold.maximum_invalid_share,
            partial(_judge_invalid, threshold, metrics),
            denominator="test rows",
            method="Wilson score interval",
        ),
    ]


def _judge_commonest(threshold: DegeneracyThreshold, metrics: Record) -> Finding:
    n = count_in(at(metrics, ("n",), "the metrics record"), "the number of test rows")
    path = ("variants", "tuned", "commonest_answer")
    rows = count_in(at(metrics, (*path, "rows"), "the metrics record"), "the rows with the commonest answer")
    text = str(at(metrics, (*path, "text"), "the metrics record"))
    if n == 0 or not 0 < rows <= n:
        raise NoFigure("ERROR", f"The commonest answer has {rows} rows, the record has {n} test rows.", n)
    share, maximum = rows / n, threshold.maximum_prediction_share
    said = f"The commonest answer, {text[:80]!r}, takes {share:.3f} of {n} rows (maximum {maximum:.3f})"
    if share > maximum:
        return Finding("DEGENERATE", f"{said}: too much for a prompt that looks at its rows.", value=share, n=n)
    return Finding("PASS", f"{said}.", value=share, n=n)


def _judge_invalid(threshold: DegeneracyThreshold, metrics: Record) -> Finding:
    what = "invalid_output_rate (answers that are empty or cut short) of the tuned prompt"
    figure = figure_in(at(metrics, ("variants", "tuned", "invalid_output_rate"), "the metrics record"), metrics, what, lowest=0.0)
    return against_maximum(figure, threshold.maximum_invalid_share, what)
