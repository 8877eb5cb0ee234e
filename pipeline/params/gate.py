"""The section gate: the promotion rule."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.params.section import Fraction, OpenFraction, PositiveInt, Section

AVERAGES = tuple(f"{average}_{name}" for average in ("macro", "weighted") for name in ("f1", "precision", "recall"))


def gate_metrics(labels: Iterable[str]) -> list[str]:
    """The metrics a minimum can be set on (more is better): accuracy, the averages such as macro_f1, per_class.<label>.precision, .recall and .f1."""
    return ["accuracy", *AVERAGES, *(f"per_class.{label}.{name}" for label in labels for name in ("precision", "recall", "f1"))]


class ValueThreshold(Section):
    """A limit on one metric of the tuned prompt, judged by the end of its interval that is worse."""

    metric: str
    minimum: float


class ChangeThreshold(Section):
    """A limit on tuned minus baseline, on the same rows: the point value reaches `minimum_gain`, the interval excludes 0."""

    metric: Literal["accuracy", "macro_f1"]
    baseline: Literal["hard_prompt", "majority_class"]
    minimum_gain: Annotated[float, Field(ge=0.0)]


def _distinct_groups(groups: list[str]) -> list[str]:
    """A group compared with itself differs by 0 and would pass any limit."""
    if len(set(groups)) != len(groups):
        raise ValueError(f"a group is listed twice: {groups}")
    return groups


class GroupThreshold(Section):
    """A floor on one metric for each listed group of one attribute, judged by the lower end of its interval."""

    attribute: str
    metric: Literal["accuracy"]
    groups: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct_groups)]
    minimum: Fraction


class DifferenceThreshold(Section):
    """A limit on the largest difference of a metric between two of the listed groups, judged by the interval's upper end."""

    attribute: str
    metric: Literal["accuracy"]
    groups: Annotated[list[str], Field(min_length=2), AfterValidator(_distinct_groups)]
    maximum: Fraction


class DegeneracyThreshold(Section):
    """No label may take more than this share of the predictions, and each label must be predicted at least once."""

    maximum_prediction_share: OpenFraction


class GateParams(Section):
    """The promotion rule. Without value thresholds nothing can be promoted."""

    minimum_test_rows: PositiveInt
    value_thresholds: Annotated[list[ValueThreshold], Field(min_length=1)]
    change_thresholds: list[ChangeThreshold]
    group_thresholds: list[GroupThreshold]
    difference_thresholds: list[DifferenceThreshold]
    degeneracy: DegeneracyThreshold
