"""Which test rows the card shows, and how their text is made safe to look at."""

import hashlib
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageInputError

if TYPE_CHECKING:
    import pandas as pd

SHOWN_PROBABILITIES = 4
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
KEPT = frozenset("\n\t\u200c\u200d")  # line breaks, and the joiners that scripts and emoji are written with


@dataclass(frozen=True)
class Piece:
    """A stretch of text, or (`hidden`) the code point of a character that would not be seen or would reorder the line."""

    text: str
    hidden: bool


@dataclass(frozen=True)
class Example:
    """One test row with what the tuned prompt and the hard prompt answered; probabilities are (label, share) pairs."""

    row_id: str
    pieces: list[Piece]
    label: str
    prediction: str
    hard_prompt: str | None
    probabilities: list[tuple[str, float]]


def choose_examples(predictions: "pd.DataFrame", labels: Sequence[str], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Up to `count` right and `count` wrong answers of the tuned prompt, in an order that depends on `seed` and the row ids only."""
    tuned = predictions[predictions["variant"] == "tuned"]
    others = predictions[predictions["variant"] == "hard_prompt"]
    hard = dict(zip(others["row_id"].astype(str), others["prediction"].astype(str), strict=True))
    right = tuned["label"] == tuned["prediction"]
    chosen = [draw(tuned[mask], count, seed) for mask in (right, ~right)]
    made = [[_example(row, labels, hard) for row in frame.to_dict("records")] for frame in chosen]
    return made[0], made[1]


def check_predictions(predictions: "pd.DataFrame", rows: int, where: Path) -> None:
    """Raise StageInputError unless the tuned prompt answered exactly the `rows` that the metrics were computed on."""
    found = int((predictions["variant"] == "tuned").sum())
    if found != rows:
        raise StageInputError(
            f"{where} has {found} rows of variant 'tuned', the metrics were computed on {rows}. Run `dvc repro` so that both are current."
        )


def visible_pieces(text: str) -> list[Piece]:
    """Split a text so that control, format (right-to-left marks, zero-width) and unassigned characters show as code points."""
    pieces: list[Piece] = []
    plain: list[str] = []
    for character in text:
        if character in KEPT or unicodedata.category(character) not in HIDDEN_CATEGORIES:
            plain.append(character)
            continue
        if plain:
            pieces.append(Piece("".join(plain), hidden=False))
            plain = []
        pieces.append(Piece(f"U+{ord(character):04X}", hidden=True))
    if plain:
        pieces.append(Piece("".join(plain), hidden=False))
    return pieces


def draw(rows: "pd.DataFrame", count: int, seed: int) -> "pd.DataFrame":
    """The first `count` rows by the hash of seed and row id: the order of the file does not matter."""
    ranks = [hashlib.sha256(f"{seed}:{row_id}".encode()).hexdigest() for row_id in rows["row_id"].astype(str)]
    return rows.assign(_rank=ranks).sort_values("_rank").head(count).drop(columns="_rank")


def _example(row: Mapping[Hashable, Any], labels: Sequence[str], hard: dict[str, str]) -> Example:
    row_id, label, prediction = str(row["row_id"]), str(row["label"]), str(row["prediction"])
    shares = [(name, float(row[f"p.{name}"])) for name in labels]
    likeliest = sorted(shares, key=lambda pair: -pair[1])[:SHOWN_PROBABILITIES]
    kept = {name for name, _ in likeliest} | {label, prediction}
    shown = [pair for pair in shares if pair[0] in kept]
    return Example(row_id, visible_pieces(str(row["text"])), label, prediction, hard.get(row_id), shown)
