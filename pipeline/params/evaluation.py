"""The sections score, evaluate, compare, assess_fairness and report."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.params.section import Fraction, OpenFraction, PositiveInt, Section, Seed


class ScoreParams(Section):
    """Scoring of the test split. `hard_prompt_selection_rows`: validation rows on which the candidates compete.

    `few_shot_per_label`: training rows of each label that the few-shot baseline shows as worked examples, drawn by `few_shot_seed`;
    with 0 there is no such baseline.
    """

    batch_size: PositiveInt
    hard_prompt_selection_rows: PositiveInt
    few_shot_per_label: Annotated[int, Field(ge=0)]
    few_shot_seed: Seed


class EvaluateParams(Section):
    """Bootstrap intervals of the metrics."""

    bootstrap_replicates: Annotated[int, Field(ge=200)]
    confidence_level: OpenFraction
    seed: Seed


class CompareParams(Section):
    """The candidate against the champion on the same test rows.

    `superior`: it must be better beyond chance, at `significance` over all attempts; `non_inferior`: not worse than by `margin`.
    `first_version`: without a champion the other checks decide (`thresholds`), or a person does (`ask`). `examples`: rows shown for
    each side that one alone has right.
    """

    metric: Literal["accuracy", "macro_f1"]
    mode: Literal["superior", "non_inferior"]
    margin: Fraction
    significance: Annotated[float, Field(gt=0.0, lt=0.5)]
    first_version: Literal["thresholds", "ask"]
    examples: Annotated[int, Field(ge=0)]


UNKNOWN_GROUP = "unknown"


def intersection_name(first: str, second: str) -> str:
    """What the intersection of two attributes, or of two of their groups, is called."""
    return f"{first} & {second}"


class TextGroups(Section):
    """Groups that are a property of the text: a row belongs to a group when its text matches the regular expression.

    The `expected` groups must have test rows: the gate refuses where one is absent.
    """

    derived_from: Literal["text"]
    patterns: Annotated[dict[str, str], Field(min_length=1)]
    expected: list[str] = Field(default_factory=list[str])

    @field_validator("patterns")
    @classmethod
    def _compilable(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            _check_group_name(name)
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern of group {name!r} is not a regular expression: {pattern!r} ({error})") from None
        return patterns

    @model_validator(mode="after")
    def _expected_are_defined(self) -> "TextGroups":
        unknown = [name for name in self.expected if name not in self.patterns]
        if unknown:
            raise ValueError(f"expects the groups {unknown}, patterns defines {sorted(self.patterns)}")
        return self


class ColumnGroups(Section):
    """Groups by the values of a column, which `ingest.columns.groups` maps under the attribute's name.

    `expected` lists the values that must have test rows; others are assessed as well, but no limit can be set on them.
    """

    expected: Annotated[list[str], Field(min_length=1)]

    @field_validator("expected")
    @classmethod
    def _names(cls, expected: list[str]) -> list[str]:
        for name in expected:
            _check_group_name(name)
        if len(set(expected)) != len(expected):
            raise ValueError(f"a group is listed twice: {expected}")
        return expected


def _check_group_name(name: str) -> None:
    if name == UNKNOWN_GROUP or not name.strip():
        raise ValueError(f"a group cannot be called {name!r}: rows in no group are {UNKNOWN_GROUP!r}")


class AssessFairnessParams(Section):
    """Disaggregated metrics. Below `minimum_denominator` rows a group's figure is INSUFFICIENT, never a pass.

    `groups`: attributes found by patterns in the text; `columns`: attributes that are columns of the data; `intersections`: pairs of
    attributes whose groups are crossed.
    """

    groups: dict[str, TextGroups]
    columns: dict[str, ColumnGroups]
    intersections: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    minimum_denominator: PositiveInt
    confidence_level: OpenFraction

    @model_validator(mode="after")
    def _attributes(self) -> "AssessFairnessParams":
        both = sorted(set(self.groups) & set(self.columns))
        if both:
            raise ValueError(f"the attributes {both} are in groups and in columns; give each another name")
        for first, second in self.intersections:
            unknown = [name for name in (first, second) if name not in (*self.groups, *self.columns)]
            if unknown or first == second:
                known = sorted((*self.groups, *self.columns))
                raise ValueError(f"the intersection [{first}, {second}] needs two different attributes of {known}")
        return self

    def defined_groups(self) -> dict[str, list[str]]:
        """Attribute, or intersection of two, -> the groups a limit can be set on."""
        single = {name: list(groups.patterns) for name, groups in self.groups.items()}
        single |= {name: list(groups.expected) for name, groups in self.columns.items()}
        crossed = {
            intersection_name(first, second): [intersection_name(one, other) for one in single[first] for other in single[second]]
            for first, second in self.intersections
        }
        return {name: [*groups, UNKNOWN_GROUP] for name, groups in (single | crossed).items()}


class ReportParams(Section):
    """The prompt card."""

    title: str
    description: str
    examples: PositiveInt
    seed: Seed
