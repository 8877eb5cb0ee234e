"""The decision that follows from the verdicts of all checks."""

from collections.abc import Collection, Sequence
from typing import Literal

from pipeline.gates.checks import Check

Decision = Literal["promote", "refuse", "ask"]

UNDECIDED = ("INCONCLUSIVE", "INSUFFICIENT")


def decide(checks: Sequence[Check]) -> tuple[Decision, list[str]]:
    """The decision and the reasons against promotion: the sentence of each check that does not pass."""
    reasons = [f"{check['name']}: {check['verdict']}: {check['sentence']}" for check in checks if check["verdict"] != "PASS"]
    if not checks:
        reasons.append("There are no checks, and without checks nothing is promoted.")
    return decision_of([check["verdict"] for check in checks]), reasons


def decision_of(verdicts: Collection[str]) -> Decision:
    """`promote` when there are verdicts and all are PASS; `ask` when nothing but too few rows stands in the way; else `refuse`.

    Too few rows: INCONCLUSIVE or INSUFFICIENT. A person then decides, who can weigh what more rows would cost. A verdict that is
    none of these counts as a failure.
    """
    against = [verdict for verdict in verdicts if verdict != "PASS"]
    if not verdicts or any(verdict not in UNDECIDED for verdict in against):
        return "refuse"
    return "ask" if against else "promote"
