"""Stage compare: the candidate against the champion on the candidate's test rows, at a level that knows how often that was tried."""

from typing import Any

from pipeline.errors import StageInputError
from pipeline.evaluation.comparison import compare_with_champion, method_of
from pipeline.evaluation.predictions import read_champion_predictions, read_predictions
from pipeline.evaluation.text_comparison import compare_written_with_champion
from pipeline.evaluation.written_rows import read_champion_written, read_written
from pipeline.layout import Paths
from pipeline.manifest import manifest_sha256
from pipeline.params import TaskParams
from pipeline.params.task import main_metric
from pipeline.records import read_json, write_json

NOTHING: dict[str, Any] = dict.fromkeys(
    ("n", "attempts", "level", "confidence_level", "metrics", "difference", "p_value", "paired", "better", "guarded", "examples")
)


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `comparison` and return it. Raises StageInputError when predictions and champion are not of the same rows."""
    champion = read_json(inputs.champion_report)
    known = champion.get("version") is not None
    metric, _ = main_metric(params)
    report: dict[str, Any] = {
        "task": outputs.comparison.parent.name,
        "asked": {**params.compare.model_dump(mode="json"), "metric": metric},
        "champion": {key: champion[key] for key in ("version", "manifest_sha256", "base_model_id")} if known else None,
        "comparable": champion["comparable"],
        "reason": champion["reason"],
        **NOTHING,
        "method": method_of(metric),
    }
    if champion["comparable"]:
        settings: dict[str, Any] = {
            "settings": params.compare,
            "attempts": attempts_with(read_json(inputs.attempts), champion["version"], manifest_sha256(inputs.bundle)),
            "replicates": params.evaluate.bootstrap_replicates,
            "confidence_level": params.evaluate.confidence_level,
            "seed": params.evaluate.seed,
        }
        report |= _written(inputs, metric, settings) if params.prompt.free_text else _labelled(params, inputs, settings)
    write_json(outputs.comparison, report)
    return report


def _labelled(params: TaskParams, inputs: Paths, settings: dict[str, Any]) -> dict[str, Any]:
    predictions = read_predictions(inputs.predictions, params.prompt.labels)
    scored = read_champion_predictions(inputs.champion_predictions, predictions)
    if scored is None:
        raise _no_rows(inputs)
    return compare_with_champion(predictions, scored, **settings)


def _written(inputs: Paths, metric: str, settings: dict[str, Any]) -> dict[str, Any]:
    rows = read_written(inputs.predictions)
    written = read_champion_written(inputs.champion_predictions, rows)
    if written is None:
        raise _no_rows(inputs)
    return compare_written_with_champion(rows, written, metric=metric, **settings)


def _no_rows(inputs: Paths) -> StageInputError:
    return StageInputError(f"{inputs.champion_predictions} has no rows, though the champion answered. Run the stage score_champion again.")


def attempts_with(attempts: dict[str, Any], champion: int, candidate: str) -> int:
    """How many distinct bundles have tried against the champion on this test split, that with the manifest `candidate` included."""
    if attempts.get("champion") != champion:
        raise StageInputError(
            f"The attempts are those against version {attempts.get('champion')}, the champion is version {champion}. Run the stage reference again."
        )
    return len({str(entry["manifest_sha256"]) for entry in attempts["registered"]} | {candidate})
