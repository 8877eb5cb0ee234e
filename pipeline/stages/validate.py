"""Stage validate: the data contract lets rows pass, sets rows aside, or blocks the run.

Rows stay on disk: one pass measures them, the rules and Great Expectations look at the measures, and two more passes copy the rows that
are set aside and those that go on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.data.contract import Verdict, columns_named, judge, own_checks
from pipeline.data.expectations import Check, Suite, accepted_suite, figures, figures_suite, raw_suite, schema_suite
from pipeline.data.measures import ANSWER_KEY, PERSONAL_DATA, PERSONAL_DATA_LEFT, TEXT_KEY, Measures, Plan, measure, shown
from pipeline.data.overview import contract_overview, contract_report
from pipeline.data.quarantine import PASSES, RULES, apply_row_rules, reasons
from pipeline.data.token_counts import PromptTokens
from pipeline.engine.model_files import read_tokenizer
from pipeline.errors import ContractError, StageInputError
from pipeline.layout import Paths
from pipeline.params import TaskParams, ValidateParams
from pipeline.records import iterate_parquet, parquet_schema, parquet_writer, remove_parquet, replacing_folder, write_json

BATCH_ROWS = 32_768
LISTED_LABELS = 5
LABEL_CHARACTERS = 40
_NOT_FOR_EXPECTATIONS = frozenset({TEXT_KEY, ANSWER_KEY, PERSONAL_DATA, PERSONAL_DATA_LEFT})

Rules = npt.NDArray[np.int8]


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write accepted and quarantined rows, the data report and Data Docs; returns the report.

    Raises ParamsError for an expectation that Great Expectations does not know, and ContractError when a critical expectation fails
    or one cannot be evaluated. In that case there are no accepted rows, also none of an earlier run, while everything that helps
    to find the cause (quarantined rows, report, Data Docs) is complete.
    """
    limits = params.validate_
    schema = parquet_schema(inputs.raw)
    plan = _plan(params, schema, inputs.raw)
    remove_parquet(outputs.accepted)
    measured = measure((), plan, schema).columns
    own = own_checks(limits.expectations, [name for name in dict.fromkeys((*schema.names, *measured)) if name not in _NOT_FOR_EXPECTATIONS])
    rows = measure(iterate_parquet(inputs.raw, batch_rows=BATCH_ROWS), plan, schema)
    rules = apply_row_rules(rows, plan, limits)
    _write_quarantined(inputs.raw, outputs.quarantined, schema, rows, rules, plan, limits)
    found = figures(rows[rules == PASSES], plan)
    suites = [
        schema_suite(schema.names, plan),
        _with_own(raw_suite(rows, rules == PASSES, plan, limits), own["raw"], inputs.raw),
        _with_own(accepted_suite(rows[rules == PASSES], plan, limits), own["accepted"], inputs.raw, plan=plan, keep=rules == PASSES),
        figures_suite(found, plan, limits),
    ]
    report = contract_report(rows, rules, found, plan, limits)
    with replacing_folder(outputs.data_docs) as folder:
        verdicts = judge(suites, docs_folder=folder, overview=contract_overview(report, outputs.data_docs.parent.name))
    report |= {
        "expectations": [verdict.record() for verdict in verdicts],
        "planned": sum(len(suite.checks) for suite in suites),
        "evaluated": sum(verdict.evaluated for verdict in verdicts),
        "data_docs": (outputs.data_docs / "index.html").relative_to(outputs.data_report.parent).as_posix(),
    }
    write_json(outputs.data_report, report)
    _stop_if_blocked(verdicts, suites, plan, outputs)
    _write_accepted(inputs.raw, outputs.accepted, schema, rules, plan)
    return report


def _plan(params: TaskParams, schema: pa.Schema, raw: Path) -> Plan:
    """How the rows are measured; raises StageInputError where `raw` lacks a column or has one of another type."""
    answer = "target" if "target" in schema.names and not params.prompt.labels else "label"
    fields = tuple(params.ingest.columns.fields)
    _check_columns(schema, ("row_id", *fields, answer), raw)
    script, personal = params.validate_.script, params.validate_.personal_data
    files = read_tokenizer(source=params.base_model.source.model_dump())
    counts = PromptTokens(
        base_model=params.base_model.source.id,
        tokenizer=files.tokenizer,
        context_length=files.context_length,
        virtual_tokens=max(params.tune.num_virtual_tokens, *params.tune.trials.num_virtual_tokens, 0),
        templates=(params.prompt.template, *params.prompt.hard_prompts),
        answers=tuple(params.prompt.verbalizers.values()),
        maximum_field_tokens=params.prompt.maximum_field_tokens,
    )
    return Plan(
        fields,
        answer,
        params.prompt.labels,
        counts,
        tuple(script.expected) if script else (),
        personal.phone_region,
        personal.action == "mask",
    )


def _check_columns(schema: pa.Schema, texts: Sequence[str], raw: Path) -> None:
    kinds = {**dict.fromkeys(texts, "text"), "source_row": "a whole number", "label_confidence": "a number"}
    for name, expected in kinds.items():
        found = schema.field(name).type if name in schema.names else None
        if found is None or _kind(found) != expected:
            raise StageInputError(f"{raw}: the column {name} is {found or 'missing'}, expected {expected}. Run the stage ingest again.")


def _kind(found: pa.DataType) -> str:
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return "text"
    return "a whole number" if pa.types.is_integer(found) else "a number" if pa.types.is_floating(found) else "something else"


# --- copying rows -----------------------------------------------------------------------------------------------------


def _write_quarantined(raw: Path, path: Path, schema: pa.Schema, rows: Measures, rules: Rules, plan: Plan, limits: ValidateParams) -> None:
    """The rows that a rule sets aside, with `rule` and `reason`."""
    wider = schema.remove_metadata().append(pa.field("rule", pa.large_string())).append(pa.field("reason", pa.large_string()))

    def judged() -> Iterator[pa.RecordBatch]:
        for batch, start in _batches(raw):
            at = start + np.flatnonzero(rules[start : start + batch.num_rows] != PASSES)
            kept, _ = shown(batch.take(pa.array(at - start)), plan)
            names = pa.array([RULES[rule] for rule in rules[at]], type=pa.large_string())
            sentences = pa.array(reasons(rows.iloc[at], rules[at].tolist(), plan, limits), type=pa.large_string())
            yield pa.RecordBatch.from_arrays([*kept.columns, names, sentences], schema=wider)

    _write(path, wider, judged())


def _write_accepted(raw: Path, path: Path, schema: pa.Schema, rules: Rules, plan: Plan) -> None:
    """The rows that pass, personal data masked if so planned."""
    plain = schema.remove_metadata()
    kept = (shown(batch.filter(pa.array(rules[start : start + batch.num_rows] == PASSES)), plan)[0] for batch, start in _batches(raw))
    _write(path, plain, (pa.RecordBatch.from_arrays(batch.columns, schema=plain) for batch in kept))


def _batches(raw: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    """(batch, position of its first row)."""
    start = 0
    for batch in iterate_parquet(raw, batch_rows=BATCH_ROWS):
        yield batch, start
        start += batch.num_rows


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Write batches, gathered so that row groups do not become tiny where few rows are kept."""
    with parquet_writer(path, schema) as writer:
        gathered: list[pa.RecordBatch] = []
        for batch in batches:
            gathered.append(batch)
            if sum(one.num_rows for one in gathered) >= BATCH_ROWS:
                writer.write_table(pa.Table.from_batches(gathered, schema))
                gathered = []
        if gathered:
            writer.write_table(pa.Table.from_batches(gathered, schema))


# --- the task's own expectations --------------------------------------------------------------------------------------


def _with_own(
    suite: Suite, checks: Sequence[Check], raw: Path, *, plan: Plan | None = None, keep: npt.NDArray[np.bool_] | None = None
) -> Suite:
    """The suite with the task's own checks, and with the columns of text that they name; with `plan`, as the rows go on."""
    named = {name for check in checks for name in columns_named(check)}
    texts = [name for name in dict.fromkeys(named) if name not in suite.frame.columns]
    frame = suite.frame
    if texts:
        frame = frame.assign(**_text_columns(raw, sorted(texts), plan, keep))
    return Suite(suite.name, frame, [*suite.checks, *checks])


def _text_columns(raw: Path, names: Sequence[str], plan: Plan | None, keep: npt.NDArray[np.bool_] | None) -> dict[str, Any]:
    parts: list[pa.RecordBatch] = []
    for batch, start in _batches(raw):
        kept = batch if keep is None else batch.filter(pa.array(keep[start : start + batch.num_rows]))
        parts.append((kept if plan is None else shown(kept, plan)[0]).select(names))
    table = pa.Table.from_batches(parts, parts[0].schema) if parts else None
    empty = pd.array([], dtype="str")
    return {name: empty if table is None else pd.array(table[name].cast(pa.large_string()), dtype="str") for name in names}


# --- the verdict ------------------------------------------------------------------------------------------------------


def _stop_if_blocked(verdicts: Sequence[Verdict], suites: Sequence[Suite], plan: Plan, outputs: Paths) -> None:
    """Raise ContractError listing every verdict that blocks with what was found, where, and what to do."""
    blocking = [verdict for verdict in verdicts if verdict.blocks]
    if not blocking:
        return
    frames = {suite.name: suite.frame for suite in suites}
    listed = "\n".join(f"  {_sentence(verdict, frames[verdict.suite], plan)}" for verdict in blocking)
    raise ContractError(
        f"{len(blocking)} of {len(verdicts)} checks of the data contract failed critically, so no prompt is tuned on these rows"
        f" (details: {outputs.data_docs / 'index.html'}, rows set aside: {outputs.quarantined}):\n{listed}"
    )


def _sentence(verdict: Verdict, frame: pd.DataFrame, plan: Plan) -> str:
    where = f"{verdict.suite} rows" + (f", column {verdict.check.column}" if verdict.check.column else "")
    found = verdict.observed
    if verdict.check.expectation == "ExpectColumnValuesToBeInSet" and verdict.check.column == "label":
        found += _unknown_labels(frame, plan.labels)
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
