"""The section gate: the promotion rule."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.behaviour import BehaviourParams
from pipeline.params.free_text import TEXT_METRICS
from pipeline.params.section import Fraction, OpenFraction, PositiveInt, Section
from pipeline.variants import Baseline

AVERAGES = tuple(f"{average}_{name}" for average in ("macro", "weighted") for name in ("f1", "precision", "recall"))


def gate_metrics(labels: Sequence[str]) -> list[str]:
    """The metrics a minimum can be set on (more is better): accuracy, the averages such as macro_f1, per_class.<label>.precision, .recall and .f1.

    Without labels those of free text: exact_match, token_f1, rouge_1, rouge_2, rouge_l, bleu and chrf.
    """
    if not labels:
        return list(TEXT_METRICS)
    return ["accuracy", *AVERAGES, *(f"per_class.{label}.{name}" for label in labels for name in ("precision", "recall", "f1"))]


class ValueThreshold(Section):
    """A limit on one metric of the tuned prompt, judged by the end of its interval that is worse."""

    metric: str
    minimum: float


class ChangeThreshold(Section):
    """A limit on tuned minus baseline, on the same rows: the point value reaches `minimum_gain`, the interval excludes 0."""

    metric: str
    baseline: Baseline
    minimum_gain: Annotated[float, Field(ge=0.0)]


class Guard(Section):
    """A metric of the tuned prompt that may not be more than `maximum_loss` below that of a baseline, or of the champion, on the same rows.

    Judged by the lower end of the paired interval: a fall of more than that has to be ruled out.
    """

    metric: str
    baseline: Baseline | Literal["champion"]
    maximum_loss: Fraction


def _distinct_groups(groups: list[str]) -> list[str]:
    """A group compared with itself differs by 0 and would pass any limit."""
    if len(set(groups)) != len(groups):
        raise ValueError(f"a group is listed twice: {groups}")
    return groups


def _check_labels(metric: str, labels: list[str]) -> None:
    if labels and metric in ("accuracy", "calibration_gap_difference"):
        raise ValueError(f"{metric} is of all rows and takes no labels, found {labels}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"a label is listed twice: {labels}")


# What the largest difference between two groups is limited of; parity.py has the rates behind each.
Difference = Literal[
    "accuracy",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "false_positive_rate_difference",
    "equalized_odds_difference",
    "precision_difference",
    "f1_difference",
    "calibration_gap_difference",
]


class GroupThreshold(Section):
    """A floor on one metric for each listed group of one attribute, judged by the lower end of its interval.

    recall, precision and f1 are those of one `label`.
    """

    attribute: str
    metric: Literal["accuracy", "macro_f1", "recall", "precision", "f1"]
    label: str | None = None
    groups: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct_groups)]
    minimum: Fraction

    @model_validator(mode="after")
    def _label_fits(self) -> "GroupThreshold":
        if (self.metric in ("recall", "precision", "f1")) != (self.label is not None):
            raise ValueError(f"metric {self.metric} and label {self.label!r} do not go together: recall, precision and f1 take a label")
        return self


class DifferenceThreshold(Section):
    """A limit on how much a metric differs between two of the listed groups, for each of the `labels` (none listed: every label).

    A largest difference is within `maximum`, judged by the interval's upper end; the ratio is at least `minimum`, judged by the lower.
    """

    attribute: str
    metric: Literal[Difference, "demographic_parity_ratio"]
    labels: list[str] = Field(default_factory=list[str])
    groups: Annotated[list[str], Field(min_length=2), AfterValidator(_distinct_groups)]
    maximum: Fraction | None = None
    minimum: Fraction | None = None

    @model_validator(mode="after")
    def _limit_fits(self) -> "DifferenceThreshold":
        wanted = ("minimum", "maximum") if self.ratio else ("maximum", "minimum")
        if getattr(self, wanted[0]) is None or getattr(self, wanted[1]) is not None:
            raise ValueError(f"{self.metric} takes a `{wanted[0]}` and no `{wanted[1]}`")
        _check_labels(self.metric, self.labels)
        return self

    @property
    def ratio(self) -> bool:
        """Whether more is better."""
        return self.metric == "demographic_parity_ratio"

    @property
    def limit(self) -> float:
        """The limit, whichever side it is on."""
        limit = self.minimum if self.ratio else self.maximum
        return 0.0 if limit is None else limit


class RelativeDifferenceThreshold(Section):
    """A limit on how much more a metric may differ between the listed groups than it does with the champion, on the same rows.

    The largest difference with the candidate minus the largest with the champion is at most `maximum_increase`, judged by the upper end of
    its paired interval. `labels` as in DifferenceThreshold.
    """

    attribute: str
    metric: Difference
    labels: list[str] = Field(default_factory=list[str])
    groups: Annotated[list[str], Field(min_length=2), AfterValidator(_distinct_groups)]
    maximum_increase: Fraction

    @model_validator(mode="after")
    def _labels_fit(self) -> "RelativeDifferenceThreshold":
        _check_labels(self.metric, self.labels)
        return self


class SliceThreshold(Section):
    """A floor on the share of right answers to the rows of each slice: of each label (`by: label`), or of each listed group.

    `by` names an attribute whose figures are in the fairness record, and `groups` those of its groups that are judged.
    """

    by: str
    groups: Annotated[list[str], AfterValidator(_distinct_groups)] = Field(default_factory=list[str])
    minimum: Fraction

    @model_validator(mode="after")
    def _groups_fit(self) -> "SliceThreshold":
        if (self.by == "label") == bool(self.groups):
            raise ValueError(
                f"by {self.by!r} and groups {self.groups} do not go together: list the groups of an attribute, and none for label"
            )
        return self


class SliceParams(Section):
    """Floors on slices, with one correction for all of them (Holm) where a slice is found below its floor.

    `significance`: the probability that a prompt whose slices all reach their floors is refused for one of them. Slices of fewer than
    `minimum_rows` test rows are judged together.
    """

    significance: OpenFraction
    minimum_rows: PositiveInt
    thresholds: list[SliceThreshold]


class CostParams(Section):
    """What one row may cost more with the tuned prompt than with the best hard prompt; null: no limit."""

    maximum_added_milliseconds: float | None
    maximum_added_tokens: float | None


class SwapThreshold(Section):
    """Limits on a counterfactual swap: on the share of changed rows whose label flips, and if set on the shift of any label."""

    maximum_flip_rate: Fraction
    maximum_shift: Fraction | None = None


class BehaviourThresholds(Section):
    """Limits on the probes of the section behaviour, by name; each rate is judged by the far end of its interval.

    `worst_case_accuracy`: a floor on the accuracy in the worst case of each row over all perturbations; `worst_case_drop`: a limit on the
    share of rows that are right as they are and wrong in some form; `tests`: on failure rates; `batch_difference`: on the
    difference of a probability between a row alone and in a batch; `bias_increase`: on how much oftener a stereotype is likelier.
    """

    swaps: dict[str, SwapThreshold] = Field(default_factory=dict[str, SwapThreshold])
    pairs: dict[str, SwapThreshold] = Field(default_factory=dict[str, SwapThreshold])
    worst_case_accuracy: Fraction | None = None
    worst_case_drop: Fraction | None = None
    tests: dict[str, Fraction] = Field(default_factory=dict[str, float])
    batch_difference: Fraction | None = None
    bias_increase: dict[str, Fraction] = Field(default_factory=dict[str, float])

    def named(self, asked: BehaviourParams) -> list[tuple[str, list[str], list[str]]]:
        """(key, the probes that a limit is set on, the probes that are asked) of each kind of probe."""
        worst = [key for key in ("worst_case_accuracy", "worst_case_drop") if getattr(self, key) is not None]
        batch = [] if self.batch_difference is None else ["batch_difference"]
        return [
            ("swaps", list(self.swaps), asked.swaps),
            ("pairs", list(self.pairs), list(asked.pairs)),
            ("tests", list(self.tests), [test.name for test in asked.tests]),
            ("bias_increase", list(self.bias_increase), list(asked.bias_pairs)),
            ("perturbations", worst, worst if asked.perturbations else []),
            ("batch_invariance_rows", batch, batch if asked.batch_invariance_rows else []),
        ]


class DegeneracyThreshold(Section):
    """No label may take more than this share of the predictions, and each label must be predicted at least once.

    Of free text no single answer may take more than that, and at most `maximum_invalid_share` of the answers may be empty or cut
    short at prompt.generation.maximum_new_tokens.
    """

    maximum_prediction_share: OpenFraction
    maximum_invalid_share: Fraction = 0.1


class GateParams(Section):
    """The promotion rule. Without value thresholds nothing can be promoted."""

    minimum_test_rows: PositiveInt
    value_thresholds: Annotated[list[ValueThreshold], Field(min_length=1)]
    change_thresholds: list[ChangeThreshold]
    guards: list[Guard]
    group_thresholds: list[GroupThreshold]
    difference_thresholds: list[DifferenceThreshold]
    relative_difference_thresholds: list[RelativeDifferenceThreshold] = Field(default_factory=list[RelativeDifferenceThreshold])
    slices: SliceParams
    degeneracy: DegeneracyThreshold
    cost: CostParams
    behaviour: BehaviourThresholds = Field(default_factory=BehaviourThresholds)
