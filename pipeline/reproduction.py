"""Whether a tuned prompt that was made again is the one that was recorded: one line per thing compared, and what follows from them.

A line is OK, DIFFERS (another machine or other libraries: bits may differ, so agreement is judged instead of equality) or FAILED (nothing
that comes after it would mean anything). A reproduction is EXACT only when every line of LINES is there and OK.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import pandas as pd

LINES = ("manifest", "code", "params", "data", "base model", "libraries", "hardware", "training", "tensor", "predictions")
EXACT, WITHIN_TOLERANCE, NOT_REPRODUCED = "EXACT", "WITHIN TOLERANCE", "NOT REPRODUCED"
MINIMUM_AGREEMENT = 0.95
MAXIMUM_SHOWN = 5

LineVerdict = Literal["OK", "DIFFERS", "FAILED"]

_OF_BASE_MODEL = ("weights_sha256", "tokenizer_sha256", "dtype", "attention")
_OF_STEP = ("loss", "gradient_norm", "learning_rate")


@dataclass(frozen=True)
class Line:
    """One thing compared: its name in LINES, what came of it, and one sentence with what was found and expected."""

    name: str
    verdict: LineVerdict
    sentence: str


def overall(lines: Sequence[Line]) -> str:
    """EXACT, WITHIN_TOLERANCE or NOT_REPRODUCED; the first two only when all LINES are there, in order, and none FAILED."""
    if tuple(line.name for line in lines) != LINES or any(line.verdict == "FAILED" for line in lines):
        return NOT_REPRODUCED
    return EXACT if all(line.verdict == "OK" for line in lines) else WITHIN_TOLERANCE


def failed_line(lines: Sequence[Line]) -> Line | None:
    """The line at which a reproduction failed."""
    return next((line for line in lines if line.verdict == "FAILED"), None)


def params_line(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> Line:
    """Compare the params that dvc.lock recorded (dotted section -> value) with the document of the params file."""
    differences = [text for name, value in recorded.items() for text in _differences(name, value, _at(present, name.split(".")))]
    if differences:
        return Line("params", "FAILED", f"params.yaml is not the one that was recorded: {_listed(differences)}.")
    return Line("params", "OK", f"{len(recorded)} sections of params.yaml are as recorded")


def base_model_line(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Line:
    """Compare the base model's weights and tokenizer, and what dtype and attention kernel it is loaded with here."""
    unequal = [name for name in _OF_BASE_MODEL if recorded[name] != found[name]]
    differences = [f"{name}: recorded {recorded[name]}, found {found[name]}" for name in unequal]
    if {"weights_sha256", "tokenizer_sha256"} & set(unequal):
        return Line("base model", "FAILED", f"{recorded['id']} is not the one that was tuned for: {_listed(differences)}.")
    if unequal:
        return Line("base model", "DIFFERS", f"{recorded['id']} is used differently on this machine: {_listed(differences)}.")
    return Line(
        "base model", "OK", f"{recorded['id']}: weights, tokenizer, {recorded['dtype']} and {recorded['attention']} attention are the same"
    )


def same_or_differs(name: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Line:
    """A line about the machine or its libraries: what is not equal makes bits differ, and is no failure."""
    keys = sorted({*recorded, *found})
    differences = [f"{key}: recorded {recorded.get(key)}, here {found.get(key)}" for key in keys if recorded.get(key) != found.get(key)]
    if differences:
        return Line(name, "DIFFERS", f"{_listed(differences)}. Other bits are expected, so agreement is judged.")
    return Line(name, "OK", ", ".join(f"{key} {value}" for key, value in recorded.items()))


def first_difference(recorded: Sequence[Mapping[str, Any]], repeated: Sequence[Mapping[str, Any]]) -> str | None:
    """Where two training logs part, as a sentence: the first step whose loss, gradient norm or tensors are not the same.

    None when they agree to the last digit. Values are compared as they are, so nothing is close enough.
    """
    before, after = (_log(records) for records in (recorded, repeated))
    for key in before:
        trial, step, what = key
        if key not in after:
            return f"trial {trial}, step {step}: recorded was its {what}, and the repeated training never came there"
        if not _same(before[key], after[key]):
            return f"trial {trial}, step {step}: {what} {after[key]}, recorded {before[key]}"
    extra = [key for key in after if key not in before]
    return f"trial {extra[0][0]}, step {extra[0][1]}: there was no such step in the recorded training" if extra else None


def largest_loss_difference(recorded: Sequence[Mapping[str, Any]], repeated: Sequence[Mapping[str, Any]]) -> float | None:
    """The largest difference of the losses of one step, in nats; None without a step in common."""
    before, after = (_log(records) for records in (recorded, repeated))
    steps = [key for key in before if key in after and key[2] == "loss"]
    return max((abs(float(before[key]) - float(after[key])) for key in steps), default=None)


def tensor_line(recorded: str, found: str, *, exact: bool, parted: str | None) -> Line:
    """Compare the sha256 of the trained tensors; `exact` where machine and libraries are the recorded ones."""
    if found == recorded and parted is None:
        return Line("tensor", "OK", f"sha256 {found} as recorded, and every step of the training log")
    where = f"The trainings part at {parted}." if parted else "The training logs agree in every step, so it was altered afterwards."
    verdict: LineVerdict = "FAILED" if exact else "DIFFERS"
    return Line("tensor", verdict, f"sha256 {found}, recorded {recorded}. {where}")


def predictions_line(recorded: "pd.DataFrame", found: "pd.DataFrame", *, exact: bool, minimum_agreement: float = MINIMUM_AGREEMENT) -> Line:
    """Compare the predictions of the test rows: equality where `exact`, else the share of rows with the same answer of the tuned prompt."""
    if recorded.equals(found):
        return Line("predictions", "OK", f"{len(found)} predictions of {found['row_id'].nunique()} test rows are the same to the last bit")
    both = _tuned(recorded).merge(_tuned(found), left_index=True, right_index=True, suffixes=(" recorded", " found"))
    complete = len(both) == len(_tuned(recorded)) == len(_tuned(found)) > 0
    agreement = float((both["prediction recorded"] == both["prediction found"]).mean()) if len(both) else 0.0
    text = f"{agreement:.1%} of {len(both)} test rows get the same answer from the tuned prompt"
    if not complete:
        return Line(
            "predictions",
            "FAILED",
            f"The test rows are not the same: recorded {len(_tuned(recorded))}, found {len(_tuned(found))}, shared {len(both)}.",
        )
    if exact:
        return Line("predictions", "FAILED", f"{text}, and on this machine all predictions had to be the same to the last bit.")
    verdict: LineVerdict = "DIFFERS" if agreement >= minimum_agreement else "FAILED"
    return Line("predictions", verdict, f"{text} (at least {minimum_agreement:.0%} is asked for).")


def _tuned(predictions: "pd.DataFrame") -> "pd.DataFrame":
    return predictions[predictions["variant"] == "tuned"].set_index("row_id")[["prediction"]]


def _log(records: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int, str], Any]:
    """(trial, step, what) -> value of everything that a repeated training must show again, in the order it was logged."""
    found: dict[tuple[int, int, str], Any] = {}
    for record in records:
        names = _OF_STEP if record.get("event") == "step" else ("values_sha256",) if record.get("event") == "evaluation" else ()
        for name in names:
            if name in record:
                found[int(record["trial"]), int(record["step"]), name] = record[name]
    return found


def _same(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both_nan or one == other


def _at(document: Mapping[str, Any], keys: Sequence[str]) -> Any:
    node: Any = document
    for key in keys:
        node = cast(Mapping[str, Any], node).get(key) if isinstance(node, Mapping) else None
    return node


def _differences(path: str, recorded: Any, present: Any) -> Iterator[str]:
    if isinstance(recorded, Mapping) and isinstance(present, Mapping):
        one, other = cast(Mapping[str, Any], recorded), cast(Mapping[str, Any], present)
        for key in sorted({*one, *other}, key=str):
            yield from _differences(f"{path}.{key}", one.get(key), other.get(key))
    elif recorded != present:
        yield f"{path}: recorded {recorded!r}, found {present!r}"


def _listed(differences: Sequence[str]) -> str:
    more = len(differences) - MAXIMUM_SHOWN
    return "; ".join(differences[:MAXIMUM_SHOWN]) + (f"; and {more} more" if more > 0 else "")
