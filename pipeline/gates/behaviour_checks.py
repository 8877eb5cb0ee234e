"""Checks of the behaviour record: flips under counterfactual swaps and pairs, robustness, behavioural tests, batch invariance, amplified bias.

Every rate is judged by the far end of its interval. A prompt that gives all rows one label flips none and is DEGENERATE, not invariant.
"""

from collections.abc import Iterator
from functools import partial

from pipeline.evaluation.intervals import wilson
from pipeline.gates.checks import Check, Figure, Finding, NoFigure, Planned, against_maximum, against_minimum, judged, with_more_rows
from pipeline.gates.estimates import Record, at, count_in, figure_in, number_in
from pipeline.params import BehaviourThresholds

WILSON = "Wilson score interval"
BOOTSTRAP = "percentile bootstrap over rows"
RATE = "PASS when high <= limit; FAIL when low > limit; INSUFFICIENT below the minimum rows; DEGENERATE when every answer is the same"
RECORD = "the behaviour record"


def behaviour_checks(limits: BehaviourThresholds, behaviour: Record) -> list[Check]:
    """Every check of `gate.behaviour` on the behaviour record, in the order of the params."""
    return judged(_planned(limits, behaviour))


def _planned(limits: BehaviourThresholds, behaviour: Record) -> Iterator[Planned]:
    for kind, called, thresholds in (("swaps", "swap", limits.swaps), ("pairs", "pairs", limits.pairs)):
        for name, limit in thresholds.items():
            path = (kind, name)
            rate = partial(_judge_rate, behaviour, (*path, "flip_rate"), limit.maximum_flip_rate, f"The flip rate of the {called} {name}")
            yield Planned(f"flip rate of {called} {name}", RATE, limit.maximum_flip_rate, rate, "rows that the swap changed", WILSON)
            if limit.maximum_shift is not None:
                shift = partial(_judge_shift, behaviour, path, limit.maximum_shift, f"the {called} {name}")
                rule = "PASS when every label's interval is within -limit and limit; FAIL when one is outside; else INCONCLUSIVE"
                yield Planned(f"shift of {called} {name}", rule, limit.maximum_shift, shift, "rows with words of one side alone", BOOTSTRAP)
    yield from _robustness(limits, behaviour)
    for name, maximum in limits.tests.items():
        judge = partial(_judge_rate, behaviour, ("tests", name, "failure_rate"), maximum, f"The failure rate of test {name}")
        yield Planned(f"failures of test {name}", RATE, maximum, judge, "cases of the test", WILSON)
    if limits.batch_difference is not None:
        rule = "PASS when the largest difference of a probability is <= limit and no label differs"
        judge = partial(_judge_batch, behaviour, limits.batch_difference)
        yield Planned("batch invariance", rule, limits.batch_difference, judge, "rows asked alone and in a batch")
    for name, maximum in limits.bias_increase.items():
        rule = "PASS when high <= limit; FAIL when low > limit; INSUFFICIENT below the minimum rows"
        judge = partial(_judge_bias, behaviour, name, maximum)
        yield Planned(
            f"amplified preference of {name}", rule, maximum, judge, "pairs of texts", "Newcombe's interval for paired proportions"
        )


def _robustness(limits: BehaviourThresholds, behaviour: Record) -> Iterator[Planned]:
    if limits.worst_case_accuracy is not None:
        judge = partial(_judge_worst_case, behaviour, limits.worst_case_accuracy)
        rule = (
            "PASS when low >= limit; FAIL when high < limit; INSUFFICIENT below the minimum rows; DEGENERATE when every answer is the same"
        )
        yield Planned("worst-case accuracy", rule, limits.worst_case_accuracy, judge, "test rows asked in every form", WILSON)
    if limits.worst_case_drop is not None:
        what = "The share of rows that are right as they are and wrong in some form"
        judge = partial(_judge_rate, behaviour, ("robustness", "worst_case_drop"), limits.worst_case_drop, what)
        yield Planned("worst-case drop", RATE, limits.worst_case_drop, judge, "test rows asked in every form", WILSON)


def _judge_rate(behaviour: Record, path: tuple[str, ...], maximum: float, what: str) -> Finding:
    kind = at(behaviour, (*path[:-1], "kind"), RECORD) if path[0] == "tests" else None
    if path[0] == "tests" and kind not in ("minimum_functionality", "invariance", "directional"):
        raise NoFigure("ERROR", f"The kind of {' '.join(path[:-1])} is {kind!r}.")
    if kind == "minimum_functionality":
        # Somebody chose the cases, and one answer may be right for all of them: the interval alone says whether they are enough.
        figure = _rate(behaviour, path, what, minimum=1)
    else:
        figure = _rate(behaviour, path, what)
        _refuse_constant_answers(behaviour, path[:-1])
    return _decided_by(against_maximum(figure, maximum, what), figure, maximum, rising=True)


def _judge_worst_case(behaviour: Record, minimum: float) -> Finding:
    what = "The accuracy in the worst case of each row"
    figure = _rate(behaviour, ("robustness", "worst_case_accuracy"), what)
    _refuse_constant_answers(behaviour, ("robustness",))
    return _decided_by(against_minimum(figure, minimum, what), figure, minimum, rising=False)


def _judge_shift(behaviour: Record, path: tuple[str, ...], maximum: float, called: str) -> Finding:
    labels: list[str] = at(behaviour, ("labels",), RECORD)
    found = [(label, _rate(behaviour, (*path, "shift", label), f"The shift of {label}", lowest=-1.0)) for label in labels]
    if not found:
        raise NoFigure("ERROR", "The behaviour record names no labels.")
    _refuse_constant_answers(behaviour, path)
    label, widest = max(found, key=lambda pair: max(abs(pair[1].low), abs(pair[1].high)))
    said = f"The largest shift of {called}, of label {label}, is {widest}"
    if all(-maximum <= figure.low and figure.high <= maximum for _, figure in found):
        return Finding("PASS", f"{said}: every label's interval is within {maximum:.3f} of 0.", widest)
    outside = [(name, figure) for name, figure in found if figure.low > maximum or figure.high < -maximum]
    if outside:
        name, figure = outside[0]
        return Finding("FAIL", f"The shift of {called}, of label {name}, is {figure}: its interval is outside {maximum:.3f} of 0.", figure)
    return Finding("INCONCLUSIVE", f"{said}: an interval reaches beyond {maximum:.3f} of 0, so these rows cannot decide.", widest)


def _judge_batch(behaviour: Record, maximum: float) -> Finding:
    record = at(behaviour, ("batch_invariance",), RECORD)
    rows = count_in(at(record, ("rows",), "batch invariance"), "the rows asked alone")
    flips = count_in(at(record, ("flips",), "batch invariance"), "the labels that differ")
    if rows == 0:
        raise NoFigure("MISSING", "No row was asked alone.", 0)
    value = number_in(at(record, ("largest_difference",), "batch invariance"), "the largest difference", None, rows)
    if not 0 <= value <= 1:
        raise NoFigure("ERROR", f"The largest difference of a probability is {value}, expected one within 0 and 1.", rows)
    differ = f"{flips} of {rows} rows get another label" if flips else f"each of {rows} rows gets the same label"
    said = f"Asked alone and in a batch, {differ}, and a probability differs by at most {value:.2g}"
    if value > maximum or flips:
        return Finding("FAIL", f"{said}: the limit is {maximum:.2g} and no label.", value=value, n=rows)
    return Finding("PASS", f"{said}: within the limit of {maximum:.2g}.", value=value, n=rows)


def _judge_bias(behaviour: Record, name: str, maximum: float) -> Finding:
    record = at(behaviour, ("bias", name), RECORD)
    if record.get("skipped"):
        raise NoFigure("MISSING", f"The preference in {name} was not measured: {record['skipped']}.")
    what = f"The share of {name} where the stereotype is likelier, with the tuned prompt minus without,"
    figure = _rate(behaviour, ("bias", name, "change"), what, lowest=-1.0)
    return against_maximum(figure, maximum, what)


def _rate(behaviour: Record, path: tuple[str, ...], what: str, *, lowest: float = 0.0, minimum: int | None = None) -> Figure:
    """A figure of the record; INSUFFICIENT where it rests on fewer rows than `minimum`, by default the record's own."""
    found = at(behaviour, path, RECORD)
    n = count_in(at(found, ("n",), what), f"n of {what}")
    enough = count_in(at(behaviour, ("minimum_rows",), RECORD), "the minimum rows") if minimum is None else minimum
    if n < enough:
        raise NoFigure("INSUFFICIENT", f"{what} rests on {n} rows, fewer than the minimum of {enough}.", n, more_rows=enough - n)
    return figure_in(found, behaviour, what, lowest=lowest)


def _refuse_constant_answers(behaviour: Record, path: tuple[str, ...]) -> None:
    predicted = at(behaviour, (*path, "predicted"), RECORD)
    counts = {label: count_in(at(predicted, (label,), RECORD), f"answers {label}") for label in at(behaviour, ("labels",), RECORD)}
    given = [label for label, count in counts.items() if count]
    if len(given) < 2:
        said = f"the label {given[0]}" if given else "no label"
        raise NoFigure("DEGENERATE", f"Every unchanged text is given {said}: an answer that looks at nothing never changes.")


def _decided_by(finding: Finding, figure: Figure, limit: float, *, rising: bool) -> Finding:
    """The finding with the rows that would decide it; `rising`: a rate above the limit is too high."""

    def decided(times: float) -> bool:
        low, high = wilson(figure.value * figure.n * times, figure.n * times, figure.confidence_level)
        return high <= limit or low > limit if rising else low >= limit or high < limit

    return with_more_rows(finding, decided, figure.n, "rows")
