"""What a check is: a figure against a limit, its verdict and one sentence; and how a planned check is judged.

A module of this package plans checks (`Planned`, with a `judge` that returns a `Finding` or raises `NoFigure`) and hands them to
`judged`. A judge reads records only through `pipeline.gates.estimates`, which turns whatever is absent or no number into a verdict.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from pipeline.evaluation.sample_size import rows_to_decide

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INSUFFICIENT", "MISSING", "DEGENERATE", "ERROR"]


class Check(TypedDict):
    """One check as it stands in the gate record; `value`, `low`, `high` and `n` are null where there is no such figure.

    `denominator` says in words which rows `n` counts, `method` how the interval or p value was made; both are null where the
    record of the figure is the only one to know. `more_rows`: about how many more rows would decide a check that has too few, if
    the rates stay as they are; null where nobody can say.
    """

    name: str
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    denominator: str | None
    limit: float | None
    method: str | None
    rule: str
    sentence: str
    more_rows: int | None


@dataclass(frozen=True)
class Figure:
    """A finite estimate: its value, the ends of its interval at `confidence_level`, and the rows behind it."""

    value: float
    low: float
    high: float
    n: int
    confidence_level: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({100 * self.confidence_level:.4g} % interval {self.low:.3f} to {self.high:.3f}, n={self.n})"


@dataclass(frozen=True)
class Finding:
    """A verdict and its sentence, with the figure it rests on; `value` and `n` are for what has no interval."""

    verdict: Verdict
    sentence: str
    figure: Figure | None = None
    value: float | None = None
    n: int | None = None
    more_rows: int | None = None


@dataclass(frozen=True)
class Planned:
    """A check before it is judged; `judge` gives its finding or raises NoFigure."""

    name: str
    rule: str
    limit: float | None
    judge: Callable[[], Finding]
    denominator: str | None = None
    method: str | None = None


class NoFigure(Exception):
    """A figure cannot be judged; carries the finding to report instead."""

    def __init__(self, verdict: Verdict, sentence: str, n: int | None = None, more_rows: int | None = None) -> None:
        super().__init__(sentence)
        self.finding = Finding(verdict, sentence, n=n, more_rows=more_rows)


def judged(planned: Iterable[Planned]) -> list[Check]:
    """The planned checks with their findings, in their order; never raises for what the records hold."""
    return [_judged(one) for one in planned]


def against_minimum(figure: Figure, minimum: float, what: str) -> Finding:
    """PASS when the whole interval reaches `minimum`, FAIL when none of it does, else INCONCLUSIVE."""
    if figure.low >= minimum:
        return Finding("PASS", f"{what} is {figure}: the lower end reaches the minimum of {minimum:.3f}.", figure)
    if figure.high < minimum:
        return Finding("FAIL", f"{what} is {figure}: the upper end is below the minimum of {minimum:.3f}.", figure)
    return Finding(
        "INCONCLUSIVE", f"{what} is {figure}: the interval holds the minimum of {minimum:.3f}, so these rows cannot decide.", figure
    )


def against_maximum(figure: Figure, maximum: float, what: str) -> Finding:
    """PASS when the whole interval is within `maximum`, FAIL when none of it is, else INCONCLUSIVE."""
    if figure.high <= maximum:
        return Finding("PASS", f"{what} is {figure}: the upper end is within the maximum of {maximum:.3f}.", figure)
    if figure.low > maximum:
        return Finding("FAIL", f"{what} is {figure}: the lower end is above the maximum of {maximum:.3f}.", figure)
    return Finding(
        "INCONCLUSIVE", f"{what} is {figure}: the interval holds the maximum of {maximum:.3f}, so these rows cannot decide.", figure
    )


def with_more_rows(finding: Finding, decided: Callable[[float], bool], rows: int, what: str) -> Finding:
    """The finding, and where it is INCONCLUSIVE about how many more rows would decide it; see evaluation.sample_size for `decided`."""
    if finding.verdict != "INCONCLUSIVE":
        return finding
    more = rows_to_decide(decided, rows)
    said = f"No number of {what} would decide it" if more is None else f"About {more:,} more {what} would decide it"
    return replace(finding, sentence=f"{finding.sentence} {said}, if the rates stay as they are.", more_rows=more)


def _judged(planned: Planned) -> Check:
    try:
        finding = planned.judge()
    except NoFigure as problem:
        finding = problem.finding
    except Exception as error:  # noqa: BLE001 - a check that cannot be evaluated must be listed and refuse, whatever the record held
        finding = Finding(
            "ERROR", f"The check could not be evaluated ({type(error).__name__}: {error}); run the stages that wrote its inputs again."
        )
    figure = finding.figure
    return Check(
        name=planned.name,
        verdict=finding.verdict,
        value=figure.value if figure else finding.value,
        low=figure.low if figure else None,
        high=figure.high if figure else None,
        n=figure.n if figure else finding.n,
        denominator=planned.denominator,
        limit=planned.limit,
        method=planned.method,
        rule=planned.rule,
        sentence=finding.sentence,
        more_rows=finding.more_rows,
    )
