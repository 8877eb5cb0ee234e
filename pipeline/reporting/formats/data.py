"""The records of the stages before training: ingest, validate, split and drift."""

from typing import Any, Literal

from pipeline.reporting.formats.record import Record


class Ingest(Record):
    """What the ingest stage wrote."""

    source: Any
    source_sha256: str
    source_bytes: int
    source_rows: int
    rows: int
    raw_sha256: str


class Expectation(Record):
    """One evaluated expectation of the data contract."""

    expectation: str
    column: str | None
    severity: str
    success: bool
    observed: Any
    expected: Any


class Data(Record):
    """What the validate stage wrote."""

    rows: int
    accepted: int
    quarantined: int
    quarantined_by_rule: dict[str, int]
    labels: dict[str, int]
    expectations: list[Expectation]
    planned: int
    evaluated: int
    data_docs: str


class SplitPart(Record):
    """One split."""

    rows: int
    labels: dict[str, int]
    sha256: str


class Split(Record):
    """What the split stage wrote."""

    splits: dict[str, SplitPart]
    set_aside: dict[str, int]
    split_ids_sha256: str
    seed: int


class DriftCheck(Record):
    """One comparison of the training data with the reference's."""

    name: str
    verdict: Literal["PASS", "FAIL", "INSUFFICIENT", "NOT APPLICABLE"]
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n_current: int
    n_reference: int | None
    limit: float
    method: str
    sentence: str


class DriftAgainst(Record):
    """Which version was asked for, which one was compared with, or why none."""

    asked: str | int
    version: int | None
    reason: str | None


class Drift(Record):
    """What the drift stage wrote."""

    against: DriftAgainst
    on_drift: Literal["report", "refuse"]
    significance: float
    verdict: Literal["PASS", "FAIL", "INSUFFICIENT", "NOT APPLICABLE"]
    checks: list[DriftCheck]
