"""Stage validate: the data contract lets rows pass, sets rows aside, or blocks the run."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.data.contract import Suite, Verdict, accepted_suite, judge, raw_suite
from pipeline.data.quarantine import RULES, apply_row_rules
from pipeline.errors import ContractError
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import read_parquet, replacing_folder, write_json, write_parquet

LISTED_LABELS = 5
LABEL_CHARACTERS = 40


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write accepted and quarantined rows, the data report and Data Docs; returns the report.

    Raises ContractError when a critical expectation fails. Then there are no accepted rows, also none of an earlier run, while
    everything that helps to find the cause (quarantined rows, report, Data Docs) is complete.
    """
    fields = list(params.ingest.columns.fields)
    labels = params.prompt.labels
    limits = params.validate_
    raw = read_parquet(inputs.raw, ["row_id", "source_row", *fields, "label", "label_confidence"])
    judged = apply_row_rules(raw, fields=fields, labels=labels, limits=limits)
    passes = judged["rule"].isna()
    accepted = raw.loc[passes].reset_index(drop=True)
    set_aside = judged.loc[~passes].reset_index(drop=True)
    suites = [
        raw_suite(raw, passes, fields=fields, labels=labels, limits=limits),
        accepted_suite(accepted, fields=fields, labels=labels, limits=limits),
    ]
    outputs.accepted.unlink(missing_ok=True)
    write_parquet(outputs.quarantined, set_aside)
    with replacing_folder(outputs.data_docs) as docs_folder:
        verdicts = judge(suites, docs_folder=docs_folder)
    report = {
        **_counts(accepted, set_aside, labels),
        "expectations": [verdict.record() for verdict in verdicts],
        "planned": sum(len(suite.checks) for suite in suites),
        "evaluated": len(verdicts),
        "data_docs": (outputs.data_docs / "index.html").relative_to(outputs.data_report.parent).as_posix(),
    }
    write_json(outputs.data_report, report)
    _stop_if_blocked(verdicts, suites, labels, outputs)
    write_parquet(outputs.accepted, accepted)
    return report


def _counts(accepted: pd.DataFrame, set_aside: pd.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "rows": len(accepted) + len(set_aside),
        "accepted": len(accepted),
        "quarantined": len(set_aside),
        "quarantined_by_rule": {rule: int((set_aside["rule"] == rule).sum()) for rule in RULES},
        "labels": {label: int((accepted["label"] == label).sum()) for label in labels},
    }


def _stop_if_blocked(verdicts: Sequence[Verdict], suites: Sequence[Suite], labels: Sequence[str], outputs: Paths) -> None:
    """Raise ContractError listing every critical failure with what was found, where, and what to do."""
    blocking = [verdict for verdict in verdicts if verdict.blocks]
    if not blocking:
        return
    frames = {suite.name: suite.frame for suite in suites}
    listed = "\n".join(f"  {_sentence(verdict, frames[verdict.suite], labels)}" for verdict in blocking)
    raise ContractError(
        f"{len(blocking)} of {len(verdicts)} checks of the data contract failed critically, so no prompt is tuned on these rows"
        f" (details: {outputs.data_docs / 'index.html'}, rows set aside: {outputs.quarantined}):\n{listed}"
    )


def _sentence(verdict: Verdict, frame: pd.DataFrame, labels: Sequence[str]) -> str:
    where = f"{verdict.suite} rows" + (f", column {verdict.check.column}" if verdict.check.column else "")
    found = verdict.observed
    if verdict.check.expectation == "ExpectColumnValuesToBeInSet":
        found += _unknown_labels(frame, labels)
    elif verdict.source_rows:
        found += f" (source rows {', '.join(map(str, verdict.source_rows))}; row ids {', '.join(verdict.row_ids)})"
    return f"{where}: expected: {verdict.check.expected}; found: {found}. {verdict.check.fix}"


def _unknown_labels(frame: pd.DataFrame, labels: Sequence[str]) -> str:
    """The labels outside the set with the first row of each, shortened: a wrongly mapped column holds whole texts."""
    unknown = frame.loc[frame["label"].notna() & ~frame["label"].isin(list(labels)), ["label", "source_row"]]
    first = unknown.drop_duplicates("label")
    named = [f"{label[:LABEL_CHARACTERS]!r} in source row {row}" for label, row in first.head(LISTED_LABELS).itertuples(index=False)]
    more = f" and {len(first) - LISTED_LABELS} more labels" if len(first) > LISTED_LABELS else ""
    return f": {', '.join(named)}{more}"
