"""The record of the stage that compares with the champion."""

from typing import Literal

from pydantic import model_validator

from pipeline.params import RowMetric
from pipeline.reporting.formats.record import Estimate, Record


class Asked(Record):
    """What was to be shown, as params.yaml says."""

    metric: Literal["accuracy", "macro_f1"] | RowMetric
    mode: Literal["superior", "non_inferior"]
    margin: float
    significance: float


class Champion(Record):
    """The version that was compared with."""

    version: int
    manifest_sha256: str
    base_model_id: str | None


class OwnFigures(Record):
    """The metric of each of the two on the same rows."""

    candidate: Estimate
    champion: Estimate


class Paired(Record):
    """Rows by who has them right."""

    both_right: int
    candidate_only: int
    champion_only: int
    both_wrong: int


class Better(Record):
    """Rows of free text by who answers them better, by the metric that was asked for."""

    candidate: int
    champion: int
    equal: int


class DiscordantRow(Record):
    """A row that one of the two has right and the other wrong, or that one answers better; `label` is the reference where text is written."""

    row_id: str
    text: str
    label: str
    candidate: str
    champion: str


class DiscordantRows(Record):
    """Some of the discordant rows, by who has them right or answers them better."""

    candidate_only: list[DiscordantRow]
    champion_only: list[DiscordantRow]


class ChampionComparison(Record):
    """The tuned prompt against the champion; the figures are null where nothing was compared, and `reason` says why."""

    task: str
    asked: Asked
    champion: Champion | None
    comparable: bool
    reason: str | None
    n: int | None
    attempts: int | None
    level: float | None
    confidence_level: float | None
    metrics: OwnFigures | None
    difference: Estimate | None
    p_value: float | None
    paired: Paired | None
    better: Better | None = None
    examples: DiscordantRows | None
    method: str

    @model_validator(mode="after")
    def _whole(self) -> "ChampionComparison":
        """Either every figure of a comparison is there, or the reason why none is."""
        figures = {
            name: getattr(self, name)
            for name in ("champion", "n", "attempts", "level", "confidence_level", "metrics", "difference", "examples")
        }
        figures["paired"] = self.paired or self.better
        missing = [name for name, figure in figures.items() if figure is None]
        if self.comparable and missing:
            raise ValueError(f"the champion was compared with, but there is no {missing[0]}")
        if not self.comparable and not self.reason:
            raise ValueError("no champion was compared with, and no reason is given")
        return self
