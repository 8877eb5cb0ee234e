"""The texts that a tuned prompt is asked: test rows as they are, changed ones, pairs and cases. No model is involved here.

A probe is named `<kind>.<name>`: `swap.pronouns`, `robustness.typos`, `test.<name>`, `pairs.<name>`; `original` are the rows that others are
compared with, `alone` those that are scored again in a batch of one.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from pipeline.behaviour.pair_files import TextPair
from pipeline.behaviour.perturbations import perturbed
from pipeline.behaviour.swaps import Swap, Swapped, built_in_swap, lexicon_swap
from pipeline.params import BUILT_IN_SWAPS, BehaviourParams, Edit, MinimumFunctionalityTest

ORIGINAL, ALONE = "original", "alone"

Fields = Mapping[str, str]


@dataclass(frozen=True)
class HeldOutRow:
    """A row of the test split (held out from training): its id, fields and label."""

    row_id: str
    fields: Fields
    label: str


@dataclass(frozen=True)
class Probe:
    """One text to be asked; `side` tells apart what is compared (a swap's direction, first or second of a pair), `label` is the right one."""

    probe: str
    row_id: str
    side: str
    fields: Fields
    label: str | None


@dataclass(frozen=True)
class Plan:
    """Every text to be asked, each row's original once, and how many test rows each probe of rows looked through."""

    probes: list[Probe]
    searched: Mapping[str, int]


def plan_probes(
    params: BehaviourParams, rows: Sequence[HeldOutRow], pairs: Mapping[str, Sequence[TextPair]], fields: Sequence[str]
) -> Plan:
    """The probes of one task. `rows` in the order of their ids; `fields` are the task's, of which `params.field` gets pairs and cases."""
    changed: list[Probe] = []
    searched: dict[str, int] = {}
    for name, change in _changes(params, fields):
        found, searched[name] = _changed(name, change, rows, params.rows)
        changed += found
    alone = [Probe(ALONE, row.row_id, "alone", row.fields, row.label) for row in rows[: params.batch_invariance_rows]]
    robust = {row.row_id for row in rows[: params.rows]} if params.perturbations else set[str]()
    wanted = robust | {probe.row_id for probe in (*changed, *alone)}
    originals = [Probe(ORIGINAL, row.row_id, "original", row.fields, row.label) for row in rows if row.row_id in wanted]
    return Plan([*originals, *changed, *alone, *_cases(params, fields), *_pairs(params, pairs, fields)], searched)


def swap_named(name: str, params: BehaviourParams) -> Swap:
    """A built-in swap or one of the task's lexicons."""
    if name in BUILT_IN_SWAPS:
        return built_in_swap(name)
    lexicon = params.lexicons[name]
    return lexicon_swap(name, (lexicon.sides[0], lexicon.sides[1]), lexicon.pairs)


def edited(edit: Edit, text: str) -> str:
    """The text after an edit of a test."""
    replaced = re.sub(edit.pattern, edit.by, text) if edit.pattern else text
    return f"{edit.prepend}{replaced}{edit.append}"


# What a change makes of a row: the new fields and the side, or None where it changes nothing.
Change = Callable[[HeldOutRow], tuple[Fields, str] | None]


def _changes(params: BehaviourParams, fields: Sequence[str]) -> Iterator[tuple[str, Change]]:
    for name in params.swaps:
        yield f"swap.{name}", _swap_change(swap_named(name, params))
    for kind in params.perturbations:
        yield (
            f"robustness.{kind}",
            lambda row, kind=kind: _if_changed(
                row, {field: perturbed(kind, text, row_id=f"{row.row_id} {field}", seed=params.seed) for field, text in row.fields.items()}
            ),
        )
    target = _target(params, fields)
    for test in params.tests:
        if not isinstance(test, MinimumFunctionalityTest):
            yield (
                f"test.{test.name}",
                lambda row, edit=test.edit: _if_changed(row, {**row.fields, target: edited(edit, row.fields[target])}),
            )


def _swap_change(swap: Swap) -> Change:
    def change(row: HeldOutRow) -> tuple[Fields, str] | None:
        swapped: dict[str, Swapped | None] = {field: swap.apply(text) for field, text in row.fields.items()}
        found = {one.direction for one in swapped.values() if one is not None}
        if not found:
            return None
        texts = {field: row.fields[field] if one is None else one.text for field, one in swapped.items()}
        return texts, found.pop() if len(found) == 1 else "mixed"

    return change


def _if_changed(row: HeldOutRow, fields: Fields) -> tuple[Fields, str] | None:
    return None if fields == row.fields else (fields, "changed")


def _changed(name: str, change: Change, rows: Sequence[HeldOutRow], at_most: int) -> tuple[list[Probe], int]:
    """The first rows that `change` changes, and how many rows were looked at for them.

    A perturbation is asked of the same rows as all others, changed or not, since its worst case is taken over them.
    """
    looked_at = rows[:at_most] if name.startswith("robustness.") else rows
    found: list[Probe] = []
    for count, row in enumerate(looked_at, 1):
        made = change(row)
        if made is not None:
            found.append(Probe(name, row.row_id, made[1], made[0], row.label))
        if len(found) == at_most:
            return found, count
    return found, len(looked_at)


def _cases(params: BehaviourParams, fields: Sequence[str]) -> Iterator[Probe]:
    for test in params.tests:
        if isinstance(test, MinimumFunctionalityTest):
            cases = [(case.text, case.label) for case in test.cases]
            if test.template is not None:
                fillings = (dict(zip(test.values, values, strict=True)) for values in product(*test.values.values()))
                cases += [(test.template.format(**filling), str(test.label)) for filling in fillings]
            for number, (text, label) in enumerate(cases, 1):
                yield Probe(f"test.{test.name}", f"case {number}", "case", _with_context(params, fields, text), label)


def _pairs(params: BehaviourParams, pairs: Mapping[str, Sequence[TextPair]], fields: Sequence[str]) -> Iterator[Probe]:
    for name, found in pairs.items():
        for pair in found:
            for side, text in (("first", pair.first), ("second", pair.second)):
                whole = f"{pair.context} {text}".strip()
                yield Probe(f"pairs.{name}", f"pair {pair.number}", side, _with_context(params, fields, whole), None)


def _with_context(params: BehaviourParams, fields: Sequence[str], text: str) -> Fields:
    target = _target(params, fields)
    return {field: text if field == target else params.context[field] for field in fields}


def _target(params: BehaviourParams, fields: Sequence[str]) -> str:
    return params.field or fields[0]
