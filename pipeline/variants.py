"""Which variants answer the test rows of a task: the tuned prompt, and the baselines that it has to beat.

An encoder answers no hard prompt (`prompt.hard_prompts` is empty), so that it has no hard prompt, zero-shot and few-shot variant.
A LoRA is there when `lora_baseline.enabled` asks for one.
A task with free-text targets has the tuned prompt, the hard prompt and an answer that needs no model.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.params.task import TaskParams

Baseline = Literal["hard_prompt", "zero_shot", "few_shot", "lora", "majority_class", "commonest_target", "first_words"]
Variant = Literal["tuned", Baseline]

TUNED: Variant = "tuned"
HARD_PROMPT: Baseline = "hard_prompt"
ZERO_SHOT: Baseline = "zero_shot"
FEW_SHOT: Baseline = "few_shot"
LORA: Baseline = "lora"
MAJORITY_CLASS: Baseline = "majority_class"

# Not scored with the others but by the stage score_champion; a guard may name it as well.
CHAMPION: Literal["champion"] = "champion"

# The order in which they are shown: the harder baselines first.
VARIANTS: tuple[Variant, ...] = ("tuned", "hard_prompt", "zero_shot", "few_shot", "lora", "majority_class")

# Left out, with the reason in the score report, where the worked examples do not fit into the base model's context.
MAY_BE_SKIPPED: frozenset[Variant] = frozenset({"few_shot"})

NAMES: Mapping[str, str] = {
    "tuned": "Tuned prompt",
    "hard_prompt": "Hard prompt",
    "zero_shot": "Zero-shot",
    "few_shot": "Few-shot",
    "lora": "LoRA",
    "majority_class": "Majority class",
    "commonest_target": "Commonest target",
    "first_words": "First words",
}


def task_variants(params: "TaskParams") -> tuple[Variant, ...]:
    """The variants that `params` ask for, in the order of VARIANTS; those in MAY_BE_SKIPPED may be absent from the predictions."""
    if params.prompt.free_text:
        return "tuned", "hard_prompt", params.prompt.generation_settings.baseline
    answers_hard_prompts = bool(params.prompt.hard_prompts)
    asked: dict[Variant, bool] = {
        "tuned": True,
        "hard_prompt": answers_hard_prompts,
        "zero_shot": answers_hard_prompts,
        "few_shot": answers_hard_prompts and params.score.few_shot_per_label > 0,
        "lora": params.lora_baseline.enabled,
        "majority_class": True,
    }
    return tuple(variant for variant in VARIANTS if asked[variant])
