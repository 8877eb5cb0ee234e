"""Stage assess_fairness: the tuned prompt's figures for each group of test rows."""

from typing import Any

from pipeline.evaluation.predictions import read_predictions
from pipeline.fairness.disaggregated import assess
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import write_json


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `fairness` from `predictions` and return it. Raises StageInputError for inconsistent predictions."""
    predictions = read_predictions(inputs.predictions, params.prompt.labels, hard_prompt=bool(params.prompt.hard_prompts))
    report = {"task": outputs.fairness.parent.name, **assess(predictions, params.assess_fairness)}
    write_json(outputs.fairness, report)
    return report
