"""Stage assess_fairness: the tuned prompt's figures for each group of test rows."""

from pathlib import Path
from typing import Any

from pipeline.errors import StageInputError
from pipeline.evaluation.predictions import Predictions, read_champion_predictions, read_predictions
from pipeline.evaluation.written_rows import read_written
from pipeline.fairness.disaggregated import assess
from pipeline.fairness.groups import Attribute, make_attributes
from pipeline.fairness.relative import METHOD, REPLICATES, limited_differences, relative_differences
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import read_json, read_parquet, write_json
from pipeline.variants import task_variants

# A column of more values is an identifier rather than a group.
MAXIMUM_GROUPS = 50


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `fairness` from `predictions`, those of the champion and the group columns of `test`, and return it.

    Raises StageInputError for inconsistent predictions, rows that are not those of `test`, and a column of very many values.
    """
    section = params.assess_fairness
    if params.prompt.free_text:
        return _assess_text(params=params, inputs=inputs, outputs=outputs)
    predictions = read_predictions(inputs.predictions, params.prompt.labels, variants=task_variants(params))
    attributes = make_attributes(section, predictions.texts, _columns(inputs.test, predictions, list(section.columns)))
    _check_sizes(attributes, inputs.test)
    report = {"task": outputs.fairness.parent.name, **assess(predictions, attributes, section)}
    report["relative"] = _relative(params, inputs, predictions, attributes)
    write_json(outputs.fairness, report)
    return report


def _relative(params: TaskParams, inputs: Paths, predictions: Predictions, attributes: dict[str, Attribute]) -> dict[str, Any]:
    """How much more groups differ than with the champion, for each difference that the gate limits so; none without a champion to compare with."""
    asked = [one for one, _ in limited_differences(params.gate.relative_difference_thresholds, params.prompt.labels)]
    champion = read_json(inputs.champion_report)
    scored = read_champion_predictions(inputs.champion_predictions, predictions) if champion["comparable"] else None
    if champion["comparable"] and scored is None:
        raise StageInputError(
            f"{inputs.champion_predictions} has no rows, though the champion answered. Run the stage score_champion again: `dvc repro`."
        )
    settings: dict[str, Any] = {
        "minimum_denominator": params.assess_fairness.minimum_denominator,
        "confidence_level": params.assess_fairness.confidence_level,
    }
    return {
        "champion": champion["version"],
        "comparable": champion["comparable"],
        "reason": champion["reason"],
        "number": len(asked),
        "replicates": REPLICATES,
        "method": METHOD,
        "differences": [] if scored is None else relative_differences(predictions, scored, attributes, asked, **settings),
    }


def _assess_text(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Of written answers no groups are assessed, which params.yaml is checked for: every parity here speaks of labels."""
    section = params.assess_fairness
    rows = read_written(inputs.predictions, task_variants(params))
    report = {
        "task": outputs.fairness.parent.name,
        "n": len(rows.row_ids),
        "confidence_level": section.confidence_level,
        "minimum_denominator": section.minimum_denominator,
        "comparisons": 0,
        "method": "none: answers in free text have no labels to compare groups by",
        "attributes": {},
        "relative": None,
    }
    write_json(outputs.fairness, report)
    return report


def _columns(test: Path, predictions: Predictions, names: list[str]) -> dict[str, list[str | None]]:
    """Attribute -> its value in each row of the predictions, None where it is empty."""
    if not names:
        return {}
    frame = read_parquet(test, ["row_id", *(f"group.{name}" for name in names)]).set_index("row_id")
    if sorted(map(str, frame.index)) != sorted(predictions.row_ids):
        raise StageInputError(
            f"{test} has {len(frame)} rows that are not the {len(predictions.row_ids)} of the predictions. Run the stage score again: `dvc repro`."
        )
    rows = frame.loc[predictions.row_ids]
    return {name: [None if value is None or value != value else str(value) for value in rows[f"group.{name}"].tolist()] for name in names}


def _check_sizes(attributes: dict[str, Attribute], test: Path) -> None:
    for name, attribute in attributes.items():
        if attribute.derived_from == "column" and len(attribute.groups) > MAXIMUM_GROUPS:
            raise StageInputError(
                f"{test}: the column group.{name} has {len(attribute.groups)} values, at most {MAXIMUM_GROUPS} can be compared. Map a coarser "
                f"column in ingest.columns.groups or take {name} out of assess_fairness.columns."
            )
