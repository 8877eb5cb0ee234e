"""The plan of the data contract: which expectations are demanded of which rows, how severe each is, and what each says to people."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.measures import ANSWER_KEY, PERSONAL_DATA_LEFT, PROMPT_TOKENS, SCRIPT_SHARE, Measures, Plan, characters, tokens
from pipeline.data.personal_data import KINDS
from pipeline.data.surface import PATTERNS, PROPERTIES, associations
from pipeline.params import ValidateParams

Severity = Literal["critical", "warning", "info"]
ACCEPTED_SHARE = "accepted share"  # 1.0 for a row that passes, 0.0 for another
RAREST_LABEL = "rows with the rarest label"
IMBALANCE = "label imbalance"


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
        """The column it looks at; None for checks of several columns or of the whole table."""
        return self.arguments.get("column")


@dataclass(frozen=True)
class Suite:
    """The checks planned for one frame. Where it has the columns `row_id` and `source_row`, they name the rows behind a failure."""

    name: str
    frame: pd.DataFrame
    checks: Sequence[Check]


def schema_suite(columns: Sequence[str], plan: Plan) -> Suite:
    """The columns of the stage file `raw`: those of the task, and no other but the optional ones."""
    optional = [name for name in columns if name in ("source_id", "origin") or name.startswith("group.")]
    check = Check(
        "ExpectTableColumnsToMatchSet",
        "critical",
        "exactly the columns of the stage file `raw`",
        "Run `dvc repro` so that ingest writes it again.",
        {"column_set": ["row_id", "source_row", *plan.fields, plan.answer, "label_confidence", *optional], "exact_match": True},
    )
    return Suite("schema", pd.DataFrame({name: ["column"] for name in columns}), [check])


def raw_suite(rows: Measures, is_accepted: npt.NDArray[np.bool_], plan: Plan, limits: ValidateParams) -> Suite:
    """What is demanded of the rows as they came. `is_accepted`: whether the row rules let a row pass.

    A label outside the set is critical although its row is set aside: it nearly always means a typo or a wrong column in params,
    which would otherwise quietly shrink the data. Missing texts, odd lengths and low confidences are warnings: such
    rows occur in sound data, and how many may be set aside is limited by minimum_accepted_share. What is only counted is info.
    """
    frame = rows.assign(**{ACCEPTED_SHARE: is_accepted.astype("float64")})
    checks = [
        _row_count(limits, "raw"),
        *_identity(),
        Check(
            "ExpectColumnMeanToBeBetween",
            "critical",
            f"at least {limits.minimum_accepted_share:g} of the rows pass the row rules",
            "See the reasons with `promptmill data quarantine`; mend the source or relax the row rules under `validate`.",
            {"column": ACCEPTED_SHARE, "min_value": limits.minimum_accepted_share},
        ),
        *_answers("critical", "warning", plan, limits),
        *_fields("warning", plan, limits),
        _prompt("warning", plan),
        *_cut_texts(plan, limits),
        *_scripts(plan, limits),
        *_personal_data(limits),
        *_confidences(rows, limits),
    ]
    return Suite("raw", frame, checks)


def accepted_suite(rows: Measures, plan: Plan, limits: ValidateParams) -> Suite:
    """What is demanded of the rows that go on: everything is critical, since the row rules should have seen to it."""
    checks = [
        _row_count(limits, "accepted"),
        *_identity(),
        *_answers("critical", "critical", plan, limits),
        *_fields("critical", plan, limits),
        _prompt("critical", plan),
    ]
    if plan.labels:
        checks.append(
            Check(
                "ExpectColumnDistinctValuesToContainSet",
                "critical",
                f"every label occurs: {', '.join(plan.labels)}",
                "Add rows with the label that does not occur, or drop it from prompt.verbalizers.",
                {"column": "label", "value_set": list(plan.labels)},
            )
        )
    if limits.personal_data.action != "count":
        checks.append(
            _limit(
                PERSONAL_DATA_LEFT,
                "critical",
                "no personal data is left",
                "Report the text's pattern; until then set `quarantine`.",
                maximum=0,
            )
        )
    return Suite("accepted", rows, checks)


# --- figures of all accepted rows together ----------------------------------------------------------------------------


def figures(rows: Measures, plan: Plan) -> dict[str, float]:
    """Figures of the accepted rows as a whole, NaN where there are no rows: label counts, associations with surface properties, groups."""
    found: dict[str, float] = {}
    if plan.labels:
        codes = rows[ANSWER_KEY].to_numpy()
        counts = np.bincount(codes[codes >= 0], minlength=len(plan.labels))
        found[RAREST_LABEL] = float(counts.min())
        found[IMBALANCE] = float(counts.max() / counts.min()) if counts.min() else float("nan")
        surface = {name: rows[name].to_numpy() for name in PATTERNS}
        lengths = np.sum([rows[characters(name)].to_numpy() for name in plan.fields], axis=0)
        found |= {association(name): value for name, value in associations(surface, lengths, codes).items()}
    for name in groups(rows):
        counts_of_group = rows[name].value_counts()
        found[smallest_group(name)] = float(counts_of_group.min()) if len(counts_of_group) else float("nan")
    return found


def association(name: str) -> str:
    """The name of the figure."""
    return f"association of {name} and label"


def smallest_group(name: str) -> str:
    """The name of the figure."""
    return f"rows in the smallest {name.removeprefix('group.')}"


def groups(rows: Measures) -> list[str]:
    """The group columns."""
    return [name for name in rows.columns if name.startswith("group.")]


def figures_suite(found: Mapping[str, float], plan: Plan, limits: ValidateParams) -> Suite:
    """Limits on figures of the accepted rows as a whole: one line, a column per figure."""
    checks: list[Check] = []
    if plan.labels:
        fix = "Add rows with the rarest label, drop it from prompt.verbalizers, or change the limit under `validate`."
        low, high = limits.minimum_label_rows, limits.maximum_label_imbalance
        checks.append(_figure(RAREST_LABEL, "critical", f"every label has at least {low} rows", fix, minimum=low))
        if high is not None:
            checks.append(
                _figure(IMBALANCE, "warning", f"at most {high:g} rows of the most frequent label per row of the rarest", fix, maximum=high)
            )
    if plan.labels and limits.maximum_association is not None:
        checks.extend(_association(name, limits.maximum_association) for name in PROPERTIES)
    if limits.minimum_group_rows is not None:
        size = limits.minimum_group_rows
        fix = "Add rows of that group, merge small groups in the source, or lower validate.minimum_group_rows."
        names = [name for name in found if name.startswith("rows in the smallest ")]
        checks.extend(_figure(name, "warning", f"at least {size} rows", fix, minimum=size) for name in names)
    return Suite("figures", pd.DataFrame({name: [value] for name, value in found.items()}), checks)


def _association(name: str, limit: float) -> Check:
    return _figure(
        association(name),
        "warning",
        f"Cramer's V of at most {limit:g} (0: none, 1: it tells the label)",
        "A prompt can learn this instead of the task: balance the rows, or remove the property from the texts.",
        maximum=limit,
    )


def _figure(
    column: str, severity: Severity, expected: str, fix: str, *, minimum: float | None = None, maximum: float | None = None
) -> Check:
    expectation = "ExpectColumnMinToBeBetween" if maximum is None else "ExpectColumnMaxToBeBetween"
    return Check(expectation, severity, expected, fix, _bounds(column, minimum, maximum))


# --- checks of rows ---------------------------------------------------------------------------------------------------


def _limit(
    column: str, severity: Severity, expected: str, fix: str, *, minimum: float | None = None, maximum: float | None = None
) -> Check:
    return Check("ExpectColumnValuesToBeBetween", severity, expected, fix, _bounds(column, minimum, maximum))


def _bounds(column: str, minimum: float | None, maximum: float | None) -> dict[str, Any]:
    bounds = {"min_value": minimum, "max_value": maximum}
    return {"column": column, **{name: value for name, value in bounds.items() if value is not None}}


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


def _answers(known: Severity, present: Severity, plan: Plan, limits: ValidateParams) -> Iterator[Check]:
    """The in-set check passes null, so it never stands alone."""
    fix = f"Fill in the {plan.answer}s in the source, or check ingest.columns.{plan.answer}."
    column = plan.answer if plan.labels else characters(plan.answer)
    yield Check("ExpectColumnValuesToNotBeNull", present, f"every row has a {plan.answer}", fix, {"column": column})
    if plan.labels:
        yield Check(
            "ExpectColumnValuesToBeInSet",
            known,
            f"every label is one of {', '.join(plan.labels)}",
            "Correct the label in the source, add it to prompt.verbalizers, or map ingest.columns.label to the right column.",
            {"column": "label", "value_set": list(plan.labels)},
        )
    else:
        high = limits.maximum_target_characters
        yield _limit(
            column, present, f"a target has 1 to {high} characters", "Change validate.maximum_target_characters.", minimum=1, maximum=high
        )


def _fields(severity: Severity, plan: Plan, limits: ValidateParams) -> Iterator[Check]:
    low, high = limits.minimum_text_characters, limits.maximum_text_characters
    for name in plan.fields:
        fix, column = f"Check ingest.columns.fields.{name}, mend the source", {"column": characters(name)}
        yield Check("ExpectColumnValuesToNotBeNull", severity, f"every row has the field {name}", f"{fix}.", column)
        change = f"{fix}, or change validate.minimum_text_characters / maximum_text_characters."
        yield _limit(characters(name), severity, f"{name} has {low} to {high} characters", change, minimum=low, maximum=high)


def _prompt(severity: Severity, plan: Plan) -> Check:
    counts = plan.tokens
    answer = "longest verbalizer" if plan.labels else "target"
    return _limit(
        PROMPT_TOKENS,
        severity,
        f"the prompt fits the {counts.context_length} tokens of the base model, {counts.virtual_tokens} virtual tokens and the {answer} included",
        "Lower prompt.maximum_field_tokens or tune.num_virtual_tokens, or take a base model with a longer context.",
        maximum=counts.context_length,
    )


def _cut_texts(plan: Plan, limits: ValidateParams) -> Iterator[Check]:
    high = plan.tokens.maximum_field_tokens
    kept = limits.cut_texts == "keep"
    for name in plan.fields:
        yield _limit(
            tokens(name),
            "info" if kept else "warning",
            f"{name} has at most {high} tokens, so that nothing of it is cut",
            "Raise prompt.maximum_field_tokens if the ends matter." if kept else "Nothing needs doing: such rows are set aside.",
            maximum=high,
        )


def _scripts(plan: Plan, limits: ValidateParams) -> Iterator[Check]:
    if limits.script is not None:
        share, kept = limits.script.minimum_share, limits.script.foreign_texts == "keep"
        yield _limit(
            SCRIPT_SHARE,
            "info" if kept else "warning",
            f"at least {share:.0%} of a text's letters are {' or '.join(plan.scripts)}",
            "Look at these rows; change validate.script for another language." if kept else "Nothing needs doing: such rows are set aside.",
            minimum=share,
        )


def _personal_data(limits: ValidateParams) -> Iterator[Check]:
    done = {
        "count": "They are only counted: set validate.personal_data.action to mask or quarantine.",
        "mask": "Nothing needs doing: words in brackets take their place.",
        "quarantine": "Nothing needs doing: such rows are set aside.",
    }
    action = limits.personal_data.action
    for kind in KINDS:
        yield _limit(kind, "warning" if action == "quarantine" else "info", f"no {kind} in the texts", done[action], maximum=0)


def _confidences(rows: Measures, limits: ValidateParams) -> Iterator[Check]:
    if rows["label_confidence"].isna().all():  # a source without confidences: nothing to look at, and nothing wrong
        return
    fix = "Bring ingest.columns.label_confidence to that scale, or set it to null."
    yield _limit("label_confidence", "critical", "a confidence from 0 to 1 where there is one", fix, minimum=0.0, maximum=1.0)
    if limits.low_label_confidence == "quarantine":
        low = limits.minimum_label_confidence
        fix = "Nothing needs doing: such rows are set aside."
        yield _limit("label_confidence", "warning", f"a label confidence of {low:g} or more where there is one", fix, minimum=low)
