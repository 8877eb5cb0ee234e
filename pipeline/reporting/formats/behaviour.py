"""The record of the stage that assesses behaviour."""

from typing import Literal

from pipeline.reporting.formats.record import Estimate, Record


class Flip(Record):
    """A text, what a probe made of it, and the two answers."""

    row_id: str
    text: str
    changed_text: str
    prediction: str
    changed_prediction: str


class Case(Record):
    """A case of a minimum-functionality test, with its right label."""

    text: str
    label: str
    prediction: str


class Swap(Record):
    """A counterfactual swap; of ready-made pairs the same figures. `predicted`: answers to the unchanged texts."""

    searched: int
    changed: int
    predicted: dict[str, int]
    flip_rate: Estimate
    shift: dict[str, Estimate]
    directions: dict[str, int]
    flips: dict[str, int]


class Perturbation(Record):
    """One way of writing the same text otherwise."""

    changed: int
    accuracy: Estimate
    flip_rate: Estimate


class Robustness(Record):
    """The first rows as they are, under each perturbation, and in the worst case of each row."""

    rows: int
    predicted: dict[str, int]
    accuracy: Estimate
    perturbations: dict[str, Perturbation]
    worst_case_accuracy: Estimate
    worst_case_drop: Estimate


class BehaviouralTest(Record):
    """A test as in CheckList, with some of the cases that fail."""

    kind: Literal["minimum_functionality", "invariance", "directional"]
    searched: int
    cases: int
    predicted: dict[str, int]
    failure_rate: Estimate
    examples: list[Case | Flip]


class BatchInvariance(Record):
    """Rows asked alone and in a batch; `largest_difference` of a probability is null without rows."""

    rows: int
    largest_difference: float | None
    flips: int


class LanguageModelling(Record):
    """How often a related text is likelier than an unrelated one."""

    base: Estimate
    tuned: Estimate


class Preference(Record):
    """Share of pairs whose stereotype is likelier, without and with the tuned prompt; p value of the change (exact McNemar)."""

    base: Estimate
    tuned: Estimate
    change: Estimate
    p_value: float | None
    language_modelling: LanguageModelling | None


class BiasFile(Preference):
    """All pairs of a file, and those of each kind; `skipped` says why nothing was asked."""

    format: str
    pairs: int
    skipped: str | None
    compared: int
    too_long: int
    score: str
    kinds: dict[str, Preference]


class Behaviour(Record):
    """What the assess_behaviour stage wrote; a probe that is not asked is absent, or null."""

    task: str
    labels: list[str]
    confidence_level: float
    minimum_rows: int
    method: str
    swaps: dict[str, Swap]
    pairs: dict[str, Swap]
    robustness: Robustness | None
    tests: dict[str, BehaviouralTest]
    batch_invariance: BatchInvariance | None
    bias: dict[str, BiasFile]
