"""What the contract says about a task's rows as a whole: the data report, and the sections of Data Docs made from it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.data_docs import Overview, Section
from pipeline.data.expectations import groups
from pipeline.data.measures import ANSWER_KEY, PERSONAL_DATA, SCRIPT_SHARE, Measures, Plan, characters, tokens
from pipeline.data.personal_data import KINDS
from pipeline.data.quarantine import PASSES, RULES, rules_of
from pipeline.params import ValidateParams

LISTED_GROUPS = 50


def contract_report(
    rows: Measures, found: npt.NDArray[np.int8], figures: Mapping[str, float], plan: Plan, limits: ValidateParams
) -> dict[str, Any]:
    """The counts and figures of the data report. `found`: the rule of each row, as `apply_row_rules` gives it.

    Lengths, labels, groups and figures are those of the accepted rows; personal data and scripts those of all rows.
    """
    accepted = rows[found == PASSES]
    codes = accepted[ANSWER_KEY].to_numpy()
    counts = np.bincount(codes[codes >= 0], minlength=len(plan.labels)) if plan.labels else []
    return {
        "rows": len(rows),
        "accepted": len(accepted),
        "quarantined": len(rows) - len(accepted),
        "quarantined_by_rule": {rule: int((found == RULES.index(rule)).sum()) for rule in rules_of(plan)},
        "labels": {label: int(n) for label, n in zip(plan.labels, counts, strict=True)},
        "characters": {name: _spread(accepted[characters(name)].to_numpy()) for name in plan.texts},
        "tokens": _tokens(accepted, plan),
        "personal_data": _personal_data(rows, accepted, limits),
        "script": _script(rows, plan, limits),
        "figures": {name: value if math.isfinite(value) else None for name, value in figures.items()},
        "groups": {name.removeprefix("group."): _group_counts(accepted, name) for name in groups(accepted)},
    }


def contract_overview(report: Mapping[str, Any], task: str) -> Overview:
    """The sections of Data Docs beside the checks."""
    return Overview(task, list(_sections(report)))


def _tokens(accepted: Measures, plan: Plan) -> dict[str, Any]:
    counts = plan.tokens
    fields = {name: accepted[tokens(name)].to_numpy() for name in plan.fields}
    cut = {name: int((values > counts.maximum_field_tokens).sum()) for name, values in fields.items()}
    return {
        "context_length": counts.context_length,
        "virtual_tokens": counts.virtual_tokens,
        "template_tokens": counts.template_tokens,
        "answer_tokens": counts.answer_tokens,
        "room": counts.room,
        "fields": {name: {**_spread(values), "cut": cut[name]} for name, values in fields.items()},
    }


def _personal_data(rows: Measures, accepted: Measures, limits: ValidateParams) -> dict[str, Any]:
    action = limits.personal_data.action
    return {
        "action": action,
        "found": {kind: {"rows": int((rows[kind] > 0).sum()), "count": int(rows[kind].sum())} for kind in KINDS},
        "rows": int((rows[PERSONAL_DATA] > 0).sum()),
        "masked_rows": int((accepted[PERSONAL_DATA] > 0).sum()) if action == "mask" else 0,
    }


def _script(rows: Measures, plan: Plan, limits: ValidateParams) -> dict[str, Any] | None:
    if limits.script is None:
        return None
    shares = rows[SCRIPT_SHARE]
    mean = float(shares.mean()) if shares.notna().any() else None
    below = int((shares < limits.script.minimum_share).sum())
    return {"expected": list(plan.scripts), "mean_share": mean, "rows_below": below, "rows_without_letters": int(shares.isna().sum())}


def _spread(values: npt.NDArray[Any]) -> dict[str, int | None]:
    """Median, 95th percentile and maximum, null without values."""
    known = values[~np.isnan(values.astype("float64"))]
    if not len(known):
        return {"p50": None, "p95": None, "max": None}
    p50, p95 = np.quantile(known, [0.5, 0.95], method="higher")
    return {"p50": int(p50), "p95": int(p95), "max": int(known.max())}


def _group_counts(accepted: Measures, name: str) -> dict[str, int]:
    """Value -> rows for the most frequent values, sorted by value."""
    counts = {str(value): int(n) for value, n in accepted[name].value_counts().items()}
    listed = sorted(counts, key=lambda value: (-counts[value], value))[:LISTED_GROUPS]
    return {value: counts[value] for value in sorted(listed)}


# --- for people -------------------------------------------------------------------------------------------------------


def _sections(report: Mapping[str, Any]) -> Iterator[Section]:
    aside = [(f"set aside: {rule.replace('_', ' ')}", f"{n:,}") for rule, n in report["quarantined_by_rule"].items() if n]
    lines = [("as they came", f"{report['rows']:,}"), *aside, ("accepted", f"{report['accepted']:,}")]
    yield Section("Rows", "A row is set aside under the first rule that applies; the quarantined file has the reason for each.", lines)
    yield _answers(report)
    yield Section("Lengths of accepted rows", _budget(report["tokens"]), list(_lengths(report)))
    personal = report["personal_data"]
    yield Section("Personal data in the texts as they came", _action(personal), list(_personal_lines(personal)))
    for name, counts in report["groups"].items():
        yield Section(f"Accepted rows by {name}", "The most frequent values.", [(value, f"{n:,}") for value, n in counts.items()])


def _answers(report: Mapping[str, Any]) -> Section:
    labels = [(f"label {label}", f"{n:,}") for label, n in report["labels"].items()]
    figures = [
        (name, "not computable" if value is None else f"{value:,.3f}".rstrip("0").rstrip(".")) for name, value in report["figures"].items()
    ]
    return Section(
        "Labels and what gives them away" if labels else "Figures",
        "An association is Cramer's V: 0 says that a property of the text tells nothing about the label, 1 that it tells it.",
        [*labels, *figures],
    )


def _budget(counts: Mapping[str, Any]) -> str:
    return (
        f"A row's own text has room for {counts['room']:,} tokens: the base model attends to {counts['context_length']:,}, of which the virtual"
        f" tokens take {counts['virtual_tokens']}, the template {counts['template_tokens']} and the longest verbalizer {counts['answer_tokens']}."
    )


def _lengths(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, spread in report["characters"].items():
        yield f"{name}: characters (median, 95 %, maximum)", _of_spread(spread)
    for name, spread in report["tokens"]["fields"].items():
        yield f"{name}: tokens (median, 95 %, maximum)", _of_spread(spread)
        yield f"{name}: rows whose end is cut", f"{spread['cut']:,}"


def _of_spread(spread: Mapping[str, Any]) -> str:
    return " / ".join("-" if spread[key] is None else f"{spread[key]:,}" for key in ("p50", "p95", "max"))


def _action(personal: Mapping[str, Any]) -> str:
    return {
        "count": "They are counted and kept; validate.personal_data.action can mask them or set such rows aside.",
        "mask": f"Words in brackets took their place in {personal['masked_rows']:,} accepted rows; row ids are unchanged.",
        "quarantine": "Rows that hold any were set aside.",
    }[personal["action"]]


def _personal_lines(personal: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, found in personal["found"].items():
        yield kind, f"{found['count']:,} in {found['rows']:,} rows"
