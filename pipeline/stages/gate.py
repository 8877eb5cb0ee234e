"""Stage gate: every check of the promotion rule, and the decision. A refusal is a result, not an error."""

from pathlib import Path
from typing import Any

from pipeline.errors import StageInputError
from pipeline.gates.behaviour_checks import behaviour_checks
from pipeline.gates.comparison_checks import champion_guards, comparison_checks
from pipeline.gates.cost_checks import cost_checks
from pipeline.gates.data_checks import drift_checks, leakage_checks
from pipeline.gates.decision import decide
from pipeline.gates.fairness_checks import fairness_checks
from pipeline.gates.metrics_checks import metrics_checks
from pipeline.gates.relative_checks import relative_checks
from pipeline.gates.slice_checks import slice_checks
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import read_json, sha256_file, write_json

HASHED = (
    "metrics",
    "comparison",
    "fairness",
    "leakage",
    "drift",
    "behaviour",
)  # the score report holds times, with which no two gate records would be equal


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `gate` from the records it reads and return it. Raises StageInputError when they are not of this task or of one test split."""
    task = outputs.gate.parent.name
    metrics, fairness, comparison = (_read(path, task) for path in (inputs.metrics, inputs.fairness, inputs.comparison))
    if metrics.get("n") != fairness.get("n"):
        raise StageInputError(
            f"{inputs.metrics} has n {metrics.get('n')!r}, {inputs.fairness} has n {fairness.get('n')!r}: they are of different "
            "predictions. Run the stages evaluate and assess_fairness again: `dvc repro`."
        )
    checks = metrics_checks(params.gate, params.prompt.labels, metrics)
    checks += fairness_checks(params.gate, params.assess_fairness, params.prompt.labels, fairness)
    checks += relative_checks(params.gate, params.prompt.labels, fairness, comparison)
    checks += slice_checks(params.gate, params.prompt.labels, metrics, fairness)
    checks += cost_checks(params.gate, read_json(inputs.score_report), metrics)
    checks += comparison_checks(params.compare, comparison, metrics)
    checks += champion_guards(params.gate.guards, comparison, metrics)
    checks += leakage_checks(_read(inputs.leakage, task), metrics) + drift_checks(_read(inputs.drift, task))
    checks += behaviour_checks(params.gate.behaviour, _read(inputs.behaviour, task))
    decision, reasons = decide(checks)
    report = {
        "task": task,
        "decision": decision,
        "reasons": reasons,
        "checks": checks,
        "inputs": {f"{name}_sha256": sha256_file(getattr(inputs, name)) for name in HASHED},
    }
    write_json(outputs.gate, report)
    return report


def _read(path: Path, task: str) -> dict[str, Any]:
    record = read_json(path)
    if record.get("task") != task:
        raise StageInputError(f"{path} is of task {record.get('task')!r}, expected {task!r}. Run the stage that writes it again.")
    return record
