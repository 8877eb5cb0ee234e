"""The champion on today's test data: what the gate's limits say to a prompt that was promoted on yesterday's.

Judged is what the limits say about one prompt on one test split: floors, gains over baselines, groups, slices, degeneracy. What the gate asks of a candidate besides
(better than the champion, no leakage from its training, its costs, its behaviour) is no question to a champion.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pipeline.errors import StageInputError
from pipeline.gates.checks import Check
from pipeline.gates.decision import UNDECIDED
from pipeline.gates.fairness_checks import fairness_checks
from pipeline.gates.metrics_checks import metrics_checks
from pipeline.gates.slice_checks import slice_checks
from pipeline.layout import Layout
from pipeline.params import TaskParams
from pipeline.records import read_json

# The stages that measure a prompt on the test split, in order.
STAGES = ("score", "evaluate", "assess_fairness")

Verdict = Literal["within", "below", "undecided"]


def judge(params: TaskParams, layout: Layout) -> dict[str, Any]:
    """The checks of the gate on the records that STAGES wrote below `layout`: {verdict, reasons, checks, n}.

    `below`: a check fails, or cannot be made at all; `undecided`: nothing but too few rows stands in the way; `within`: all pass.
    Raises StageInputError when a record is missing.
    """
    metrics, fairness = read_json(layout.path("metrics")), read_json(layout.path("fairness"))
    if metrics.get("n") != fairness.get("n"):
        raise StageInputError(f"{layout.path('metrics')} and {layout.path('fairness')} are of different rows. Reassess again.")
    checks = metrics_checks(params.gate, params.prompt.labels, metrics)
    checks += fairness_checks(params.gate, params.assess_fairness, params.prompt.labels, fairness)
    checks += slice_checks(params.gate, params.prompt.labels, metrics, fairness)
    reasons = [f"{check['name']}: {check['verdict']}: {check['sentence']}" for check in checks if check["verdict"] != "PASS"]
    return {"verdict": verdict_of(checks), "reasons": reasons, "checks": checks, "n": metrics.get("n")}


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """`below` when a check says so or says nothing, `undecided` when rows are too few, else `within`."""
    against = [check["verdict"] for check in checks if check["verdict"] != "PASS"]
    if any(verdict not in UNDECIDED for verdict in against):
        return "below"
    return "undecided" if against else "within"
