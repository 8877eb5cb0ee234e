"""The sections score, evaluate, assess_fairness and report."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.params.section import OpenFraction, PositiveInt, Section, Seed


class ScoreParams(Section):
    """Scoring of the test split. `hard_prompt_selection_rows`: validation rows on which the candidates compete."""

    batch_size: PositiveInt
    hard_prompt_selection_rows: PositiveInt


class EvaluateParams(Section):
    """Bootstrap intervals of the metrics."""

    bootstrap_replicates: Annotated[int, Field(ge=200)]
    confidence_level: OpenFraction
    seed: Seed


class TextGroups(Section):
    """Groups that are a property of the text: a row belongs to a group when its text matches the regular expression."""

    derived_from: Literal["text"]
    patterns: Annotated[dict[str, str], Field(min_length=1)]

    @field_validator("patterns")
    @classmethod
    def _compilable(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern of group {name!r} is not a regular expression: {pattern!r} ({error})") from None
        return patterns


class AssessFairnessParams(Section):
    """Disaggregated metrics. Below `minimum_denominator` rows a group's figure is INSUFFICIENT, never a pass."""

    groups: dict[str, TextGroups]
    minimum_denominator: PositiveInt
    confidence_level: OpenFraction


class ReportParams(Section):
    """The prompt card."""

    title: str
    description: str
    examples: PositiveInt
    seed: Seed
