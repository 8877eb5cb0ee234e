"""Stage evaluate: metrics of every variant on the test rows, and the tables that DVC plots."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.figures import flat_estimates
from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.row_scores import ROW_METRICS, row_scores
from pipeline.evaluation.text_metrics import evaluate_text
from pipeline.evaluation.written_rows import WrittenRows, read_written
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import replacing_folder, write_json
from pipeline.variants import task_variants

REPORT_COLUMNS = ("variant", "label", "precision", "recall", "f1", "support")
RELIABILITY_COLUMNS = ("variant", "confidence", "accuracy", "null_low", "null_high", "n")


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `metrics` and `plots` from `predictions`; returns the metrics. Raises StageInputError for inconsistent predictions."""
    if params.prompt.free_text:
        return _evaluate_text(params=params, inputs=inputs, outputs=outputs)
    predictions = read_predictions(inputs.predictions, params.prompt.labels, variants=task_variants(params))
    figures = evaluate(
        predictions,
        confidence_level=params.evaluate.confidence_level,
        replicates=params.evaluate.bootstrap_replicates,
        seed=params.evaluate.seed,
    )
    report = {"task": outputs.metrics.parent.name, "kind": "classification", **figures}
    with replacing_folder(outputs.plots) as folder:
        _write_csv(folder / "confusion_matrix.csv", ("actual", "predicted"), _answers(predictions))
        _write_csv(folder / "metrics_by_variant.csv", ("variant", "metric", "value", "low", "high", "n"), _figures(report))
        _write_csv(folder / "classification_report.csv", REPORT_COLUMNS, _classification_report(predictions))
        _write_csv(folder / "reliability.csv", RELIABILITY_COLUMNS, _reliability(report))
    write_json(outputs.metrics, report)
    return report


def _evaluate_text(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """The same for written answers: instead of a confusion matrix, every row with its scores."""
    settings = params.prompt.generation_settings
    rows = read_written(inputs.predictions, task_variants(params))
    figures = evaluate_text(
        rows,
        metric=settings.metric,
        confidence_level=params.evaluate.confidence_level,
        replicates=params.evaluate.bootstrap_replicates,
        seed=params.evaluate.seed,
    )
    report = {"task": outputs.metrics.parent.name, **figures}
    with replacing_folder(outputs.plots) as folder:
        _write_csv(folder / "metrics_by_variant.csv", ("variant", "metric", "value", "low", "high", "n"), _figures(report))
        _write_csv(folder / "row_scores.csv", ("variant", "row_id", *ROW_METRICS), _row_scores(rows))
    write_json(outputs.metrics, report)
    return report


def _row_scores(rows: WrittenRows) -> Iterator[Sequence[Any]]:
    for variant, written in rows.variants.items():
        scores = row_scores(written.answers, rows.targets)
        for row, row_id in enumerate(rows.row_ids):
            yield variant, row_id, *(float(scores[metric][row]) for metric in ROW_METRICS)


def _answers(predictions: Predictions) -> Iterator[Sequence[str]]:
    for actual, predicted in zip(predictions.actual, predictions.tuned.predicted, strict=True):
        yield predictions.labels[actual], predictions.labels[predicted]


def _figures(report: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """One line per variant and metric; an undefined figure has empty cells."""
    for variant, metrics in report["variants"].items():
        for keys, figure in flat_estimates(metrics):
            yield variant, ".".join(keys), figure["value"], figure["low"], figure["high"], figure["n"]


def _classification_report(predictions: Predictions) -> Iterator[Sequence[Any]]:
    """scikit-learn's report of each variant, a line per label and average; a label that is never predicted has precision 0 in it."""
    from sklearn.metrics import classification_report

    options: dict[str, Any] = {"output_dict": True, "zero_division": 0}  # scikit-learn's own annotations forbid both
    for variant, scored in predictions.variants.items():
        labels = predictions.labels
        report: Any = classification_report(
            predictions.actual, scored.predicted, labels=range(len(labels)), target_names=list(labels), **options
        )
        for name, figures in report.items():
            if name != "accuracy":  # a single number, which metrics_by_variant.csv has
                yield variant, name, figures["precision"], figures["recall"], figures["f1-score"], int(figures["support"])


def _reliability(report: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """One line per variant and bin of confidence."""
    for variant, metrics in report["variants"].items():
        for item in metrics["reliability"]:
            yield variant, item["confidence"], item["accuracy"]["value"], item["null_low"], item["null_high"], item["accuracy"]["n"]


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)
