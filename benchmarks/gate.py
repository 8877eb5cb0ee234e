"""How often the gate errs: simulated candidates, judged by the functions that judge real ones. `python -m benchmarks.gate`.

Nothing is trained. Counts are drawn from known probabilities, so it is known which candidate deserves to be promoted.
"""

import argparse
import datetime
from collections.abc import Callable, Iterator
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.intervals import estimate, proportion
from pipeline.evaluation.paired import level_of_attempt, mcnemar_superior
from pipeline.gates.comparison_checks import KEYS, comparison_checks
from pipeline.gates.decision import decide
from pipeline.gates.fairness_checks import fairness_checks
from pipeline.gates.metrics_checks import metrics_checks
from pipeline.gates.slice_checks import slice_checks
from pipeline.layout import find_root
from pipeline.lineage import code_identity, library_versions
from pipeline.params import AssessFairnessParams, CompareParams, GateParams, load_task
from pipeline.records import replacing_file, write_json

RESULTS = Path(__file__).parent / "results"
LABELS = ("no", "yes")
SIGNIFICANCE = 0.05
CONFIDENCE = 0.95
CHAMPION = 0.65  # its accuracy on the simulated rows
ATTEMPTS = 20
GROUPS = ("first", "second")

COMPARE = CompareParams(metric="accuracy", mode="superior", margin=0.0, significance=SIGNIFICANCE, first_version="thresholds", examples=0)

p_value = cache(mcnemar_superior)


def main() -> None:
    """Run every simulation and write `gate.json` and `gate.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=10_000, help="simulated candidates of each line (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    lines = [
        *equal_candidates(options.replicates, options.seed),
        *better_candidates(options.replicates, options.seed),
        *fairness_gaps(options.replicates, options.seed),
        *slices_at_their_floor(options.replicates, options.seed),
        *prompts_at_their_floor(options.replicates, options.seed),
    ]
    write(lines, options)


def equal_candidates(replicates: int, seed: int) -> Iterator[dict[str, Any]]:
    """Candidates exactly as good as the champion: how often one is found superior, in one attempt and in any of 20."""
    for n in (500, 2000):
        for disagreement in (0.05, 0.1, 0.2, 0.4):
            wins, losses = _apart(n, disagreement, 0.0, ATTEMPTS, replicates, seed)
            promoted = _promoted(n, wins, losses)
            case = f"equal candidate, {n} rows, right and wrong apart on {disagreement:.0%}"
            for what, found in (("first attempt", promoted[:, :1]), (f"any of {ATTEMPTS} attempts", promoted)):
                yield _line(f"{case}: {what} promoted", found.any(axis=1), at_most=0.05)
            divided = _each(lambda won, lost, attempt: p_value(won, lost) <= SIGNIFICANCE / attempt, wins, losses)
            yield _line(f"{case}: any of {ATTEMPTS}, were the level divided by the attempts alone", divided.any(axis=1))


def better_candidates(replicates: int, seed: int) -> Iterator[dict[str, Any]]:
    """Candidates four points better, on their first attempt, for several shares of rows on which the two are right and wrong apart."""
    for disagreement in (0.06, 0.08, 0.1, 0.15, 0.2):
        promoted = _promoted(500, *_apart(500, disagreement, 0.04, 1, replicates, seed))[:, 0]
        yield _line(f"+4 points, 500 rows, right and wrong apart on {disagreement:.0%}: promoted", promoted, at_least=0.8)


def fairness_gaps(replicates: int, seed: int) -> Iterator[dict[str, Any]]:
    """Two groups of 400 rows whose accuracies are 0.20 apart, or equal, under a limit of 0.10."""
    limit = {"attribute": "group", "metric": "accuracy", "groups": list(GROUPS), "maximum": 0.1}
    rule = _rule(difference_thresholds=[limit])
    assessed = AssessFairnessParams(groups={}, columns={}, intersections=[], minimum_denominator=50, confidence_level=CONFIDENCE)
    judge = cache(lambda one, other: fairness_checks(rule, assessed, LABELS, _fairness({"first": (one, 400), "second": (other, 400)})))
    for shares in ((0.95, 0.75), (0.9, 0.7), (0.75, 0.55), (0.6, 0.4), (0.9, 0.9), (0.7, 0.7)):
        generator = np.random.default_rng(seed)
        counts = np.stack([generator.binomial(400, share, replicates) for share in shares], axis=1)
        decisions = [decide(judge(int(one), int(other)))[0] for one, other in counts]
        case = f"accuracies {shares[0]:.2f} and {shares[1]:.2f} in groups of 400 rows, limit 0.10"
        apart = shares[0] != shares[1]
        yield _line(f"{case}: refused", np.array(decisions) == "refuse", **({"at_least": 0.85} if apart else {"at_most": 0.05}))
        yield _line(f"{case}: not promoted", np.array(decisions) != "promote")


def slices_at_their_floor(replicates: int, seed: int) -> Iterator[dict[str, Any]]:
    """Twenty slices of 100 rows, all exactly as good as their floor, or one of them 0.20 below it."""
    names = [f"slice {number}" for number in range(20)]
    floor = {"by": "group", "groups": names, "minimum": 0.6}
    rule = _rule(slices={"significance": SIGNIFICANCE, "minimum_rows": 50, "thresholds": [floor]})
    for what, worst, goal in (("all at their floor", 0.6, {"at_most": 0.05}), ("one of them 0.20 below", 0.4, {"at_least": 0.8})):
        generator = np.random.default_rng(seed)
        counts = generator.binomial(100, [worst, *[0.6] * 19], (min(replicates, 2000), 20))
        refused = [
            decide(slice_checks(rule, LABELS, {}, _fairness(dict(zip(names, ((int(k), 100) for k in row), strict=True)))))[0] == "refuse"
            for row in counts
        ]
        yield _line(f"20 slices of 100 rows, {what}: refused", np.array(refused), **goal)


def prompts_at_their_floor(replicates: int, seed: int) -> Iterator[dict[str, Any]]:
    """Prompts whose accuracy is exactly the floor: how often one passes it."""
    rule = _rule(value_thresholds=[{"metric": "accuracy", "minimum": 0.6}])
    for n in (500, 2000):
        passed = cache(lambda right, n=n: metrics_checks(rule, LABELS, _metrics(right, n))[1]["verdict"] == "PASS")
        counts = np.random.default_rng(seed).binomial(n, 0.6, replicates)
        yield _line(f"accuracy exactly at its floor, {n} rows: passed", np.array([passed(int(right)) for right in counts]), at_most=0.05)


def _apart(
    n: int, disagreement: float, gain: float, attempts: int, replicates: int, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows that each candidate alone, and that the champion alone has right, both [R, A].

    The candidates are `gain` better than the champion, and those of a replicate meet the same champion on the same rows.
    """
    generator = np.random.default_rng(seed)
    right = generator.binomial(n, CHAMPION, (replicates, 1))
    wins = generator.binomial(n - right, (disagreement + gain) / 2 / (1 - CHAMPION), (replicates, attempts))
    losses = generator.binomial(right, (disagreement - gain) / 2 / CHAMPION, (replicates, attempts))
    return wins, losses


def _promoted(n: int, wins: np.ndarray[Any, Any], losses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which candidates [R, A] the check against the champion lets pass, attempt by attempt: the gate's own check, and its own decision."""
    metrics = {"n": n}

    @cache
    def promotes(won: int, lost: int, attempt: int) -> bool:
        return decide(comparison_checks(COMPARE, _comparison(n, won, lost, attempt), metrics))[0] == "promote"

    return _each(promotes, wins, losses)


def _each(judge: Callable[[int, int, int], bool], wins: np.ndarray[Any, Any], losses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    attempts = np.broadcast_to(np.arange(1, wins.shape[1] + 1), wins.shape)
    found = [judge(int(won), int(lost), int(attempt)) for won, lost, attempt in zip(wins.flat, losses.flat, attempts.flat, strict=True)]
    return np.array(found).reshape(wins.shape)


def _comparison(n: int, won: int, lost: int, attempt: int) -> dict[str, Any]:
    """A comparison record of these counts. The interval, at which `superior` by accuracy does not look, is left wide."""
    level = level_of_attempt(SIGNIFICANCE, attempt)
    return {
        **dict.fromkeys(KEYS),
        "asked": COMPARE.model_dump(mode="json"),
        "champion": {"version": 1, "manifest_sha256": ""},
        "comparable": True,
        "n": n,
        "attempts": attempt,
        "level": level,
        "confidence_level": 1 - 2 * level,
        "difference": estimate((won - lost) / n, (-1.0, 1.0), n),
        "paired": {"both_right": n - won - lost, "candidate_only": won, "champion_only": lost, "both_wrong": 0},
    }


def _rule(**changes: Any) -> GateParams:
    """The defaults of params.yaml with nothing but what a simulation is about."""
    params = load_task(find_root(Path(__file__).resolve().parent) / "params.yaml", "tweet_sentiment").gate.model_dump()
    nothing: dict[str, Any] = {name: [] for name in ("change_thresholds", "guards", "group_thresholds", "difference_thresholds")}
    nothing["slices"] = {**params["slices"], "thresholds": []}
    return GateParams.model_validate({**params, **nothing, "value_thresholds": [{"metric": "accuracy", "minimum": 0.0}], **changes})


def _fairness(groups: dict[str, tuple[int, int]]) -> dict[str, Any]:
    records = {
        name: {"n": n, "accuracy": proportion(right, n, CONFIDENCE, ""), "predicted": {"no": n // 2, "yes": n - n // 2}}
        for name, (right, n) in groups.items()
    }
    rows = sum(n for _, n in groups.values())
    return {"n": rows, "confidence_level": CONFIDENCE, "minimum_denominator": 50, "attributes": {"group": {"groups": records}}}


def _metrics(right: int, n: int) -> dict[str, Any]:
    return {"n": n, "confidence_level": CONFIDENCE, "variants": {"tuned": {"accuracy": proportion(right, n, CONFIDENCE, "")}}}


def _line(case: str, found: np.ndarray[Any, Any], *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """One line of the results: the share of the candidates for which `found` is true, against its goal."""
    share, n = float(found.mean()), len(found)
    error = sqrt(share * (1 - share) / n)
    reached = None
    if at_most is not None:
        reached = share <= at_most
    if at_least is not None:
        reached = share >= at_least
    goal = f"at most {at_most:.0%}" if at_most is not None else f"at least {at_least:.0%}" if at_least is not None else None
    return {"case": case, "share": share, "standard_error": error, "replicates": n, "goal": goal, "reached": reached}


def write(lines: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the lines as JSON and as a table."""
    code = code_identity(Path(__file__).parent)
    record = {
        "benchmark": "gate",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "code": {"commit": code["commit"], "dirty": code["dirty"]},
        "libraries": library_versions(("numpy", "scipy")),
        "settings": {"replicates": options.replicates, "seed": options.seed, "champion_accuracy": CHAMPION, "significance": SIGNIFICANCE},
        "lines": lines,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "gate.json", record)
    said: Callable[[Any], str] = lambda reached: {None: "", True: "yes", False: "**no**"}[reached]  # noqa: E731
    rows = [f"| {one['case']} | {one['share']:.1%} | {one['goal'] or ''} | {said(one['reached'])} |" for one in lines]
    text = ["# How often the gate errs", "", *INTRODUCTION, "", "| Case | Share | Goal | Reached |", "|---|---|---|---|", *rows]
    with replacing_file(options.output / "gate.md") as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")


INTRODUCTION = (
    "Simulated candidates, judged by the gate's shipped functions and no others: `comparison_checks`, `fairness_checks`, `slice_checks`, `metrics_checks` "
    "and `decide` (`python -m benchmarks.gate`); `gate.json` has the standard error of each share.",
    'Lines with "were the level divided" show another rule beside the gate\'s, for which there is no check.',
    "A candidate that is not promoted is refused, or left to a person where the rows cannot decide.",
)


if __name__ == "__main__":
    main()
