"""Whether prompt tuning pays for a task, in plain words, from the paired comparisons of one run.

It pays where the tuned prompt gains beyond chance on every prompt that needs no training. It is the wrong tool where a LoRA that cost about as
much to train is better beyond chance. "Beyond chance" is always the whole interval of the paired difference on one side of 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.reporting.formats.metrics import TrainingCost
from pipeline.reporting.formats.record import Estimate

Verdict = Literal["pays", "does not pay", "wrong tool", "LoRA is better at a higher cost", "cannot be said"]

# A LoRA whose optimiser steps took more than so many times as long is no alternative of similar cost.
SIMILAR_COST = 2.0

# What each baseline is called in a sentence, and those that need no training beside the trivial ones.
NAMES: Mapping[str, str] = {
    "hard_prompt": "the best hard prompt",
    "zero_shot": "the zero-shot prompt",
    "few_shot": "the few-shot prompt",
    "majority_class": "the majority class",
    "commonest_target": "the commonest target",
    "first_words": "the first words of the text",
}
PROMPTS = ("hard_prompt", "zero_shot", "few_shot")
LORA = "lora"


@dataclass(frozen=True)
class Worth:
    """The verdict and the sentences that give its reasons."""

    verdict: Verdict
    sentences: tuple[str, ...]

    @property
    def heading(self) -> str:
        """The verdict as a sentence."""
        return {
            "pays": "Prompt tuning pays here.",
            "does not pay": "Prompt tuning is not worth it here, as far as these rows can tell.",
            "wrong tool": "Prompt tuning is the wrong tool here.",
            "LoRA is better at a higher cost": "Prompt tuning pays here, but a LoRA that costs more is better.",
            "cannot be said": "Whether prompt tuning pays here cannot be said.",
        }[self.verdict]


def worth_of(metric: str, gains: Mapping[str, Estimate], costs: Mapping[str, TrainingCost], *, without_lora: str) -> Worth:
    """Judge `gains`: baseline -> the tuned prompt's `metric` minus the baseline's, paired; `costs`: what training `tuned` and `lora` took;
    `without_lora`: why there is no LoRA among them, when there is none.

    An encoder, which answers no prompt, has to beat the trivial baseline.
    """
    rivals = {name: gain for name, gain in gains.items() if name in PROMPTS} or {n: gain for n, gain in gains.items() if n in NAMES}
    unknown = [name for name, gain in gains.items() if name in (*rivals, LORA) and _ends(gain) is None]
    if unknown or not rivals:
        missing = f"The difference in {metric} from {_listed(unknown)} could not be computed." if unknown else "No baseline was scored."
        return Worth("cannot be said", (missing,))
    level = [name for name, gain in rivals.items() if _low(gain) <= 0]
    sentences = [_rival(metric, name, rivals[name]) for name in level] or [_beaten(metric, rivals)]
    lora = gains.get(LORA)
    better, similar = lora is not None and _high(lora) < 0, _times(costs) is not None and (_times(costs) or 0.0) <= SIMILAR_COST
    if lora is not None:
        sentences.append(_lora(metric, lora, costs))
    else:
        sentences.append(f"{without_lora}, so whether it would do better is not known.")
    if better and similar:
        return Worth("wrong tool", (sentences[-1], *sentences[:-1]))
    if level:
        return Worth("does not pay", tuple(sentences))
    return Worth("LoRA is better at a higher cost" if better else "pays", tuple(sentences))


def _rival(metric: str, name: str, gain: Estimate) -> str:
    if _high(gain) < 0:
        return f"{_capital(name)} does better without any training: the tuned prompt's {metric} minus its own is {_figure(gain)}."
    return (
        f"Over {NAMES[name]}, which needs no training, the gain in {metric} is {_figure(gain)}: it may be chance. "
        "Use that, or measure on more rows."
    )


def _beaten(metric: str, rivals: Mapping[str, Estimate]) -> str:
    said = [f"{_figure(gain)} over {NAMES[name]}" for name, gain in rivals.items()]
    return f"The gain in {metric} is beyond chance on the same rows: {'; '.join(said)}."


def _lora(metric: str, gain: Estimate, costs: Mapping[str, TrainingCost]) -> str:
    times = _times(costs)
    cost = (
        "Its training time was not recorded." if times is None else f"Its optimiser steps took {times:.2g} times as long{_values(costs)}."
    )
    if _high(gain) < 0:
        return f"A LoRA trained for as many steps on the same examples is better: {metric} of the tuned prompt minus its own is {_figure(gain)}. {cost}"
    if _low(gain) > 0:
        return f"It is better than a LoRA trained for as many steps on the same examples: by {_figure(gain)} in {metric}. {cost}"
    return f"A LoRA trained for as many steps on the same examples is not clearly better or worse: {metric} of the tuned prompt minus its own is {_figure(gain)}. {cost}"


def _times(costs: Mapping[str, TrainingCost]) -> float | None:
    """Training time of the LoRA over that of the soft prompt."""
    if LORA not in costs or "tuned" not in costs or costs["tuned"].seconds <= 0:
        return None
    return costs[LORA].seconds / costs["tuned"].seconds


def _values(costs: Mapping[str, TrainingCost]) -> str:
    return f" ({costs[LORA].values:,} trained numbers instead of {costs['tuned'].values:,})"


def _capital(name: str) -> str:
    return NAMES[name][0].upper() + NAMES[name][1:]


def _listed(names: Sequence[str]) -> str:
    return " and ".join("the LoRA" if name == LORA else NAMES[name] for name in names)


def _figure(gain: Estimate) -> str:
    return f"{gain.value:+.3f} [{_low(gain):+.3f}, {_high(gain):+.3f}]".replace("-", "−")


def _ends(gain: Estimate) -> tuple[float, float] | None:
    return None if gain.value is None or gain.low is None or gain.high is None else (gain.low, gain.high)


def _low(gain: Estimate) -> float:
    return (_ends(gain) or (0.0, 0.0))[0]


def _high(gain: Estimate) -> float:
    return (_ends(gain) or (0.0, 0.0))[1]
