"""The tuned prompt beside the champion on the same test rows: what was asked, what came out, and the rows on which they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StageInputError
from pipeline.reporting.examples import Piece, visible_pieces
from pipeline.reporting.formats.comparison import ChampionComparison, DiscordantRow
from pipeline.reporting.formats.text import TEXT_METRIC_NAMES

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DiscordantView:
    """A row that one of the two has right, or answers better, ready to be shown; `label` is the reference where text is written."""

    pieces: list[Piece]
    label: list[Piece]
    candidate: list[Piece]
    champion: list[Piece]


@dataclass(frozen=True)
class ChampionView:
    """`sentence` says what was compared with, or why nothing was; `examples` are (heading, how many there are, some of them)."""

    sentence: str
    metric: str
    record: ChampionComparison
    examples: list[tuple[str, int, list[DiscordantView]]]


def champion_view(record: ChampionComparison, examples: int) -> ChampionView:
    """The comparison as the card shows it, with up to `examples` discordant rows of each side."""
    metric = {"accuracy": "accuracy", "macro_f1": "macro F1", **TEXT_METRIC_NAMES}[record.asked.metric]
    sides: list[tuple[str, int, list[DiscordantView]]] = []
    if record.examples:
        ours, theirs = (_shown(rows, examples) for rows in (record.examples.candidate_only, record.examples.champion_only))
        if record.paired:
            sides = [
                ("Only this tuned prompt is right", record.paired.candidate_only, ours),
                ("Only the champion is right", record.paired.champion_only, theirs),
            ]
        elif record.better:
            sides = [
                ("Answered better by this tuned prompt", record.better.candidate, ours),
                ("Answered better by the champion", record.better.champion, theirs),
            ]
    return ChampionView(_sentence(record, metric), metric, record, sides)


def confusion_matrix(answers: "pd.DataFrame", labels: Sequence[str]) -> list[list[int]]:
    """Rows by true label (rows of the matrix) and answer (columns), in the order of `labels`."""
    counts = answers.groupby(["label", "prediction"]).size().to_dict()
    return [[int(counts.get((actual, predicted), 0)) for predicted in labels] for actual in labels]


def check_same_rows(champion: "pd.DataFrame", predictions: "pd.DataFrame", where: Path) -> None:
    """Raise StageInputError unless the champion answered exactly the rows, with their labels, that the tuned prompt answered."""
    tuned = predictions[predictions["variant"] == "tuned"]
    first, second = (set(zip(frame["row_id"], frame["label"], strict=True)) for frame in (tuned, champion))
    if first != second or len(tuned) != len(champion):
        raise StageInputError(
            f"{where} has {len(champion)} rows, of which {len(first & second)} are among the {len(tuned)} that the tuned prompt answered; "
            "expected the same rows. Run the stage score_champion again: `dvc repro`."
        )


def _sentence(record: ChampionComparison, metric: str) -> str:
    if record.champion is None:
        return f"There is no champion to compare with ({record.reason}), so this is a first version."
    champion = f"the champion, version {record.champion.version}"
    if not record.comparable:
        return f"This tuned prompt cannot be compared with {champion}: {record.reason}."
    if record.asked.mode == "superior":
        return f"The question: is its {metric} above that of {champion}, beyond chance, on the same {record.n or 0:,} test rows?"
    margin = f"{record.asked.margin:.3f}"
    return f"The question: is its {metric} at most {margin} below that of {champion}, on the same {record.n or 0:,} test rows?"


def _shown(rows: Sequence[DiscordantRow], count: int) -> list[DiscordantView]:
    return [DiscordantView(*(visible_pieces(text) for text in (row.text, row.label, row.candidate, row.champion))) for row in rows[:count]]
