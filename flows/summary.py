"""The gate's verdict for people: as a table at a terminal, and as artifacts on the Prefect page."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flows.terminal import number, table
from pipeline.layout import Layout

VERDICTS = {"promote": "passed the gate", "refuse": "was refused by the gate", "ask": "waits for a person: the gate could not decide"}

COLUMNS = ("check", "verdict", "value", "interval", "rows", "limit")


def gate_rows(gate: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row of text per check of a gate record."""
    return [dict(zip(COLUMNS, _cells(check), strict=True)) for check in gate["checks"]]


def gate_table(gate: Mapping[str, Any]) -> str:
    """The checks of a gate record as aligned text."""
    return table(COLUMNS, [_cells(check) for check in gate["checks"]])


def verdict_markdown(task: str, version: int, gate: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The verdict with its reasons, the metrics of all variants, and where to look further."""
    lines = [f"# {task} version {version} {VERDICTS[gate['decision']]}", "", *(f"- {reason}" for reason in gate["reasons"]), ""]
    shown = {"exact_match": "exact match", "token_f1": "token F1", "rouge_l": "ROUGE-L", "chrf": "chrF"}
    shown = shown if metrics.get("kind") == "generation" else {"accuracy": "accuracy", "macro_f1": "macro F1"}
    lines += [f"| variant | {' | '.join(shown.values())} |", "|---" * (1 + len(shown)) + "|"]
    for name, variant in metrics["variants"].items():
        lines.append(f"| {name} | {' | '.join(_estimate(variant[metric]) for metric in shown)} |")
    lines += [
        "",
        f"{number(metrics['n'])} test rows. The prompt card: `{Layout(Path(), task).path('card')}`. The run: experiment `{task}` in MLflow.",
    ]
    return "\n".join(lines)


def contract_markdown(task: str, report: Mapping[str, Any]) -> str:
    """What the data contract found: rows, the checks that failed with what to do, and where its Data Docs are."""
    failed = [check for check in report["expectations"] if not check["success"]]
    folder = Layout(Path(), task).path("data_report").parent
    lines = [
        f"# Data contract of {task}",
        "",
        f"{number(report['accepted'])} of {number(report['rows'])} rows accepted, {len(failed)} of {len(report['expectations'])} checks failed.",
        "",
    ]
    if failed:
        lines += ["| severity | column | expected | found | what to do |", "|---|---|---|---|---|"]
        lines += [_table_line(check[key] or "" for key in ("severity", "column", "expected", "observed", "fix")) for check in failed]
        lines.append("")
    lines.append(
        f"Data Docs: `{folder / report['data_docs']}`, and `data_docs/index.html` among the artifacts of the MLflow run (experiment `{task}`)."
        f" Rows set aside: `promptmill data quarantine {task}`."
    )
    return "\n".join(lines)


def _table_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def artifact_key(kind: str, task: str) -> str:
    """A key as Prefect allows it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{task}".lower()).strip("-")


def where_to_look(root: Path, task: str, fields: tuple[str, ...]) -> str:
    """The next commands, and the path of the prompt card."""
    card = os.path.relpath(Layout(root, task).path("card"))
    example = '--text "..."' if len(fields) == 1 else "--file in.csv --out out.csv"
    return "\n".join(
        [
            f"prompt card  {card}",
            "pages        promptmill ui",
            f"try it       promptmill predict {task} {example}",
            f"versions     promptmill list {task}",
        ]
    )


def _cells(check: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = check["low"], check["high"]
    interval = "-" if low is None or high is None else f"{number(low)} to {number(high)}"
    return (str(check["name"]), str(check["verdict"]), number(check["value"]), interval, number(check["n"]), number(check["limit"]))


def _estimate(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    return f"{number(estimate['value'])} ({number(estimate['low'])} to {number(estimate['high'])})"
