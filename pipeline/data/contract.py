"""The data contract as Great Expectations suites: the one module that imports great_expectations.

Four traits of Great Expectations 1.24 shape it. An empty frame passes most expectations, so a check that looked at no row counts
as failed here. `success` of a suite does not know severities, so they are read per expectation. A suite can evaluate fewer
expectations than planned without a word, so the two are compared. Results hold raw values, so each is reduced to counts
and row ids before anything is rendered or returned.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.render.renderer.page_renderer import ExpectationSuitePageRenderer, ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

from pipeline.data.data_docs import Page, SuiteSummary, write_site
from pipeline.errors import ContractError
from pipeline.params import ValidateParams

Severity = Literal["critical", "warning"]
ACCEPTED_SHARE = "accepted share"  # 1.0 for a row that passes, 0.0 for another; the space keeps it apart from every field name
SAMPLE = 5  # row ids named per failed expectation

# Keys of a result that are counts or come from params; every other key may hold raw values and is dropped.
_REDACTED_KEYS = (
    "element_count",
    "unexpected_count",
    "unexpected_percent",
    "unexpected_percent_total",
    "unexpected_percent_nonmissing",
    "missing_count",
    "missing_percent",
    "partial_missing_list",
)
_NUMERIC_OBSERVATIONS = ("ExpectTableRowCountToBeBetween", "ExpectColumnMeanToBeBetween")


@dataclass(frozen=True)
class Check:
    """One planned expectation: a class of Great Expectations and its arguments, with what it demands and how to mend it in words."""

    expectation: str
    severity: Severity
    expected: str
    fix: str
    arguments: Mapping[str, Any]

    @property
    def column(self) -> str | None:
        """The column it looks at; None for checks of the whole table."""
        return self.arguments.get("column")


@dataclass(frozen=True)
class Suite:
    """The checks planned for one frame, which must have the columns `row_id` and `source_row`."""

    name: str
    frame: pd.DataFrame
    checks: Sequence[Check]


@dataclass(frozen=True)
class Verdict:
    """What came of one check, without raw values: counts, and up to SAMPLE of the rows behind a failure."""

    suite: str
    check: Check
    success: bool
    observed: str
    row_ids: tuple[str, ...]
    source_rows: tuple[int, ...]

    @property
    def blocks(self) -> bool:
        """Whether this verdict stops the run."""
        return not self.success and self.check.severity == "critical"

    def record(self) -> dict[str, Any]:
        """The verdict as it stands in the data report."""
        return {
            "suite": self.suite,
            "expectation": self.check.expectation,
            "column": self.check.column,
            "severity": self.check.severity,
            "success": self.success,
            "observed": self.observed,
            "expected": self.check.expected,
            "row_ids": list(self.row_ids),
            "source_rows": list(self.source_rows),
        }


# --- the plan ---------------------------------------------------------------------------------------------------------


def raw_suite(rows: pd.DataFrame, is_accepted: pd.Series, *, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Suite:
    """What is demanded of the rows as they came. `is_accepted`: whether the row rules let a row pass.

    A label outside the set is critical although its row is set aside: it nearly always means a typo or a wrong column in params,
    which would otherwise quietly shrink the data. Missing texts, odd lengths and low confidences are warnings: such
    rows occur in sound data, and how many may be set aside is limited by minimum_accepted_share.
    """
    frame = rows.assign(**{ACCEPTED_SHARE: is_accepted.astype("float64")})
    checks = [
        _row_count(limits, "raw"),
        Check(
            "ExpectTableColumnsToMatchSet",
            "critical",
            "exactly the columns of the stage file `raw`",
            "Run `dvc repro` so that ingest writes it again.",
            {"column_set": ["row_id", "source_row", *fields, "label", "label_confidence", ACCEPTED_SHARE], "exact_match": True},
        ),
        *_identity(),
        Check(
            "ExpectColumnMeanToBeBetween",
            "critical",
            f"at least {limits.minimum_accepted_share:g} of the rows pass the row rules",
            "See the reasons in the quarantined file; mend the source or relax the row rules under `validate`.",
            {"column": ACCEPTED_SHARE, "min_value": limits.minimum_accepted_share},
        ),
        Check(
            "ExpectColumnValuesToBeBetween",
            "critical",
            "a confidence from 0 to 1 where there is one",
            "Bring ingest.columns.label_confidence to that scale, or set it to null.",
            {"column": "label_confidence", "min_value": 0.0, "max_value": 1.0},
        ),
        *_labels("critical", "warning", labels),
        *_fields("warning", fields, limits),
    ]
    if limits.low_label_confidence == "quarantine":
        checks.append(_confidence(limits))
    if rows["label_confidence"].isna().all():  # a source without confidences: nothing to look at, and nothing wrong
        checks = [check for check in checks if check.column != "label_confidence"]
    return Suite("raw", frame, checks)


def accepted_suite(rows: pd.DataFrame, *, fields: Sequence[str], labels: Sequence[str], limits: ValidateParams) -> Suite:
    """What is demanded of the rows that go on: everything is critical, since the row rules should have seen to it."""
    present = Check(
        "ExpectColumnDistinctValuesToContainSet",
        "critical",
        f"every label occurs: {', '.join(labels)}",
        "Add rows with the label that does not occur, or drop it from prompt.verbalizers.",
        {"column": "label", "value_set": list(labels)},
    )
    checks = [
        _row_count(limits, "accepted"),
        *_identity(),
        *_labels("critical", "critical", labels),
        present,
        *_fields("critical", fields, limits),
    ]
    return Suite("accepted", rows, checks)


def _row_count(limits: ValidateParams, which: str) -> Check:
    return Check(
        "ExpectTableRowCountToBeBetween",
        "critical",
        f"at least {limits.minimum_rows} {which} rows",
        "Add rows to the source, raise ingest.sample_rows, or lower validate.minimum_rows.",
        {"min_value": limits.minimum_rows},
    )


def _identity() -> Iterator[Check]:
    fix = "Run `dvc repro` so that ingest writes the row ids again."
    yield Check("ExpectColumnValuesToNotBeNull", "critical", "every row has an id", fix, {"column": "row_id"})
    yield Check("ExpectColumnValuesToBeUnique", "critical", "no two rows share an id", fix, {"column": "row_id"})


def _labels(known: Severity, present: Severity, labels: Sequence[str]) -> Iterator[Check]:
    """The in-set check passes null, so it never stands alone."""
    yield Check(
        "ExpectColumnValuesToNotBeNull",
        present,
        "every row has a label",
        "Fill in the labels in the source, or check ingest.columns.label.",
        {"column": "label"},
    )
    yield Check(
        "ExpectColumnValuesToBeInSet",
        known,
        f"every label is one of {', '.join(labels)}",
        "Correct the label in the source, add it to prompt.verbalizers, or map ingest.columns.label to the right column.",
        {"column": "label", "value_set": list(labels)},
    )


def _fields(severity: Severity, fields: Sequence[str], limits: ValidateParams) -> Iterator[Check]:
    low, high = limits.minimum_text_characters, limits.maximum_text_characters
    for name in fields:
        fix = f"Check ingest.columns.fields.{name}, mend the source"
        yield Check("ExpectColumnValuesToNotBeNull", severity, f"every row has the field {name}", f"{fix}.", {"column": name})
        yield Check(
            "ExpectColumnValueLengthsToBeBetween",
            severity,
            f"{name} has {low} to {high} characters",
            f"{fix}, or change validate.minimum_text_characters / maximum_text_characters.",
            {"column": name, "min_value": low, "max_value": high},
        )


def _confidence(limits: ValidateParams) -> Check:
    return Check(
        "ExpectColumnValuesToBeBetween",
        "warning",
        f"a label confidence of {limits.minimum_label_confidence:g} or more where there is one",
        "Nothing needs doing: such rows are set aside.",
        {"column": "label_confidence", "min_value": limits.minimum_label_confidence},
    )


# --- the judgement ----------------------------------------------------------------------------------------------------


def judge(suites: Sequence[Suite], *, docs_folder: Path) -> list[Verdict]:
    """Evaluate every check of every suite and write Data Docs into `docs_folder`; returns a verdict per check, in planned order.

    Raises ContractError when Great Expectations evaluated another set of checks than planned.
    """
    context = gx.get_context(mode="ephemeral", project_config=_project())
    frames = context.data_sources.add_pandas("promptmill")
    verdicts: list[Verdict] = []
    summaries: list[SuiteSummary] = []
    for suite in suites:
        batch = frames.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": suite.frame})
        planned = gx.ExpectationSuite(name=suite.name, expectations=[_expectation(check, i) for i, check in enumerate(suite.checks)])
        columns = [name for name in ("row_id", "source_row") if name in suite.frame.columns]
        result = batch.validate(planned, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": columns})
        outcomes = _in_planned_order(result, suite)
        found = [_verdict(suite, check, outcome) for check, outcome in zip(suite.checks, outcomes, strict=True)]
        verdicts.extend(found)
        summaries.append(
            SuiteSummary(suite.name, len(suite.frame), [verdict.record() for verdict in found], *_pages(planned, result, outcomes, found))
        )
    write_site(docs_folder, summaries)
    return verdicts


def _project() -> DataContextConfig:
    """A project in memory alone: no files, no progress bars, nothing sent home."""
    return DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )


def _expectation(check: Check, index: int) -> Expectation:
    kind = cast("type[Expectation]", getattr(gxe, check.expectation))
    return kind(
        **check.arguments, severity=FailureSeverity(check.severity), notes=f"{check.severity}: {check.expected}", meta={"planned": index}
    )


def _in_planned_order(result: ExpectationSuiteValidationResult, suite: Suite) -> list[ExpectationValidationResult]:
    """The results by the index each expectation was given; Great Expectations returns them in an order of its own."""
    outcomes: dict[int, ExpectationValidationResult] = {}
    for outcome in result.results:
        config = outcome.expectation_config
        if config is not None:
            outcomes[config.meta["planned"]] = outcome
    if sorted(outcomes) != list(range(len(suite.checks))) or len(result.results) != len(suite.checks):
        raise ContractError(
            f"Great Expectations evaluated {len(result.results)} checks of the {suite.name} rows, {len(suite.checks)} were planned;"
            " so the contract says nothing. Check the installed version against constraints.txt."
        )
    return [outcomes[index] for index in range(len(suite.checks))]


def _verdict(suite: Suite, check: Check, outcome: ExpectationValidationResult) -> Verdict:
    config = outcome.expectation_config
    if config is None or config.severity != FailureSeverity(check.severity):
        raise ContractError(
            f"Great Expectations lost the severity of {check.expectation} ({check.severity}). Check its version against constraints.txt."
        )
    details: dict[str, Any] = outcome.result
    rows = cast("list[dict[str, Any]]", details.get("unexpected_index_list") or [])[:SAMPLE]
    looked_at_nothing = len(suite.frame) == 0 or details.get("element_count") == 0
    return Verdict(
        suite=suite.name,
        check=check,
        success=bool(outcome.success) and not looked_at_nothing,
        observed=_observed(check, outcome, len(suite.frame)),
        row_ids=tuple(str(row["row_id"]) for row in rows if "row_id" in row),
        source_rows=tuple(int(row["source_row"]) for row in rows if "source_row" in row),
    )


def _observed(check: Check, outcome: ExpectationValidationResult, rows: int) -> str:
    """What was found, in counts."""
    details: dict[str, Any] = outcome.result
    if "unexpected_count" in details:
        bad, total = details["unexpected_count"], details["element_count"]
        return f"{bad} of {total} rows do not conform" if bad else f"all {total} rows conform"
    if check.expectation == "ExpectTableRowCountToBeBetween":
        return f"{rows} rows"
    if check.expectation == "ExpectColumnMeanToBeBetween" and rows:
        return f"{details['observed_value']:.4g}" if details.get("observed_value") is not None else "no value"
    if missing := details.get("partial_missing_list"):
        return f"no row with {', '.join(map(str, missing))}"
    if outcome.exception_info.get("raised_exception", True) is not False:
        return "could not be evaluated"  # the exception's text may quote a value, so it is left out
    return "conforms" if outcome.success else "does not conform"


# --- Data Docs --------------------------------------------------------------------------------------------------------


def _pages(
    suite: gx.ExpectationSuite,
    result: ExpectationSuiteValidationResult,
    outcomes: Sequence[ExpectationValidationResult],
    verdicts: Sequence[Verdict],
) -> tuple[Page, Page]:
    """Great Expectations' own pages of the suite and of its validation, rendered from redacted results."""
    for outcome, verdict in zip(outcomes, verdicts, strict=True):
        _redact(outcome, verdict)
    passed = sum(verdict.success for verdict in verdicts)
    result.results = list(outcomes)
    result.success = passed == len(verdicts)
    result.statistics = {
        "evaluated_expectations": len(verdicts),
        "successful_expectations": passed,
        "unsuccessful_expectations": len(verdicts) - passed,
        "success_percent": 100.0 * passed / len(verdicts),
    }
    # Only what is the same in every run on the same rows: no times, no identity of the frame in memory.
    result.meta = {"great_expectations_version": gx.__version__, "batch_spec": {"data_asset_name": f"{suite.name} rows"}}
    view = DefaultJinjaPageView()
    validation = view.render(ValidationResultsPageRenderer().render(result), show_how_to_buttons=False)
    expectations = view.render(ExpectationSuitePageRenderer().render(suite), show_how_to_buttons=False)
    return Page(f"expectations/{suite.name}.html", expectations), Page(f"validations/{suite.name}.html", validation)


def _redact(outcome: ExpectationValidationResult, verdict: Verdict) -> None:
    """Keep the counts, put row ids in place of values, and drop exceptions, which can quote values."""
    kept = {key: outcome.result[key] for key in _REDACTED_KEYS if key in outcome.result}
    if verdict.check.expectation in _NUMERIC_OBSERVATIONS:
        # A plain float or int: its renderer fails on those of numpy. None where there was no row.
        observed = cast("Any", outcome.result.get("observed_value"))
        kept["observed_value"] = observed.item() if hasattr(observed, "item") else observed
    if verdict.row_ids:
        kept["partial_unexpected_list"] = [f"row_id {row_id}" for row_id in verdict.row_ids]
    outcome.success = verdict.success
    outcome.result = kept
    outcome.exception_info = {"raised_exception": False, "exception_message": None, "exception_traceback": None}
