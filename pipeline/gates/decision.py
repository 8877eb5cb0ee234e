"""The decision that follows from the verdicts of all checks."""

from collections.abc import Sequence
from typing import Literal

from pipeline.gates.checks import Check

Decision = Literal["promote", "refuse"]


def decide(checks: Sequence[Check]) -> tuple[Decision, list[str]]:
    """The decision and the reasons against promotion: the sentence of each check that does not pass."""
    reasons = [f"{check['name']}: {check['verdict']}: {check['sentence']}" for check in checks if check["verdict"] != "PASS"]
    if not checks:
        reasons.append("There are no checks, and without checks nothing is promoted.")
    return ("refuse" if reasons else "promote"), reasons
