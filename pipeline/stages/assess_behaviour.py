"""Stage assess_behaviour: figures of the probes, from the answers and likelihoods that the stage probe wrote."""

from typing import Any

from pipeline.behaviour.assessment import assess
from pipeline.errors import StageInputError
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import read_json, read_parquet, write_json


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `behaviour` and return it. Raises StageInputError when the probes are of another task or of other params."""
    labels = params.prompt.labels
    task = outputs.behaviour.parent.name
    probe_report = read_json(inputs.probe_report)
    section = params.behaviour
    asked = {*(f"swap.{name}" for name in section.swaps), *(f"robustness.{name}" for name in section.perturbations)}
    if probe_report.get("task") != task or not asked <= set(probe_report.get("searched", ())):
        raise StageInputError(
            f"{inputs.probe_report} is of other params than those of task {task}. Run the stage probe again: `dvc repro`."
        )
    answers = read_parquet(
        inputs.behaviour_predictions, ["probe", "row_id", "side", "text", "label", "prediction", *(f"p.{label}" for label in labels)]
    )
    bias = read_parquet(inputs.bias_scores, ["file", "number", "kind", "side", "prompt", "log_probability", "tokens"])
    report = {"task": task, **assess(answers, bias, probe_report, section, labels)}
    write_json(outputs.behaviour, report)
    return report
