"""Checks of the metrics record: enough rows, floors on metrics, gains over baselines, and answers that tell the labels apart."""

from collections.abc import Sequence
from functools import partial

from pipeline.gates.checks import Check, Figure, Finding, NoFigure, Planned, against_minimum, judged
from pipeline.gates.estimates import Record, at, count_in, figure_in
from pipeline.gates.text_checks import text_checks
from pipeline.params import ChangeThreshold, DegeneracyThreshold, GateParams, Guard, ValueThreshold, gate_metrics
from pipeline.variants import CHAMPION

PAIRED = "percentile bootstrap of the paired difference over test rows"


def metrics_checks(gate: GateParams, labels: Sequence[str], metrics: Record) -> list[Check]:
    """Every check of `gate` on the metrics of the tuned prompt of `labels`, in the order of the params."""
    return judged(_planned(gate, labels, metrics))


def _planned(gate: GateParams, labels: Sequence[str], metrics: Record) -> list[Planned]:
    rows = partial(_judge_test_rows, gate.minimum_test_rows, metrics)
    planned = [Planned("test_rows", "PASS when n >= limit", gate.minimum_test_rows, rows, "test rows")]
    for value in gate.value_thresholds:
        judge = partial(_judge_value, value, labels, metrics)
        planned.append(Planned(value.metric, "PASS when low >= limit; FAIL when high < limit", value.minimum, judge, *_basis(value.metric)))
    for change in gate.change_thresholds:
        name = f"{change.metric} minus {change.baseline}"
        rule = "PASS when value >= limit and low > 0; FAIL when value < limit or high <= 0"
        planned.append(Planned(name, rule, change.minimum_gain, partial(_judge_change, change, metrics), "test rows, paired", PAIRED))
    for guard in (one for one in gate.guards if one.baseline != CHAMPION):  # that one is judged on the comparison record
        name = f"{guard.metric} not below {guard.baseline}"
        rule = "PASS when low >= limit; FAIL when high < limit; the limit is the greatest loss that is allowed, below 0"
        planned.append(Planned(name, rule, -guard.maximum_loss, partial(_judge_guard, guard, metrics), "test rows, paired", PAIRED))
    if not labels:
        return [*planned, *text_checks(gate.degeneracy, metrics)]
    judge = partial(_judge_degeneracy, gate.degeneracy, labels, metrics)
    rule = "PASS when no label takes more than limit of the predictions and every label is predicted"
    planned.append(
        Planned("degeneracy", rule, gate.degeneracy.maximum_prediction_share, judge, "test rows", "share of the predictions, no interval")
    )
    return planned


def _basis(metric: str) -> tuple[str, str]:
    """Which rows a metric's n counts, and how its interval was made (as `pipeline.evaluation.metrics` does)."""
    wilson = "Wilson score interval"
    if not metric.startswith("per_class."):
        return "test rows", wilson if metric == "accuracy" else "percentile bootstrap over test rows"
    _, label, name = _metric_path(metric)
    rows = {"precision": f"test rows predicted {label}", "recall": f"test rows with label {label}"}
    return rows.get(
        name, f"test rows with label {label}, or predicted {label}"
    ), wilson if name in rows else f"{wilson} of the hits among them"


def _judge_test_rows(minimum: int, metrics: Record) -> Finding:
    n = count_in(at(metrics, ("n",), "the metrics record"), "the number of test rows")
    if n < minimum:
        return Finding("INSUFFICIENT", f"The test split has {n} rows, fewer than the minimum of {minimum}.", value=n, n=n)
    return Finding("PASS", f"The test split has {n} rows, at least the minimum of {minimum}.", value=n, n=n)


def _judge_value(threshold: ValueThreshold, labels: Sequence[str], metrics: Record) -> Finding:
    known = gate_metrics(labels)
    if threshold.metric not in known:
        raise NoFigure("MISSING", f"{threshold.metric} is not a metric a minimum can be set on; there are: {', '.join(known)}.")
    path = ("variants", "tuned", *_metric_path(threshold.metric))
    figure = figure_in(at(metrics, path, "the metrics record"), metrics, threshold.metric, lowest=0.0)
    return against_minimum(figure, threshold.minimum, f"{threshold.metric} of the tuned prompt")


def _judge_change(threshold: ChangeThreshold, metrics: Record) -> Finding:
    what = _named(threshold.metric, threshold.baseline)
    figure = _difference(threshold.metric, threshold.baseline, metrics)
    gain = threshold.minimum_gain
    if figure.value < gain:
        return Finding("FAIL", f"{what} is {figure}: the value is below the required gain of {gain:.3f}.", figure)
    if figure.high <= 0:
        return Finding("FAIL", f"{what} is {figure}: the whole interval is at or below 0.", figure)
    if figure.low <= 0:
        return Finding(
            "INCONCLUSIVE", f"{what} is {figure}: the value reaches the gain of {gain:.3f}, but the interval includes 0.", figure
        )
    return Finding("PASS", f"{what} is {figure}: the value reaches the gain of {gain:.3f} and the interval lies above 0.", figure)


def _judge_guard(guard: Guard, metrics: Record) -> Finding:
    return against_minimum(_difference(guard.metric, guard.baseline, metrics), -guard.maximum_loss, _named(guard.metric, guard.baseline))


def _judge_degeneracy(threshold: DegeneracyThreshold, labels: Sequence[str], metrics: Record) -> Finding:
    predicted = at(metrics, ("variants", "tuned", "predicted"), "the metrics record")
    counts = {label: count_in(at(predicted, (label,), "the predicted counts"), f"predictions of {label}") for label in labels}
    n = count_in(at(metrics, ("n",), "the metrics record"), "the number of test rows")
    if n == 0 or sum(counts.values()) != n:
        raise NoFigure("ERROR", f"The predicted counts sum to {sum(counts.values())}, the record has {n} test rows.", n)
    most = max(counts, key=lambda label: counts[label])
    share, maximum = counts[most] / n, threshold.maximum_prediction_share
    said = f"The most frequent prediction, {most}, takes {share:.3f} of {n} rows (maximum {maximum:.3f})"
    never = [label for label in labels if counts[label] == 0]
    if never:
        return Finding("DEGENERATE", f"{said}, and never predicted: {', '.join(never)}.", value=share, n=n)
    if share > maximum:
        return Finding("DEGENERATE", f"{said}: too much for a prompt that tells the labels apart.", value=share, n=n)
    return Finding("PASS", f"{said}, and every label is predicted.", value=share, n=n)


def _difference(metric: str, baseline: str, metrics: Record) -> Figure:
    """The paired difference of a metric, tuned prompt minus baseline, within [-1, 1]."""
    found = at(metrics, ("comparisons", f"tuned_minus_{baseline}", metric), "the metrics record")
    return figure_in(found, metrics, _named(metric, baseline), lowest=-1.0)


def _named(metric: str, baseline: str) -> str:
    return f"{metric} of the tuned prompt minus {baseline}"


def _metric_path(metric: str) -> tuple[str, ...]:
    """Keys below the variant; a label may contain dots, the names around it do not."""
    if not metric.startswith("per_class."):
        return (metric,)
    label, _, name = metric.removeprefix("per_class.").rpartition(".")
    return "per_class", label, name
