"""What the answers to the probes say: flip rates, shifts, accuracies under change, failure rates and preferences, each with its n.

Counts first; a rate is a proportion with Wilson's interval, so its `high` is the upper bound to set a limit on. A constant answer never flips:
`predicted` counts the answers to the unchanged texts behind a rate, so that whoever judges can see that.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.behaviour.probes import ALONE, ORIGINAL
from pipeline.evaluation.intervals import (
    Estimate,
    Floats,
    estimate,
    no_estimate,
    paired_difference,
    percentile_interval,
    proportion,
    resampled_means,
)
from pipeline.params import BehaviourParams, DirectionalTest, InvarianceTest, MinimumFunctionalityTest

if TYPE_CHECKING:
    import pandas as pd

METHOD = (
    "flip, failure and preference rates, accuracies: Wilson score interval; shifts: percentile bootstrap over rows; change of a preference: "
    "Newcombe's interval for paired proportions, exact McNemar test"
)
REPLICATES = 2000
EXAMPLES = 5
UNCHANGED = "no row was changed"


def assess(
    answers: "pd.DataFrame", bias: "pd.DataFrame", report: Mapping[str, Any], params: BehaviourParams, labels: Sequence[str]
) -> dict[str, Any]:
    """The assessment of every probe, ready for JSON; `answers`, `bias` and `report` are what the stage probe wrote."""
    by_probe = {str(name): rows for name, rows in answers.groupby("probe", sort=False)}
    originals = by_probe.get(ORIGINAL, answers.iloc[:0]).set_index("row_id")
    none = answers.iloc[:0]
    level = params.confidence_level

    def changed(name: str) -> "Changed":
        return Changed(originals, by_probe.get(name, none), labels, level, params.seed)

    return {
        "labels": list(labels),
        "confidence_level": level,
        "minimum_rows": params.minimum_rows,
        "seed": params.seed,
        "method": METHOD,
        "swaps": {name: changed(f"swap.{name}").swap(report["searched"][f"swap.{name}"]) for name in params.swaps},
        "pairs": {name: _pairs(by_probe.get(f"pairs.{name}", none), labels, report["pairs"][name], params) for name in params.pairs},
        "robustness": _robustness(originals, by_probe, labels, params) if params.perturbations else None,
        "tests": {test.name: _test(test, changed(f"test.{test.name}"), report) for test in params.tests},
        "batch_invariance": _batch_invariance(originals, by_probe.get(ALONE, none), labels) if params.batch_invariance_rows else None,
        "bias": {
            name: _bias(bias[bias["file"] == name], report["bias_pairs"][name], report["bias_skipped"].get(name), params)
            for name in params.bias_pairs
        },
    }


class Changed:
    """Rows that a probe changed, beside what they were."""

    def __init__(self, originals: "pd.DataFrame", rows: "pd.DataFrame", labels: Sequence[str], level: float, seed: int) -> None:
        self.rows, self.labels, self.level, self.seed = rows, labels, level, seed
        self.before = originals.reindex(rows["row_id"]) if len(originals) else originals
        self.flipped = np.array(
            [one != other for one, other in zip(self.before["prediction"], rows["prediction"], strict=False)], dtype=np.bool_
        )

    def swap(self, searched: int) -> dict[str, Any]:
        """Figures of a counterfactual swap. A shift is the probability of a label on the second side minus on the first, in [-1, 1], ideal 0."""
        return {
            "searched": searched,
            "changed": len(self.rows),
            "predicted": self.predicted(),
            "flip_rate": self.flip_rate(),
            "shift": {label: self._shift(label) for label in self.labels},
            "directions": {side: int((self.rows["side"] == side).sum()) for side in ("forward", "backward", "mixed")},
            "flips": self.flips(),
            "examples": self.examples(),
        }

    def predicted(self) -> dict[str, int]:
        """Label -> how many of the rows got it before they were changed."""
        return _counts(self.before, self.labels)

    def flip_rate(self) -> Estimate:
        """Share of changed rows that are given another label, in [0, 1], ideal 0."""
        return proportion(int(self.flipped.sum()), len(self.rows), self.level, UNCHANGED)

    def flips(self) -> dict[str, int]:
        """How often which label became which."""
        counted: dict[str, int] = {}
        for before, after in zip(self.before["prediction"][self.flipped], self.rows["prediction"][self.flipped], strict=True):
            counted[f"{before} -> {after}"] = counted.get(f"{before} -> {after}", 0) + 1
        return counted

    def examples(self, chosen: "np.ndarray[Any, Any] | None" = None) -> list[dict[str, str]]:
        """The first flips (or `chosen` rows) with both texts."""
        which = np.flatnonzero(self.flipped if chosen is None else chosen)[:EXAMPLES]
        return [
            {
                "row_id": str(self.rows["row_id"].iloc[at]),
                "text": str(self.before["text"].iloc[at]),
                "changed_text": str(self.rows["text"].iloc[at]),
                "prediction": str(self.before["prediction"].iloc[at]),
                "changed_prediction": str(self.rows["prediction"].iloc[at]),
            }
            for at in which
        ]

    def moved(self, label: str) -> Floats:
        """How much more probable `label` got, per row."""
        return self.rows[f"p.{label}"].to_numpy(dtype=np.float64) - self.before[f"p.{label}"].to_numpy(dtype=np.float64)

    def _shift(self, label: str) -> Estimate:
        signs = np.array([{"forward": 1.0, "backward": -1.0}.get(side, 0.0) for side in self.rows["side"]])
        clear = signs != 0
        if clear.sum() < 2:
            return no_estimate(int(clear.sum()), "a shift needs two rows that have the words of one side alone")
        values = (self.moved(label) * signs)[clear]
        return estimate(float(values.mean()), percentile_interval(resampled_means(values, REPLICATES, self.seed), self.level), len(values))


def _counts(rows: "pd.DataFrame", labels: Sequence[str]) -> dict[str, int]:
    return {label: int((rows["prediction"] == label).sum()) for label in labels}


def _pairs(rows: "pd.DataFrame", labels: Sequence[str], file: Mapping[str, Any], params: BehaviourParams) -> dict[str, Any]:
    """Figures of ready-made pairs, as of a swap of their first texts into the second."""
    first = rows[rows["side"] == "first"].set_index("row_id")
    second = rows[rows["side"] == "second"].assign(side="forward")
    return {**file, **Changed(first, second, labels, params.confidence_level, params.seed).swap(len(first))}


def _robustness(
    originals: "pd.DataFrame", by_probe: Mapping[str, "pd.DataFrame"], labels: Sequence[str], params: BehaviourParams
) -> dict[str, Any]:
    """Accuracy of the first rows as they are, under each perturbation, and in the worst case of each row (Liang et al. 2022)."""
    rows = originals.sort_index().head(params.rows)
    level, why = params.confidence_level, "there are no test rows"
    right = (rows["prediction"] == rows["label"]).to_numpy()
    worst, described = right.copy(), {}
    for name in params.perturbations:
        probe = by_probe.get(f"robustness.{name}", originals.iloc[:0].reset_index()).set_index("row_id")
        answer = probe["prediction"].reindex(rows.index).fillna(rows["prediction"])
        still, was_changed = (answer == rows["label"]).to_numpy(), rows.index.isin(probe.index)
        flips = int((answer != rows["prediction"]).sum())
        worst &= still
        described[name] = {
            "changed": int(was_changed.sum()),
            "accuracy": proportion(int(still.sum()), len(rows), level, why),
            "flip_rate": proportion(flips, int(was_changed.sum()), level, UNCHANGED),
        }
    lost = int((right & ~worst).sum())
    return {
        "rows": len(rows),
        "predicted": _counts(rows, labels),
        "accuracy": proportion(int(right.sum()), len(rows), level, why),
        "perturbations": described,
        "worst_case_accuracy": proportion(int(worst.sum()), len(rows), level, why),
        "worst_case_drop": proportion(lost, len(rows), level, why),
    }


def _test(test: MinimumFunctionalityTest | InvarianceTest | DirectionalTest, changed: Changed, report: Mapping[str, Any]) -> dict[str, Any]:
    rows = changed.rows
    if isinstance(test, MinimumFunctionalityTest):
        failed = (rows["prediction"] != rows["label"]).to_numpy(dtype=np.bool_)
        examples = [
            {"text": str(text), "label": str(label), "prediction": str(prediction)}
            for text, label, prediction in rows.loc[failed, ["text", "label", "prediction"]].head(EXAMPLES).itertuples(index=False)
        ]
        searched = len(rows)
    else:
        failed = changed.flipped if isinstance(test, InvarianceTest) else _wrong_way(test, changed)
        examples, searched = changed.examples(failed), int(report["searched"][f"test.{test.name}"])
    return {
        "kind": test.kind,
        "searched": searched,
        "cases": len(rows),
        "predicted": _counts(rows, changed.labels) if isinstance(test, MinimumFunctionalityTest) else changed.predicted(),
        "failure_rate": proportion(int(failed.sum()), len(rows), changed.level, UNCHANGED),
        "examples": examples,
    }


def _wrong_way(test: DirectionalTest, changed: Changed) -> Any:
    moved = changed.moved(test.label)
    return moved < -test.tolerance if test.change == "higher" else moved > test.tolerance


def _batch_invariance(originals: "pd.DataFrame", alone: "pd.DataFrame", labels: Sequence[str]) -> dict[str, Any]:
    """The largest difference of a probability between a row alone and the same row in a batch, and how many labels differ."""
    together = originals.reindex(alone["row_id"])
    columns = [f"p.{label}" for label in labels]
    differences = np.abs(together[columns].to_numpy(dtype=np.float64) - alone[columns].to_numpy(dtype=np.float64))
    return {
        "rows": len(alone),
        "largest_difference": float(differences.max()) if len(alone) else None,
        "flips": int((together["prediction"].to_numpy() != alone["prediction"].to_numpy()).sum()),
    }


# --- preferences of the language model ------------------------------------------------------------------------------------


def _bias(rows: "pd.DataFrame", file: Mapping[str, Any], skipped: str | None, params: BehaviourParams) -> dict[str, Any]:
    """How often the model finds a stereotype likelier than its counterpart, without and with the tuned prompt, overall and by kind."""
    mean = file["format"] == "stereoset"
    score = rows["log_probability"] / rows["tokens"] if mean else rows["log_probability"]
    wide = rows.assign(score=score).pivot_table(index=["number", "kind"], columns=["prompt", "side"], values="score")
    wide = wide.dropna() if len(wide) else wide
    kinds = wide.index.get_level_values("kind") if len(wide) else []
    described = {str(kind): _preference(wide[kinds == kind], params) for kind in sorted(set(kinds))}
    return {
        **file,
        "skipped": skipped,
        "compared": len(wide),
        "too_long": 0 if skipped else int(file["pairs"]) - len(wide),
        "score": "mean log-probability of a token" if mean else "log-probability of the text",
        **_preference(wide, params),
        "kinds": described,
    }


def _preference(wide: "pd.DataFrame", params: BehaviourParams) -> dict[str, Any]:
    n, level, why = len(wide), params.confidence_level, "no pair was compared"
    if n == 0:
        nothing = no_estimate(0, why)
        return {"base": nothing, "tuned": nothing, "change": nothing, "p_value": None, "language_modelling": None}
    base, tuned = (np.asarray(wide[(prompt, "first")] > wide[(prompt, "second")]) for prompt in ("base", "tuned"))
    change, p_value = paired_difference(tuned, base, level)
    return {
        "base": proportion(int(base.sum()), n, level, why),
        "tuned": proportion(int(tuned.sum()), n, level, why),
        "change": change,
        "p_value": p_value,
        "language_modelling": _language_modelling(wide, params) if ("base", "unrelated") in wide.columns else None,
    }


def _language_modelling(wide: "pd.DataFrame", params: BehaviourParams) -> dict[str, Estimate]:
    """How often a related text is likelier than the unrelated one (StereoSet's language modelling score), in [0, 1], ideal 1.

    The two comparisons of a pair go together, so the pairs are resampled.
    """
    scores: dict[str, Estimate] = {}
    for prompt in ("base", "tuned"):
        wins = np.mean([wide[(prompt, side)] > wide[(prompt, "unrelated")] for side in ("first", "second")], axis=0)
        interval = percentile_interval(resampled_means(wins, REPLICATES, params.seed), params.confidence_level)
        scores[prompt] = estimate(float(wins.mean()), interval, len(wins))
    return scores
