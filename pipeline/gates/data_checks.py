"""Checks of the data behind the figures: no row of one split in another, and, when the params ask for it, no drift."""

from functools import partial

from pipeline.gates.checks import Check, Finding, NoFigure, Planned, judged
from pipeline.gates.estimates import Record, at, count_in


def drift_checks(drift: Record) -> list[Check]:
    """The check on the drift record, unless the params want drift to be reported only (`drift.on_drift: report`)."""
    if drift.get("on_drift") == "report":
        return []
    rule = "PASS when no drift check fails; INSUFFICIENT when one has too few rows; a first version has nothing to drift from"
    return judged([Planned("drift", rule, 0.0, partial(_judge_drift, drift), "training rows")])


def leakage_checks(leakage: Record, metrics: Record) -> list[Check]:
    """The check that no row of one split is in another, nor one of training or validation in the user's own test file, if there is one."""
    rule = "PASS when no row has the text, the normalised text, a near-duplicate or the origin of a row of another split"
    return judged([Planned("leakage", rule, 0.0, partial(_judge_leakage, leakage, metrics), "test rows")])


def _judge_leakage(leakage: Record, metrics: Record) -> Finding:
    rows = at(leakage, ("rows",), "the leakage record")
    n = count_in(at(rows, ("test",), "the leakage record"), "the number of test rows")
    if n != metrics.get("n"):
        raise NoFigure("ERROR", f"The leakage record is of a test split of {n} rows, the metrics are of {metrics.get('n')!r}.", n)
    sides = [("validation", "train"), ("test", "train"), ("test", "validation")]
    if "external_test" in rows or any(pair.startswith("external_test in ") for pair in at(leakage, ("pairs",), "the leakage record")):
        sides += [("external_test", "train"), ("external_test", "validation")]
    found: dict[str, int] = {}
    for pair in (f"{second} in {first}" for second, first in sides):
        counts = {kind: at(leakage, ("pairs", pair, kind), "the leakage record") for kind in ("exact", "normalised", "near", "origin")}
        found |= {f"{pair}: {kind}": count_in(count, f"{kind} rows of {pair}") for kind, count in counts.items()}
    leaks = [f"{name} {count}" for name, count in found.items() if count]
    if leaks:
        return Finding("FAIL", f"Rows of one split are in another ({', '.join(leaks)}).", value=max(found.values()), n=n)
    checked = " and not in the external test file" if len(sides) > 3 else ""
    return Finding("PASS", f"No row of {sum(rows.values())} is, or is nearly, in another split{checked}.", value=0, n=n)


def _judge_drift(drift: Record) -> Finding:
    asked = at(drift, ("on_drift",), "the drift record")
    if asked != "refuse":
        raise NoFigure("ERROR", f"The drift record's on_drift is {asked!r}, expected 'report' or 'refuse'.")
    checks = at(drift, ("checks",), "the drift record")
    n = count_in(at(drift, ("rows", "current"), "the drift record"), "the number of training rows")
    found = {verdict: [check for check in checks if check["verdict"] == verdict] for verdict in ("FAIL", "INSUFFICIENT", "PASS")}
    if sum(map(len, found.values())) + sum(check["verdict"] == "NOT APPLICABLE" for check in checks) != len(checks) or not checks:
        raise NoFigure("ERROR", "The drift record lists no checks, or one with an unknown verdict.", n)
    failed = len(found["FAIL"])
    for verdict in ("FAIL", "INSUFFICIENT"):
        if found[verdict]:
            said = " ".join(f"{check['name']}: {check['sentence']}" for check in found[verdict])
            return Finding(
                verdict, f"{len(found[verdict])} of {len(checks)} drift checks have the verdict {verdict}. {said}", value=failed, n=n
            )
    if not found["PASS"]:
        return Finding("PASS", f"No drift check applies. {checks[0]['sentence']}", value=failed, n=n)
    return Finding("PASS", f"None of {len(checks)} drift checks fails.", value=failed, n=n)
