"""Stage evaluate: metrics of every variant on the test rows, and the tables that DVC plots."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import replacing_folder, write_json


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `metrics` and `plots` from `predictions`; returns the metrics. Raises StageInputError for inconsistent predictions."""
    predictions = read_predictions(inputs.predictions, params.prompt.labels, hard_prompt=bool(params.prompt.hard_prompts))
    figures = evaluate(
        predictions,
        confidence_level=params.evaluate.confidence_level,
        replicates=params.evaluate.bootstrap_replicates,
        seed=params.evaluate.seed,
    )
    report = {"task": outputs.metrics.parent.name, **figures}
    with replacing_folder(outputs.plots) as folder:
        _write_csv(folder / "confusion_matrix.csv", ("actual", "predicted"), _answers(predictions))
        _write_csv(folder / "metrics_by_variant.csv", ("variant", "metric", "value", "low", "high", "n"), _figures(report))
    write_json(outputs.metrics, report)
    return report


def _answers(predictions: Predictions) -> Iterator[Sequence[str]]:
    for actual, predicted in zip(predictions.actual, predictions.tuned.predicted, strict=True):
        yield predictions.labels[actual], predictions.labels[predicted]


def _figures(report: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """One line per variant and metric; an undefined figure has empty cells."""
    for variant, metrics in report["variants"].items():
        estimates = {name: metrics[name] for name in ("accuracy", "macro_f1", "log_loss")}
        for label, figures in metrics["per_class"].items():
            estimates |= {f"per_class.{label}.{name}": figures[name] for name in ("precision", "recall", "f1")}
        for name, figure in estimates.items():
            yield variant, name, figure["value"], figure["low"], figure["high"], figure["n"]


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)
