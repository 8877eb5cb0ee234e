"""The difference between what is wanted on a Prefect server and what is there, and that difference as text."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flows.deployments import KINDS, Item

Action = Literal["create", "update", "remove", "keep", "leave"]

SIGNS: Mapping[Action, str] = {"create": "+", "update": "~", "remove": "-", "keep": "=", "leave": "!"}
LONGEST_VALUE = 160
MARKS = ("description", "tags")  # by which a project knows its own: what others made has other ones
HIDDEN = ("data",)  # the content of a block holds secrets


@dataclass(frozen=True)
class Found:
    """An object on the server, and whether this project made it: one that it did not is never changed or removed."""

    item: Item
    ours: bool


@dataclass(frozen=True)
class Change:
    """What is to be done with one object, and the fields that differ: name -> (on the server, wanted)."""

    action: Action
    item: Item
    differences: Mapping[str, tuple[Any, Any]]


def plan(wanted: Sequence[Item], found: Sequence[Found]) -> list[Change]:
    """One change for each object that is wanted or was made by this project, in the order in which they can be carried out.

    Removals come last and in reverse, so that nothing is taken away under something that refers to it. `leave`: somebody else made an object of
    this name that differs from what is wanted.
    """
    known = {(one.item.kind, one.item.name): one for one in found}
    names = {(item.kind, item.name) for item in wanted}
    changes = [_change(item, known.get((item.kind, item.name))) for item in sorted(wanted, key=lambda item: KINDS.index(item.kind))]
    stale = [one.item for key, one in known.items() if one.ours and key not in names]
    return changes + [Change("remove", item, {}) for item in sorted(stale, key=lambda item: -KINDS.index(item.kind))]


def _change(item: Item, there: Found | None) -> Change:
    if there is None:
        return Change("create", item, {})
    asked = item.fields if there.ours else {name: value for name, value in item.fields.items() if name not in MARKS}
    differences = {
        name: (there.item.fields.get(name), value) for name, value in asked.items() if not _same(there.item.fields.get(name), value)
    }
    if not differences:
        return Change("keep", item, {})
    return Change("update" if there.ours else "leave", item, differences)


def _same(left: Any, right: Any) -> bool:
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def described(changes: Sequence[Change], *, every: bool = False) -> list[str]:
    """The changes as lines of text: with `every`, the objects that stay as they are too."""
    lines: list[str] = []
    for change in changes:
        if change.action == "keep" and not every:
            continue
        note = " (not made by promptmill for this project: left as it is)" if change.action == "leave" else ""
        lines.append(f"{SIGNS[change.action]} {change.item.kind} {change.item.name}{note}")
        shown: Mapping[str, tuple[Any, Any]] = change.differences
        if change.action == "create":
            lines += [f"    {name}: {_value(name, value)}" for name, value in change.item.fields.items()]
        for name, (before, after) in shown.items():
            lines.append(f"    {name}: {_value(name, before)} -> {_value(name, after)}" if name not in HIDDEN else f"    {name}: changed")
    return lines


def counted(changes: Sequence[Change], *, dry_run: bool) -> str:
    """One sentence on how much is, or would be, done."""
    verbs: dict[Action, str] = {
        "create": "created",
        "update": "updated",
        "remove": "removed",
        "keep": "unchanged",
        "leave": "left alone",
    }
    counts = {action: sum(change.action == action for change in changes) for action in SIGNS}
    if not changed(changes):
        rest = f" ({counts['leave']} of other makers left alone)" if counts["leave"] else ""
        return f"No change: all {counts['keep']} objects are as params.yaml says{rest}."
    said = ", ".join(f"{counts[action]} {verb}" for action, verb in verbs.items() if counts[action])
    return f"Would be done: {said}. Nothing was changed." if dry_run else f"Done: {said}."


def changed(changes: Collection[Change]) -> bool:
    """Whether there is anything to do."""
    return any(change.action in ("create", "update", "remove") for change in changes)


def _value(name: str, value: Any) -> str:
    if name in HIDDEN:
        return "(hidden)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
