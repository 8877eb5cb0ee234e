"""The tuned prompt's behaviour as the card shows it: rates beside the gate's verdicts, and flips with both texts.

Flips are taken from the answers themselves, so that as many can be shown as `report.examples` asks for, and are counted against the record.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.behaviour.probes import ORIGINAL
from pipeline.errors import StageInputError
from pipeline.reporting.examples import Piece, draw, visible_pieces
from pipeline.reporting.formats.behaviour import Behaviour, BehaviouralTest, BiasFile, Case, Flip, Perturbation, Swap
from pipeline.reporting.formats.gate import Check
from pipeline.reporting.formats.record import Estimate

if TYPE_CHECKING:
    import pandas as pd

ANSWER_COLUMNS = ("probe", "row_id", "side", "text", "prediction")
TEST_KINDS: Mapping[str, str] = {
    "minimum_functionality": "minimum functionality: each case has one right label",
    "invariance": "invariance: the label must not change",
    "directional": "directional: a probability must not move the wrong way",
}
KINDS: Mapping[str, str] = {"swaps": "counterfactual swap", "pairs": "ready-made pairs"}


@dataclass(frozen=True)
class Stretch:
    """Words in a row that a probe left alone, or (`changed`) did not."""

    pieces: list[Piece]
    changed: bool


@dataclass(frozen=True)
class TextPair:
    """A text and what became of it, with the answers to both."""

    before: list[Stretch]
    after: list[Stretch]
    answer_before: str
    answer_after: str


@dataclass(frozen=True)
class FlipList:
    """The flips of one probe: how often which label became which, and some of them with their texts."""

    title: str
    total: int
    counts: list[tuple[str, int]]
    pairs: list[TextPair]


@dataclass(frozen=True)
class RateRow:
    """A swap or file of pairs; `widest` is the label whose shift reaches farthest from 0, `note` what makes the rate say little."""

    name: str
    kind: str
    record: Swap
    checks: list[Check]
    widest: tuple[str, Estimate] | None
    note: str


@dataclass(frozen=True)
class TestView:
    """A behavioural test with some of its failing cases: texts with their right label, or text pairs."""

    name: str
    kind: str
    record: BehaviouralTest
    check: Check | None
    cases: list[tuple[list[Piece], str, str]]
    pairs: list[TextPair]


@dataclass(frozen=True)
class BehaviourView:
    """Everything that was asked; empty lists and None for what was not."""

    rates: list[RateRow]
    flips: list[FlipList]
    perturbations: list[tuple[str, Perturbation]]
    robust_flips: list[FlipList]
    robust_checks: Mapping[str, Check]
    tests: list[TestView]
    batch_check: Check | None
    bias: list[tuple[str, BiasFile, Check | None]]
    record: Behaviour

    @property
    def asked(self) -> bool:
        """Whether there was any probe."""
        record = self.record
        return bool(record.swaps or record.pairs or record.robustness or record.tests or record.batch_invariance or record.bias)


def behaviour_view(
    record: Behaviour, answers: "pd.DataFrame", checks: Sequence[Check], *, examples: int, seed: int, where: Path
) -> BehaviourView:
    """The record beside the gate's checks, with up to `examples` flips of each probe drawn by `seed` from `answers`.

    Raises StageInputError when the answers in the file `where` hold other numbers of flips than the record.
    """
    by_name = {check.name: check for check in checks}
    rates, flips = [], []
    for kind, probes in (("swaps", record.swaps), ("pairs", record.pairs)):
        for name, one in probes.items():
            rates.append(_rate(kind, name, one, by_name, record.minimum_rows))
            found = _flips(answers, f"{'swap' if kind == 'swaps' else kind}.{name}")
            _check_count(found, one, f"{kind} {name}", where)
            flips.append(_listed(name, found, examples, seed))
    perturbations = list(record.robustness.perturbations.items()) if record.robustness else []
    return BehaviourView(
        rates,
        [one for one in flips if one.total],
        perturbations,
        [one for name, _ in perturbations if (one := _listed(name, _flips(answers, f"robustness.{name}"), examples, seed)).total],
        {name: by_name[f"worst-case {name}"] for name in ("accuracy", "drop") if f"worst-case {name}" in by_name},
        [_test(name, test, by_name.get(f"failures of test {name}"), examples) for name, test in record.tests.items()],
        by_name.get("batch invariance"),
        [(name, file, by_name.get(f"amplified preference of {name}")) for name, file in record.bias.items()],
        record,
    )


def marked(before: str, after: str) -> tuple[list[Stretch], list[Stretch]]:
    """Both texts in stretches of words, those that differ marked."""
    first, second = (re.findall(r"\s+|\S+", text) for text in (before, after))
    sides: tuple[list[Stretch], list[Stretch]] = ([], [])
    for kind, start, end, other_start, other_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for side, words in zip(sides, (first[start:end], second[other_start:other_end]), strict=True):
            if words:
                side.append(Stretch(visible_pieces("".join(words)), kind != "equal"))
    return sides


def _rate(kind: str, name: str, record: Swap, checks: Mapping[str, Check], minimum: int) -> RateRow:
    called = f"of {'swap' if kind == 'swaps' else kind} {name}"
    judged = [checks[f"{what} {called}"] for what in ("flip rate", "shift") if f"{what} {called}" in checks]
    computed = [(label, shift) for label, shift in record.shift.items() if shift.low is not None and shift.high is not None]
    widest = max(computed, key=lambda pair: max(abs(pair[1].low or 0.0), abs(pair[1].high or 0.0)), default=None)
    return RateRow(name, KINDS[kind], record, judged, widest, _note(record.predicted, record.changed, minimum))


def _note(predicted: Mapping[str, int], rows: int, minimum: int) -> str:
    given = [label for label, count in predicted.items() if count]
    if rows and len(given) == 1:
        return f"every unchanged text is given {given[0]}, and an answer that looks at nothing never flips"
    return f"fewer than {minimum} rows" if rows < minimum else ""


def _flips(answers: "pd.DataFrame", probe: str) -> "pd.DataFrame":
    """The rows whose answer a probe changed, with the columns text, prediction, changed_text and changed_prediction."""
    rows = answers[answers["probe"] == probe]
    if probe.startswith("pairs."):
        before, after = rows[rows["side"] == "first"], rows[rows["side"] == "second"]
    else:
        before, after = answers[answers["probe"] == ORIGINAL], rows
    changed = after[["row_id", "text", "prediction"]].rename(columns={"text": "changed_text", "prediction": "changed_prediction"})
    both = before[["row_id", "text", "prediction"]].merge(changed, on="row_id")
    return both[both["prediction"] != both["changed_prediction"]]


def _check_count(found: "pd.DataFrame", record: Swap, what: str, where: Path) -> None:
    recorded = sum(record.flips.values())
    if len(found) != recorded:
        raise StageInputError(
            f"{where} holds {len(found)} flips of {what}, the behaviour record counts {recorded}. Run the stages probe and "
            "assess_behaviour again: `dvc repro`."
        )


def _listed(title: str, flips: "pd.DataFrame", examples: int, seed: int) -> FlipList:
    counts: dict[str, int] = {}
    rows: list[dict[Any, Any]] = flips.to_dict("records")
    for row in rows:
        way = f"{row['prediction']} → {row['changed_prediction']}"
        counts[way] = counts.get(way, 0) + 1
    shown: list[dict[Any, Any]] = draw(flips, examples, seed).to_dict("records") if rows else []
    pairs = [_pair(str(row["text"]), str(row["changed_text"]), str(row["prediction"]), str(row["changed_prediction"])) for row in shown]
    return FlipList(title, len(rows), sorted(counts.items(), key=lambda item: (-item[1], item[0])), pairs)


def _pair(text: str, changed_text: str, answer: str, changed_answer: str) -> TextPair:
    before, after = marked(text, changed_text)
    return TextPair(before, after, answer, changed_answer)


def _test(name: str, record: BehaviouralTest, check: Check | None, examples: int) -> TestView:
    shown = record.examples[:examples]
    cases = [(visible_pieces(case.text), case.label, case.prediction) for case in shown if isinstance(case, Case)]
    pairs = [_pair(flip.text, flip.changed_text, flip.prediction, flip.changed_prediction) for flip in shown if isinstance(flip, Flip)]
    return TestView(name, TEST_KINDS[record.kind], record, check, cases, pairs)
