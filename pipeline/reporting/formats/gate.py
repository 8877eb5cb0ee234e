"""The gate record, and what must hold before a card may show its decision."""

from pathlib import Path
from typing import Literal

from pipeline.errors import StageInputError
from pipeline.gates.decision import UNDECIDED, decision_of
from pipeline.reporting.formats.record import Record

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INSUFFICIENT", "MISSING", "DEGENERATE", "ERROR"]


class Check(Record):
    """One line of the gate table."""

    name: str
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    denominator: str | None
    limit: float | None
    method: str | None
    rule: str
    sentence: str
    more_rows: int | None = None


class GateInputs(Record):
    """Hashes of the reports that the gate read."""

    metrics_sha256: str
    fairness_sha256: str
    drift_sha256: str
    comparison_sha256: str
    behaviour_sha256: str


class Gate(Record):
    """The gate's decision and everything it looked at."""

    task: str
    decision: Literal["promote", "refuse", "ask"]
    reasons: list[str]
    checks: list[Check]
    inputs: GateInputs


def check_gate(gate: Gate, where: Path | str) -> None:
    """Raise StageInputError when the decision contradicts its checks: no card may show PROMOTE above a check that did not pass.

    Nor may a check pass against a limit, or on rows, without a value; that of a first version has none of the three.
    """
    for check in gate.checks:
        if check.verdict == "PASS" and check.value is None and (check.limit, check.n) != (None, None):
            raise StageInputError(
                f"{where}: check {check.name!r} has verdict PASS without a value; nothing passes without a figure. Run the gate stage again."
            )
    allowed = decision_of([check.verdict for check in gate.checks])
    if gate.decision != "refuse" and gate.decision != allowed:
        accepted = ("PASS",) if gate.decision == "promote" else ("PASS", *UNDECIDED)
        open_checks = [check.name for check in gate.checks if check.verdict not in accepted]
        found = f"these checks did not pass: {open_checks}" if open_checks else "it lists no checks"
        raise StageInputError(f"{where}: the decision is {gate.decision}, but {found}. Run the gate stage again.")


def check_gate_inputs(gate: Gate, where: Path | str, found: GateInputs) -> None:
    """Raise StageInputError when the gate judged other reports than those whose hashes were `found`."""
    for key in GateInputs.model_fields:
        judged, current = getattr(gate.inputs, key), getattr(found, key)
        if judged != current:
            raise StageInputError(
                f"{where}: 'inputs.{key}' is {judged}, the file now has {current}: the gate judged another report. "
                "Run the gate stage again: `dvc repro`."
            )
