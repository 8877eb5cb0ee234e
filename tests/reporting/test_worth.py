"""What the cards say about prompt tuning against prompts that need no training, and against a LoRA of similar cost."""

import pytest

from pipeline.reporting.formats.metrics import TrainingCost
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.worth import worth_of
from tests.reporting.card_run import Run
from tests.reporting.pages import read_page

WITHOUT = "No LoRA was trained"
COSTS = {
    "tuned": TrainingCost(seconds=100.0, steps=240, trials=1, values=11_520),
    "lora": TrainingCost(seconds=150.0, steps=240, trials=1, values=2_442_240),
}
DEAR = COSTS | {"lora": TrainingCost(seconds=201.0, steps=240, trials=1, values=2_442_240)}
ABOVE, AT_ZERO, AROUND, BELOW = (0.1, 0.05, 0.15), (0.05, 0.0, 0.1), (0.01, -0.02, 0.04), (-0.1, -0.15, -0.05)


def gain(figures: tuple[float, float, float] | None) -> Estimate:
    if figures is None:
        return Estimate(value=None, low=None, high=None, n=100, why="no row has label 'x'")
    return Estimate(value=figures[0], low=figures[1], high=figures[2], n=100)


CASES = [
    ({"hard_prompt": ABOVE, "few_shot": ABOVE}, COSTS, "pays", ["beyond chance on the same rows: +0.100 [+0.050, +0.150] over the best hard prompt; ", WITHOUT]),
    ({"hard_prompt": ABOVE, "few_shot": AROUND}, COSTS, "does not pay", ["Over the few-shot prompt, which needs no training, the gain in accuracy is +0.010 [−0.020, +0.040]: it may be chance."]),
    ({"hard_prompt": AT_ZERO, "few_shot": ABOVE}, COSTS, "does not pay", ["Over the best hard prompt"]),
    ({"hard_prompt": BELOW}, COSTS, "does not pay", ["The best hard prompt does better without any training: the tuned prompt's accuracy minus its own is −0.100 [−0.150, −0.050]."]),
    ({"hard_prompt": AROUND, "few_shot": BELOW}, COSTS, "does not pay", ["Over the best hard prompt", "The few-shot prompt does better"]),
    ({"hard_prompt": ABOVE, "lora": BELOW}, COSTS, "wrong tool", ["A LoRA trained for as many steps on the same examples is better: accuracy of the tuned prompt minus its own is −0.100", "took 1.5 times as long (2,442,240 trained numbers instead of 11,520)"]),
    ({"hard_prompt": AROUND, "lora": BELOW}, COSTS, "wrong tool", ["is better: ", "may be chance"]),
    ({"hard_prompt": ABOVE, "lora": BELOW}, DEAR, "LoRA is better at a higher cost", ["took 2 times as long"]),
    ({"hard_prompt": ABOVE, "lora": BELOW}, {}, "LoRA is better at a higher cost", ["Its training time was not recorded."]),
    ({"hard_prompt": AROUND, "lora": BELOW}, DEAR, "does not pay", ["may be chance", "is better: "]),
    ({"hard_prompt": ABOVE, "lora": AROUND}, COSTS, "pays", ["is not clearly better or worse: accuracy of the tuned prompt minus its own is +0.010 [−0.020, +0.040]"]),
    ({"hard_prompt": ABOVE, "lora": ABOVE}, COSTS, "pays", ["better than a LoRA trained for as many steps on the same examples: by +0.100"]),
    ({"majority_class": ABOVE, "lora": AROUND}, COSTS, "pays", ["over the majority class"]),
    ({"majority_class": AROUND}, COSTS, "does not pay", ["Over the majority class, which needs no training"]),
    ({"hard_prompt": ABOVE, "majority_class": AROUND}, COSTS, "pays", []),
    ({"hard_prompt": ABOVE, "few_shot": None}, COSTS, "cannot be said", ["The difference in accuracy from the few-shot prompt could not be computed."]),
    ({"hard_prompt": ABOVE, "lora": None}, COSTS, "cannot be said", ["from the LoRA could not be computed"]),
    ({"lora": ABOVE}, COSTS, "cannot be said", ["No baseline was scored."]),
]  # fmt: skip


@pytest.mark.parametrize(("gains", "costs", "verdict", "said"), CASES)
def test_each_outcome_has_its_verdict_and_its_reasons(gains, costs, verdict: str, said: list[str]):
    found = worth_of("accuracy", {name: gain(figures) for name, figures in gains.items()}, costs, without_lora=WITHOUT)
    assert found.verdict == verdict
    text = " ".join(found.sentences)
    assert [words for words in said if words not in text] == []
    assert found.heading.endswith(".")


def test_both_cards_show_it(run: Run):
    page = read_page(run.render())
    assert "Is prompt tuning worth it here?" in page.words
    assert "Prompt tuning pays here." in page.words
    assert "over the best hard prompt" in page.words
    assert "No LoRA was trained to compare with (lora_baseline.enabled)" in page.words
    model_card = run.outputs.model_card.read_text(encoding="utf-8")
    assert "Is prompt tuning worth it here? Prompt tuning pays here. The gain in accuracy" in model_card


def test_a_lora_and_its_cost_are_on_the_card(run: Run):
    def better(found):
        found["variants"]["lora"] = found["variants"]["tuned"]
        found["comparisons"]["tuned_minus_lora"] = {
            name: {"value": -0.2, "low": -0.25, "high": -0.15, "n": 1700} for name in ("accuracy", "macro_f1")
        }

    run.edit("metrics", better)
    run.edit("score_report", lambda found: found.update(training_cost={name: cost.model_dump() for name, cost in COSTS.items()}))
    page = read_page(run.render())
    assert "Prompt tuning is the wrong tool here." in page.words
    assert "Tuned − LoRA" in page.words
    assert "1.5 times as long" in page.words
    assert "wrong tool" in run.outputs.model_card.read_text(encoding="utf-8")


def test_a_lora_that_was_tuned_instead_is_not_called_prompt_tuning(run: Run):
    run.edit("bundle", lambda found: found["training"].update(method="lora"))
    assert "worth it here" not in read_page(run.render()).words
