"""`promptmill why`: the gate's decision on a version, in plain text."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from flows.terminal import answer, number, table

DECISIONS = {
    "promote": "the gate let it pass: every check passed",
    "refuse": "the gate refused it",
    "ask": "the gate left it to a person: no check failed, and these rows could not decide all of them",
}
WIDTH = 120


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "why", "why", "say in plain text why the gate let a version pass, or not",
        "promptmill why tweet_sentiment", "promptmill why tweet_sentiment@3", "promptmill why tweet_sentiment@champion --json",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK[@VERSION|@ALIAS]", help="without a version: the newest one")
    command.add_argument("--json", action="store_true", help="print the gate record")


def why(options: Namespace) -> int:
    """Print the decision on a version with its reasons, what would change it, and every check."""
    from flows.commands import workspace
    from pipeline.registry.gate_record import fetch_gate
    from pipeline.registry.registry import CHALLENGER

    task, _, selector = options.task.partition("@")
    version, gate = fetch_gate(root=workspace(), task=task, selector=selector or CHALLENGER)
    answer(json.dumps(gate, ensure_ascii=False, indent=2) if options.json else explain(version, gate))
    return 0


def explain(version: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """The decision, the checks against promotion with their rules, what would change it, and the checks that passed."""
    checks: list[Mapping[str, Any]] = gate["checks"]
    against = [check for check in checks if check["verdict"] != "PASS"]
    passed = [check for check in checks if check["verdict"] == "PASS"]
    aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
    lines = [f"{version['task']} version {version['version']}{aliases}: {DECISIONS[gate['decision']]}.", _counted(checks)]
    known = {f"{check['name']}: {check['verdict']}: {check['sentence']}" for check in checks}
    lines += [_wrapped(reason) for reason in gate["reasons"] if reason not in known]
    for check in against:
        lines += ["", f"{check['verdict']}  {check['name']}", _wrapped(check["sentence"]), _wrapped(f"Rule: {check['rule']}.")]
    changes = list(_changes(against))
    if changes:
        lines += ["", "What would change it:", *map(_wrapped, changes)]
    if passed:
        lines += ["", "Passed:", table(("check", "value", "interval", "limit", "rows"), [_cells(check) for check in passed])]
    return "\n".join(lines)


def _counted(checks: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [check["verdict"] for check in checks]
    found = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(["PASS", *verdicts]) if verdict in verdicts]
    return f"{len(checks)} checks: {', '.join(found) or 'none, and without checks nothing is promoted'}."


def _changes(against: Sequence[Mapping[str, Any]]) -> Any:
    """For each check that does not pass, what it lacks: rows where rows would decide it, else the distance from its limit."""
    for check in against:
        more, value, limit = check.get("more_rows"), check["value"], check["limit"]
        if more is not None:
            yield f"{check['name']}: about {more:,} more rows, if the rates stay as they are."
        elif check["verdict"] == "FAIL" and value is not None and limit is not None:
            yield f"{check['name']}: the value is {number(float(value))}, the limit {number(float(limit))}."
        elif check["verdict"] in ("MISSING", "ERROR"):
            yield f"{check['name']}: the figure itself; run the stage that writes it again."


def _cells(check: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = check["low"], check["high"]
    interval = "-" if low is None or high is None else f"{number(low)} to {number(high)}"
    return (check["name"], number(check["value"]), interval, number(check["limit"]), number(check["n"]))


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
