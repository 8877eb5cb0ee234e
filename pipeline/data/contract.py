"""The data contract judged by Great Expectations: the one module that imports great_expectations.

Four traits of Great Expectations 1.24 shape it. An empty frame passes most expectations and a column of nulls nearly all, so a check that
looked at nothing counts as failed here. `success` of a suite does not know severities, so they are read per expectation. A suite can
evaluate fewer expectations than planned without a word, so the two are compared; an expectation that raised blocks, however
severe it is. Results hold raw values, so each is reduced to counts and row ids before anything is rendered or returned.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import great_expectations as gx
import great_expectations.expectations.core as core
import numpy as np
from great_expectations.compatibility.pydantic import ValidationError  # pyright: ignore[reportPrivateImportUsage]
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.render.renderer.page_renderer import ExpectationSuitePageRenderer, ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

from pipeline.data.data_docs import Overview, Page, SuiteSummary, write_site
from pipeline.data.expectations import Check, Suite
from pipeline.errors import ContractError, ParamsError
from pipeline.params import ExpectationParams

SAMPLE = 5  # rows named per failed expectation

# Positions of failing rows and no values: the frame says which row stands there.
_RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": SAMPLE,
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}
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
_ABOUT_NULL = ("ExpectColumnValuesToNotBeNull", "ExpectColumnValuesToBeNull")
# They ask a database or another table, or about the columns, which the suite `schema` checks already.
_NOT_OFFERED = re.compile(r"(?i)quer|unexpected_rows|other_table|table_column|column_to_exist")
# What these arguments mean is fixed here, or is set by keys of ours.
_OURS = frozenset(
    {
        "id", "meta", "notes", "description", "result_format", "catch_exceptions", "rendered_content", "windows", "batch_id", "row_condition",
        "condition_parser", "library_metadata",
    }
)  # fmt: skip
_COLUMNS = ("column", "column_A", "column_B", "column_list")
# Arguments that loosen a check and demand nothing by themselves.
_NO_DEMAND = frozenset({*_COLUMNS, "mostly", "strict_min", "strict_max", "ignore_row_if", "or_equal", "ties_okay", "match_on", "strictly"})


@dataclass(frozen=True)
class Verdict:
    """What came of one check, without raw values: counts, and up to SAMPLE of the rows behind a failure."""

    suite: str
    check: Check
    success: bool
    evaluated: bool
    observed: str
    row_ids: tuple[str, ...]
    source_rows: tuple[int, ...]

    @property
    def blocks(self) -> bool:
        """Whether this verdict stops the run: a critical failure, or a check that could not be evaluated."""
        return not self.success and (self.check.severity == "critical" or not self.evaluated)

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
            "fix": self.check.fix,
            "row_ids": list(self.row_ids),
            "source_rows": list(self.source_rows),
        }


# --- expectations of the user -----------------------------------------------------------------------------------------


def own_checks(expectations: Sequence[ExpectationParams], known_columns: Sequence[str]) -> dict[str, list[Check]]:
    """The task's own expectations as checks, for `raw` and `accepted`.

    Only classes of great_expectations.expectations.core are looked up, by name. Raises ParamsError with every expectation that has an
    unknown name, argument or column, or that demands nothing.
    """
    checks: dict[str, list[Check]] = {"raw": [], "accepted": []}
    problems: list[str] = []
    for index, wanted in enumerate(expectations):
        where = f"validate.expectations.{index}"
        found = _problems(wanted, known_columns)
        problems.extend(f"  {where}: {problem}" for problem in found)
        if not found:
            checks[wanted.on].append(_own_check(wanted, where))
    if problems:
        raise ParamsError(
            f"{len(problems)} problem(s) in the task's own expectations; correct these keys in params.yaml:\n" + "\n".join(problems)
        )
    return checks


def columns_named(check: Check) -> list[str]:
    """The columns that a check's arguments name."""
    named = [check.arguments.get(key) for key in _COLUMNS]
    return [name for value in named if value is not None for name in ([value] if isinstance(value, str) else cast("list[str]", value))]


def _offered() -> dict[str, type[Expectation]]:
    """Great Expectations' own name -> class, for what can be asked of one table in memory."""
    classes = [value for value in vars(core).values() if isinstance(value, type) and issubclass(value, Expectation)]
    named = {str(getattr(kind, "expectation_type", "")): kind for kind in classes}
    return {name: kind for name, kind in named.items() if name and not _NOT_OFFERED.search(name)}


def _problems(wanted: ExpectationParams, known_columns: Sequence[str]) -> list[str]:
    offered = _offered()
    kind = offered.get(wanted.expectation)
    if kind is None:
        close = difflib.get_close_matches(wanted.expectation, offered, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}" if close else ""
        return [f"{wanted.expectation!r} is no expectation that can be asked of these rows{hint}"]
    given = wanted.arguments
    allowed = sorted(set(cast("Any", kind).__fields__) - _OURS - {"severity"})
    unknown = [name for name in given if name not in allowed]
    if unknown:
        return [f"{wanted.expectation} has no argument {', '.join(map(repr, unknown))}; it has {', '.join(allowed)}"]
    demands = set(allowed) - _NO_DEMAND
    if demands and not demands & set(given):
        return [f"{wanted.expectation} demands nothing without one of {', '.join(sorted(demands))}, so it could not fail"]
    found = _invalid(kind, given)
    columns = columns_named(Check(kind.__name__, "critical", "", "", given)) if not found else []
    known = ", ".join(map(repr, known_columns))
    return [*found, *(f"there is no column {name!r}; there are {known}" for name in columns if name not in known_columns)]


def _invalid(kind: type[Expectation], given: Mapping[str, Any]) -> list[str]:
    """What the class itself says about the arguments, and patterns that are none."""
    try:
        kind(**given)
    except ValidationError as error:
        return [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
    except (TypeError, ValueError) as error:
        return [" ".join(str(error).split())]
    problems: list[str] = []
    for pattern in [given.get("regex"), *(given.get("regex_list") or [])]:
        try:
            re.compile(pattern or "")
        except re.error as error:
            problems.append(f"{pattern!r} is not a regular expression ({error})")
    return problems


def _own_check(wanted: ExpectationParams, where: str) -> Check:
    stated = ", ".join(f"{name}: {value}" for name, value in wanted.arguments.items())
    fix = f"Mend the source, or change {where}."
    return Check(_offered()[wanted.expectation].__name__, wanted.severity, f"{wanted.expectation} ({stated})", fix, wanted.arguments)


# --- the judgement ----------------------------------------------------------------------------------------------------


def judge(suites: Sequence[Suite], *, docs_folder: Path, overview: Overview) -> list[Verdict]:
    """Evaluate every check of every suite and write Data Docs into `docs_folder`; returns a verdict per check, in planned order.

    A suite without checks is left out. Raises ContractError when Great Expectations evaluated another set of checks than planned.
    """
    context = gx.get_context(mode="ephemeral", project_config=_project())
    frames = context.data_sources.add_pandas("promptmill")
    view = DefaultJinjaPageView()  # one for all pages: it compiles its templates
    verdicts: list[Verdict] = []
    summaries: list[SuiteSummary] = []
    for suite in suites:
        if not suite.checks:
            continue
        batch = frames.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": suite.frame})
        planned = gx.ExpectationSuite(name=suite.name, expectations=[_expectation(check, i) for i, check in enumerate(suite.checks)])
        result = batch.validate(planned, result_format=cast("Any", _RESULT_FORMAT))
        outcomes = _in_planned_order(result, suite)
        found = [_verdict(suite, check, outcome) for check, outcome in zip(suite.checks, outcomes, strict=True)]
        verdicts.extend(found)
        pages = _pages(view, planned, result, outcomes, found)
        summaries.append(SuiteSummary(suite.name, len(suite.frame), [verdict.record() for verdict in found], *pages))
    write_site(docs_folder, summaries, overview)
    return verdicts


def _project() -> DataContextConfig:
    """A project in memory alone: no files, no progress bars, nothing sent home."""
    return DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )


def _expectation(check: Check, index: int) -> Expectation:
    kind = cast("type[Expectation]", getattr(core, check.expectation))
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
    at = cast("list[int]", details.get("partial_unexpected_index_list") or [])[:SAMPLE]
    named = suite.frame.loc[at] if at and "row_id" in suite.frame.columns else None
    evaluated = not _raised(outcome)
    return Verdict(
        suite=suite.name,
        check=check,
        success=bool(outcome.success) and evaluated and not _looked_at_nothing(suite, check, details),
        evaluated=evaluated,
        observed=_observed(check, outcome, len(suite.frame)),
        row_ids=() if named is None else tuple(map(str, named["row_id"])),
        source_rows=() if named is None else tuple(map(int, named["source_row"])),
    )


def _raised(outcome: ExpectationValidationResult) -> bool:
    """Whether evaluation raised; Great Expectations notes that once, or by metric."""
    info: Mapping[str, Any] = outcome.exception_info or {}
    notes = [info] if "raised_exception" in info else [cast("Mapping[str, Any]", note) for note in info.values()]
    return any(note.get("raised_exception", True) for note in notes)


def _looked_at_nothing(suite: Suite, check: Check, details: Mapping[str, Any]) -> bool:
    count = details.get("element_count")
    only_null = count is not None and details.get("missing_count") == count and check.expectation not in _ABOUT_NULL
    return len(suite.frame) == 0 or count == 0 or only_null


def _observed(check: Check, outcome: ExpectationValidationResult, rows: int) -> str:
    """What was found, in counts."""
    details: dict[str, Any] = outcome.result
    if _raised(outcome):
        return "could not be evaluated"  # the exception's text may quote a value, so it is left out
    if "unexpected_count" in details and "element_count" in details:
        bad, total = details["unexpected_count"], details["element_count"]
        return f"{bad} of {total} rows do not conform" if bad else f"all {total} rows conform"
    if check.expectation == "ExpectTableRowCountToBeBetween":
        return f"{rows} rows"
    if check.expectation == "ExpectTableColumnsToMatchSet":
        return _column_names(details)
    if missing := details.get("partial_missing_list"):
        return f"no row with {', '.join(map(str, missing))}"
    if _is_number(details.get("observed_value")):
        return f"{float(details['observed_value']):.4g}"
    if "observed_value" in details and details["observed_value"] is None:
        return "no value"
    return "conforms" if outcome.success else "does not conform"


def _column_names(details: Mapping[str, Any]) -> str:
    """The columns that are missing or too many: names of columns, and no values of rows."""
    mismatched: Mapping[str, Any] = (details.get("details") or {}).get("mismatched") or {}
    named = [f"{kind} {', '.join(map(str, names))}" for kind, names in mismatched.items()]
    return f"columns {'; '.join(named)}" if named else "conforms"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


# --- Data Docs --------------------------------------------------------------------------------------------------------


def _pages(
    view: DefaultJinjaPageView,
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
    validation = view.render(ValidationResultsPageRenderer().render(result), show_how_to_buttons=False)
    expectations = view.render(ExpectationSuitePageRenderer().render(suite), show_how_to_buttons=False)
    return Page(f"expectations/{suite.name}.html", expectations), Page(f"validations/{suite.name}.html", validation)


def _redact(outcome: ExpectationValidationResult, verdict: Verdict) -> None:
    """Keep the counts, put row ids in place of values, and drop exceptions, which can quote values."""
    kept = {key: outcome.result[key] for key in _REDACTED_KEYS if key in outcome.result}
    if "unexpected_percent" not in kept:  # a count of distinct values, which its renderer takes for one of rows
        kept.pop("unexpected_count", None)
    observed = cast("Any", outcome.result.get("observed_value"))
    if _is_number(observed):
        # A plain float or int: its renderer fails on those of numpy.
        kept["observed_value"] = observed.item() if hasattr(observed, "item") else observed
    elif "observed_value" in outcome.result and verdict.check.expectation.endswith("ToBeBetween"):
        kept["observed_value"] = None  # these renderers want one
    if verdict.row_ids:
        kept["partial_unexpected_list"] = [f"row_id {row_id}" for row_id in verdict.row_ids]
    outcome.success = verdict.success
    outcome.result = kept
    outcome.exception_info = {"raised_exception": False, "exception_message": None, "exception_traceback": None}
