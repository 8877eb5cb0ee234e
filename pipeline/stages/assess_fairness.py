"""Stage assess_fairness: the tuned prompt's figures for each group of test rows."""

from pathlib import Path
from typing import Any

from pipeline.errors import StageInputError
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.written_rows import read_written
from pipeline.fairness.disaggregated import assess
from pipeline.fairness.groups import Attribute, make_attributes
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import read_parquet, write_json
from pipeline.variants import task_variants

# A column of more values is an identifier rather than a group.
MAXIMUM_GROUPS = 50


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `fairness` from `predictions` and the group columns of `test`, and return it.

    Raises StageInputError for inconsistent predictions, rows that are not those of `test`, and a column of very many values.
    """
    section = params.assess_fairness
    if params.prompt.free_text:
        return _assess_text(params=params, inputs=inputs, outputs=outputs)
    predictions = read_predictions(inputs.predictions, params.prompt.labels, variants=task_variants(params))
    attributes = make_attributes(section, predictions.texts, _columns(inputs.test, predictions, list(section.columns)))
    _check_sizes(attributes, inputs.test)
    report = {"task": outputs.fairness.parent.name, **assess(predictions, attributes, section)}
    write_json(outputs.fairness, report)
    return report


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
