"""Drift: how far the present training data lies from the data of another version, and whether that is chance.

Every check compares two profiles (`pipeline.data.profiles`) and fails when the difference is both *real*, that is beyond what
sampling explains at the stated significance, and *large*, that is above its limit. With many rows the smallest difference is real,
with few rows chance makes large ones; neither alone is a reason to act. So when nothing has changed, a check fails with at
most the probability `significance`, whatever the number of rows.

PASS            the difference is within its limit, or chance explains it
FAIL            the difference is real and above the limit
INSUFFICIENT    fewer rows than `minimum_rows` on one side
NOT APPLICABLE  there is nothing to compare with, or the two sides are not comparable

Labels: Jensen-Shannon distance (Lin 1991, base 2, 0 to 1) and Pearson's chi-square test. Lengths: two-sample Kolmogorov-Smirnov. Words: the
share of words that the reference does not know, above the share that is expected for texts like its own. Groups: the largest
difference in a group's share. Domain: the area under the ROC curve, 0.5 to 1, of a classifier that is asked which side a text is from.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.data.profiles import GroupCounts, Profile, Words
from pipeline.evaluation.intervals import newcombe

if TYPE_CHECKING:
    from pipeline.params import DriftParams

Verdict = Literal["PASS", "FAIL", "INSUFFICIENT", "NOT APPLICABLE"]
Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

JENSEN_SHANNON = "Jensen-Shannon distance, base 2; Pearson's chi-square test"
KOLMOGOROV_SMIRNOV = "two-sample Kolmogorov-Smirnov statistic and test, on characters"
UNKNOWN_WORDS = "share of unknown words, once per row, minus the share expected by leaving each reference row out; no test"
SHARES = "largest difference in a group's share, Newcombe interval; chi-square tests with Bonferroni's correction"
DOMAIN = "AUC of a logistic regression on mean token embeddings, two-fold cross-validation; DeLong's error"

# Strong, because a point has hundreds of coordinates and a side a few thousand rows.
REGULARISATION = 0.001
FOLDS = 2
# A word of a few rows is known by chance: of ten thousand tweets one or two hold nearly every word of a privacy policy.
KNOWN_ROWS = 5


class DriftCheck(TypedDict):
    """One check as it stands in the drift report; figures are null where there is none."""

    name: str
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n_current: int
    n_reference: int | None
    limit: float
    method: str
    sentence: str


@dataclass(frozen=True)
class _Difference:
    """A difference that was found; `real` says whether it is beyond chance, `what` is the beginning of its sentence."""

    value: float
    real: bool
    what: str
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class _Planned:
    """A check before it is judged: rows on both sides, and the function that finds the difference."""

    name: str
    method: str
    limit: float
    n_current: int
    n_reference: int | None
    find: Callable[[], _Difference]
    obstacle: str | None = None


def drift_report(current: Profile, reference: Profile | None, *, against: Mapping[str, Any], limits: "DriftParams") -> dict[str, Any]:
    """The drift record: what was compared with what, every check, and the verdict that follows from them.

    `against` says which version was asked for and which one's profile the reference is, or why there is none.
    """
    checks = compare(current, reference, limits=limits, reason=str(against.get("reason") or ""))
    return {
        "against": {name: against.get(name) for name in ("asked", "version", "reason")},
        "rows": {"current": current.rows, "reference": reference.rows if reference else None},
        "on_drift": limits.on_drift,
        "significance": limits.significance,
        "minimum_rows": limits.minimum_rows,
        "verdict": overall(checks),
        "checks": checks,
    }


def compare(current: Profile, reference: Profile | None, *, limits: "DriftParams", reason: str = "") -> list[DriftCheck]:
    """Every check of `current` against `reference`; `reason` says why there is no reference."""
    return [_judged(planned, limits) for planned in _planned_checks(current, reference, limits, reason)]


def overall(checks: Sequence[DriftCheck]) -> Verdict:
    """FAIL when a check fails, else INSUFFICIENT when one has too few rows, else PASS when one passes."""
    found = {check["verdict"] for check in checks}
    order: tuple[Verdict, ...] = ("FAIL", "INSUFFICIENT", "PASS", "NOT APPLICABLE")
    return next(verdict for verdict in order if verdict in found)


def _planned_checks(current: Profile, reference: Profile | None, limits: "DriftParams", reason: str) -> list[_Planned]:
    planned = [
        _labels(current, reference, limits),
        _lengths("length", current.lengths, reference.lengths if reference else None, limits),
        _vocabulary(current.words, reference.words if reference else None, current, reference, limits),
        *(_groups(name, current, reference, limits) for name in _attributes(current, reference)),
        _domain(current, reference, limits),
    ]
    if current.target_lengths is not None:
        planned.insert(2, _lengths("target length", current.target_lengths, reference.target_lengths if reference else None, limits))
    if reference is None:
        return [_without_reference(check, reason) for check in planned]
    return planned


def _without_reference(check: _Planned, reason: str) -> _Planned:
    return _Planned(check.name, check.method, check.limit, check.n_current, None, check.find, reason or "there is no reference")


def _judged(planned: _Planned, limits: "DriftParams") -> DriftCheck:
    difference: _Difference | None = None
    fewest = min(planned.n_current, planned.n_reference or 0)
    if planned.obstacle is not None:
        verdict, sentence = "NOT APPLICABLE", f"Nothing was compared: {planned.obstacle}."
    elif fewest < limits.minimum_rows:
        verdict = "INSUFFICIENT"
        sentence = f"{planned.n_current} rows against {planned.n_reference}: both sides need {limits.minimum_rows}."
    else:
        difference = planned.find()
        verdict, sentence = _verdict(difference, planned.limit)
    return DriftCheck(
        name=planned.name,
        verdict=verdict,
        value=difference.value if difference else None,
        low=difference.low if difference else None,
        high=difference.high if difference else None,
        p_value=difference.p_value if difference else None,
        n_current=planned.n_current,
        n_reference=planned.n_reference,
        limit=planned.limit,
        method=planned.method,
        sentence=sentence,
    )


def _verdict(difference: _Difference, limit: float) -> tuple[Verdict, str]:
    if difference.value <= limit:
        return "PASS", f"{difference.what}, within the limit of {limit:g}."
    if not difference.real:
        return "PASS", f"{difference.what}, above the limit of {limit:g}, but chance explains it."
    return "FAIL", f"{difference.what}, above the limit of {limit:g}."


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels(current: Profile, reference: Profile | None, limits: "DriftParams") -> _Planned:
    now, then = current.labels, reference.labels if reference else None
    obstacle = None
    if now is None or (reference is not None and then is None):
        obstacle = f"{'these rows have' if now is None else 'the reference has'} no labels"
    return _Planned(
        name="labels",
        method=JENSEN_SHANNON,
        limit=limits.maximum_label_distance,
        n_current=sum((now or {}).values()),
        n_reference=sum(then.values()) if then is not None else None,
        find=lambda: _label_difference(now or {}, then or {}, limits.significance),
        obstacle=obstacle,
    )


def _label_difference(now: Mapping[str, int], then: Mapping[str, int], significance: float) -> _Difference:
    from scipy.spatial.distance import jensenshannon

    names = sorted({*now, *then})
    counts = np.array([[side.get(name, 0) for name in names] for side in (now, then)], dtype=np.int64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    distance = float(jensenshannon(shares[0], shares[1], base=2))
    p_value = _chi_square(counts)
    most = names[int(np.abs(shares[0] - shares[1]).argmax())]
    here, there = (float(side[names.index(most)]) for side in shares)
    what = f"The label shares are {distance:.3f} apart (p {p_value:.2g}); the largest change: {most}, {there:.1%} before, {here:.1%} now"
    return _Difference(distance, p_value < significance, what, p_value=p_value)


def _chi_square(counts: Integers) -> float:
    """The p-value of Pearson's test on a table [2, K], without columns that are 0 on both sides."""
    from scipy.stats import chi2_contingency

    table = counts[:, counts.sum(axis=0) > 0]
    found: Any = chi2_contingency(table, correction=False) if table.shape[1] > 1 else None
    return float(found.pvalue) if found else 1.0


# --- lengths ----------------------------------------------------------------------------------------------------------


def _lengths(name: str, now: Integers, then: Integers | None, limits: "DriftParams") -> _Planned:
    return _Planned(
        name=name,
        method=KOLMOGOROV_SMIRNOV,
        limit=limits.maximum_length_distance,
        n_current=len(now),
        n_reference=None if then is None else len(then),
        find=lambda: _length_difference(now, then if then is not None else now, limits.significance),
        obstacle="the reference has no free-text targets" if then is None else None,
    )


def _length_difference(now: Integers, then: Integers, significance: float) -> _Difference:
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        # Where the exact distribution cannot be computed scipy says so and takes the asymptotic one, as we would.
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Any = ks_2samp(now, then)
    distance, p_value = float(found.statistic), float(found.pvalue)
    what = (
        f"The length distributions are {distance:.3f} apart (p {p_value:.2g}); "
        f"median {np.median(then):g} characters before, {np.median(now):g} now"
    )
    return _Difference(distance, p_value < significance, what, p_value=p_value)


# --- vocabulary -------------------------------------------------------------------------------------------------------


def _vocabulary(now: Words, then: Words | None, current: Profile, reference: Profile | None, limits: "DriftParams") -> _Planned:
    return _Planned(
        name="vocabulary",
        method=UNKNOWN_WORDS,
        limit=limits.maximum_unknown_words,
        n_current=len(current.lengths),
        n_reference=len(reference.lengths) if reference else None,
        find=lambda: _word_difference(now, then or now),
    )


def _word_difference(now: Words, then: Words) -> _Difference:
    found, expected = unknown_share(now, then), expected_unknown_share(then)
    more = f"{abs(found - expected):.3f} {'more' if found > expected else 'less'}"
    what = f"{found:.1%} of the words are not known from the reference, {more} than the {expected:.1%} expected of texts like its own"
    return _Difference(found - expected, True, what)


def unknown_share(now: Words, then: Words) -> float:
    """The share of (row, word) pairs of `now` whose word is in fewer than KNOWN_ROWS sampled rows of `then`, in [0, 1]."""
    known = int(now.rows[np.isin(now.hashes, then.hashes[then.rows >= KNOWN_ROWS])].sum())
    return 1.0 - known / now.occurrences if now.occurrences else 0.0


def expected_unknown_share(words: Words) -> float:
    """The `unknown_share` of one more row from the same source: each row is left out once, as in Good's (1953) estimate.

    A word that is in KNOWN_ROWS rows is unknown once one of them is left out.
    """
    known = int(words.rows[words.rows > KNOWN_ROWS].sum())
    return 1.0 - known / words.occurrences if words.occurrences else 0.0


# --- groups -----------------------------------------------------------------------------------------------------------


def _attributes(current: Profile, reference: Profile | None) -> list[str]:
    return list(dict.fromkeys([*current.groups, *(reference.groups if reference else ())]))


def _groups(name: str, current: Profile, reference: Profile | None, limits: "DriftParams") -> _Planned:
    now, then = current.groups.get(name), reference.groups.get(name) if reference else None
    obstacle = None
    if now is None or then is None:
        obstacle = f"{'the reference' if then is None else 'the present data'} has no groups by {name}"
    elif now.definition != then.definition:
        obstacle = f"the groups by {name} were defined otherwise for the reference"
    return _Planned(
        name=f"groups by {name}",
        method=SHARES,
        limit=limits.maximum_group_difference,
        n_current=current.rows,
        n_reference=reference.rows if reference else None,
        find=lambda: _group_difference(_both(now, current.rows), _both(then, reference.rows if reference else 0), limits.significance),
        obstacle=obstacle,
    )


def _both(counts: GroupCounts | None, rows: int) -> tuple[Mapping[str, int], int]:
    return (counts.rows if counts else {}), rows


def _group_difference(now: tuple[Mapping[str, int], int], then: tuple[Mapping[str, int], int], significance: float) -> _Difference:
    """The group whose share differs most among those that differ really, or among all when none does."""
    names = sorted({*now[0], *then[0]})
    if not names:
        return _Difference(0.0, False, "No row of either side is in a group")
    found = [_share_difference(name, now, then, significance / len(names), len(names)) for name in names]
    return max(found, key=lambda difference: (difference.real, difference.value))


def _share_difference(
    name: str, now: tuple[Mapping[str, int], int], then: tuple[Mapping[str, int], int], significance: float, groups: int
) -> _Difference:
    sides = [(counts.get(name, 0), rows) for counts, rows in (now, then)]
    here, there = (members / rows for members, rows in sides)
    low, high = newcombe(sides[0], sides[1], 1 - significance)
    low, high = (low, high) if here >= there else (-high, -low)
    p_value = _chi_square(np.array([[members, rows - members] for members, rows in sides], dtype=np.int64))
    what = f"The share of {name} changed by {abs(here - there):.3f}, from {there:.1%} to {here:.1%}"
    return _Difference(abs(here - there), p_value < significance, what, low, high, min(1.0, p_value * groups))


# --- domain classifier ------------------------------------------------------------------------------------------------


def _domain(current: Profile, reference: Profile | None, limits: "DriftParams") -> _Planned:
    same = reference is None or dict(current.base_model) == dict(reference.base_model)
    return _Planned(
        name="domain",
        method=DOMAIN,
        limit=limits.maximum_domain_auc,
        n_current=len(current.points),
        n_reference=len(reference.points) if reference else None,
        find=lambda: _domain_difference(current.points, reference.points if reference else current.points, limits),
        obstacle=None if same else "the reference was embedded by another base model or tokenizer",
    )


def _domain_difference(now: Floats, then: Floats, limits: "DriftParams") -> _Difference:
    from scipy.stats import norm

    value, error = domain_auc(now, then, seed=limits.seed)
    reach = float(norm.ppf(1 - limits.significance / 2)) * error
    low, high = max(0.0, value - reach), min(1.0, value + reach)
    what = f"A classifier tells the two sides apart with an AUC of {value:.3f} ({100 * (1 - limits.significance):g} % interval {low:.3f} to {high:.3f})"
    return _Difference(value, low > 0.5, what, low, high)


def domain_auc(now: Floats, then: Floats, *, seed: int) -> tuple[float, float]:
    """The mean AUC over two-fold cross-validation of telling `now` [N, H] from `then` [M, H], and a bound on its standard error.

    Equal points share a fold: a text that is on both sides would else be learnt as one side's and tested as the other's. Each fold's error
    is DeLong's. The two AUCs depend on each other, since each half is learnt where the other is tested, so the error of their
    mean is taken as the mean of their errors: it can never be more. Dividing by the square root of the number of folds, as if they
    were independent, calls four random splits of the same tweets in twenty different at the level 0.05.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    points = np.concatenate([now, then]).astype(np.float64)
    side = np.repeat([1, 0], [len(now), len(then)])
    results: list[tuple[float, float]] = []
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=seed).split(points, side, _twins(points)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
        scores = model.fit(points[train], side[train]).decision_function(points[test])
        results.append(delong(scores[side[test] == 1], scores[side[test] == 0]))
    values, variances = np.array(results).T
    return float(values.mean()), float(np.sqrt(variances).mean())


def _twins(points: Floats) -> Integers:
    """A number for each row of `points` [N, H], the same for equal rows."""
    whole_rows = np.ascontiguousarray(points).view(np.dtype((np.void, points.itemsize * points.shape[1])))
    return np.unique(whole_rows.reshape(-1), return_inverse=True)[1].reshape(-1)


def delong(positives: Floats, negatives: Floats) -> tuple[float, float]:
    """AUC of scores and its variance (DeLong et al. 1988), from midranks (Sun and Xu 2014); ties count one half."""
    from scipy.stats import rankdata

    m, n = len(positives), len(negatives)
    together = rankdata(np.concatenate([positives, negatives]))
    above = (together[:m] - rankdata(positives)) / n  # share of negatives below each positive
    below = 1.0 - (together[m:] - rankdata(negatives)) / m  # share of positives above each negative
    return float(above.mean()), float(above.var(ddof=1) / m + below.var(ddof=1) / n)
