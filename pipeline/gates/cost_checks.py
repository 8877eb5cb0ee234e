"""Checks of what a row costs: how much longer, and how many more tokens, with the tuned prompt than with the hard prompt.

Both are means over the test rows as they were scored. A time is of one machine at one moment and has no interval here; set its limit
well above what is expected, or limit the tokens alone, which are the same everywhere.
"""

from functools import partial

from pipeline.gates.checks import Check, Finding, NoFigure, Planned, judged
from pipeline.gates.estimates import Record, at, count_in, number_in
from pipeline.params import GateParams

RULE = "PASS when value <= limit; else FAIL"
METHOD = "difference of two means over the test rows, no interval"


def cost_checks(gate: GateParams, score: Record, metrics: Record) -> list[Check]:
    """The checks that `gate.cost` asks for, on the score report; none where both limits are null."""
    limits = (
        ("added milliseconds per row", gate.cost.maximum_added_milliseconds, "seconds_per_row", 1000.0),
        ("added tokens per row", gate.cost.maximum_added_tokens, "tokens_per_row", 1.0),
    )
    return judged(
        Planned(name, RULE, limit, partial(_judge_cost, name, limit, key, scale, score, metrics), "test rows", METHOD)
        for name, limit, key, scale in limits
        if limit is not None
    )


def _judge_cost(name: str, limit: float, key: str, scale: float, score: Record, metrics: Record) -> Finding:
    n = count_in(at(score, ("rows",), "the score report"), "the number of scored rows")
    if n == 0 or n != metrics.get("n"):
        raise NoFigure("ERROR", f"The score report is of {n} test rows, the metrics are of {metrics.get('n')!r}.", n)
    tuned, hard = (_cost(score, key, variant, n) for variant in ("tuned", "hard_prompt"))
    value = (tuned - hard) * scale
    said = f"The tuned prompt takes {tuned * scale:.4g}, the hard prompt {hard * scale:.4g}: {value:.4g} {name}"
    if value <= limit:
        return Finding("PASS", f"{said}, within the maximum of {limit:.4g}.", value=value, n=n)
    return Finding("FAIL", f"{said}, above the maximum of {limit:.4g}.", value=value, n=n)


def _cost(score: Record, key: str, variant: str, n: int) -> float:
    cost = number_in(at(score, (key, variant), "the score report"), f"{key} of {variant}", None, n)
    if cost < 0:
        raise NoFigure("ERROR", f"{key} of {variant} is {cost}, expected at least 0.", n)
    return cost
