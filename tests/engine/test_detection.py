"""Trouble is reported where there is some, and only there."""

import math
from dataclasses import replace

import pytest

from pipeline.engine.batching import Example
from pipeline.engine.detection import Detection, Evaluation, problems
from pipeline.engine.objectives import Result
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.errors import TrainingError
from tests.engine.tiny_training import EXAMPLES, OPTIMISERS, run, shuffled_labels, tiny_learner

STILL = OptimiserSettings(learning_rate=1e-7, warmup_ratio=0.1, maximum_steps=40)
CHANCE = math.log(3)


def problems_of(tiny, **changes) -> list[dict]:
    records: list[dict] = []
    run(tiny(), on_record=records.append, **changes)
    return [record for record in records if record["event"] == "problem"]


def kinds(losses: list[float], results: list[Result], every: int = 10, **detection) -> list[str]:
    evaluations = [Evaluation(step=every * (index + 1), result=result) for index, result in enumerate(results)]
    found = problems(losses=losses, evaluations=evaluations, warmup=2, metric="accuracy", detection=Detection(**detection))
    return [problem.kind for problem in found]


def result(loss: float, accuracy: float = 0.4, share: float = 0.5, trivial: float | None = CHANCE, rows: int = 400) -> Result:
    return Result({"accuracy": accuracy, "macro_f1": accuracy, "largest_prediction_share": share}, loss, rows, trivial)


def noise(level: float, steps: int = 30) -> list[float]:
    return [level + 0.1 * math.sin(37.0 * step) for step in range(steps)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("optimiser", list(OPTIMISERS))
def test_a_run_that_learns_raises_no_alarm_even_long_after_it_has_learnt(tiny, optimiser, seed):
    longer = replace(OPTIMISERS[optimiser], schedule="cosine")
    assert problems_of(tiny, optimiser=longer, seed=seed, maximum_steps=100, on_problem="fail") == []


def test_labels_that_do_not_belong_to_the_texts_and_tiny_steps_are_a_plateau_reported_once(tiny):
    found = problems_of(tiny, examples=shuffled_labels(), validation=shuffled_labels(), optimiser=STILL)
    plateaus = [record for record in found if record["kind"] == "plateau"]
    assert len(plateaus) == 1
    assert plateaus[0].keys() == {"event", "trial", "step", "kind", "found", "advice"}
    assert (plateaus[0]["trial"], plateaus[0]["step"]) == (0, 30)
    assert "tune.learning_rate" in plateaus[0]["advice"]
    assert plateaus[0]["found"].startswith("no gain since step 10: training loss ")


def test_with_fail_a_problem_is_an_error_that_says_what_to_change(tiny):
    with pytest.raises(
        TrainingError, match=r"problem at step 30: trial 0 has the problem plateau: no gain since step 10.*tune\.learning_rate"
    ):
        run(tiny(), examples=shuffled_labels(), validation=shuffled_labels(), optimiser=STILL, on_problem="fail")


def test_a_prompt_that_gives_every_example_one_label_is_reported(tiny):
    """Trained on one label only, it answers with it; the validation examples have both."""
    one_label = [Example(example.token_ids, 0) for example in EXAMPLES]
    records: list[dict] = []
    run(tiny(), examples=one_label, maximum_steps=40, on_record=records.append, optimiser=replace(OPTIMISERS["adamw"], learning_rate=0.2))
    evaluations = [record for record in records if record["event"] == "evaluation"]
    assert [record["largest_prediction_share"] for record in evaluations[-3:]] == [1.0, 1.0, 1.0]
    found = [record for record in records if record["event"] == "problem"]
    assert [record["kind"] for record in found] == ["one_class"]
    assert found[0]["found"] == "100.0% of the validation examples get one label (limit 98.0%), 3 times in a row"
    assert "tune.init" in found[0]["advice"]


def test_one_label_everywhere_is_no_problem_where_it_is_right(tiny):
    one_label = [Example(example.token_ids, 0) for example in EXAMPLES]
    assert problems_of(tiny, examples=one_label, validation=one_label, maximum_steps=100, on_problem="fail") == []


def test_one_label_is_an_alarm_only_all_through_a_window_after_warm_up():
    collapsed, spread = result(CHANCE, share=1.0), result(CHANCE, share=0.6)
    falling = [2.0 - 0.02 * step for step in range(40)]
    assert kinds(falling, [collapsed] * 2) == []
    assert kinds(falling, [collapsed] * 3) == ["one_class"]
    assert kinds(falling, [spread, collapsed, collapsed]) == []
    assert kinds(falling, [collapsed, spread, collapsed]) == []
    assert kinds(falling, [spread, collapsed, collapsed, collapsed]) == ["one_class"]
    assert kinds(falling, [collapsed] * 2, window=1) == ["one_class"]
    assert kinds(falling, [collapsed] * 3, largest_prediction_share=1.01) == []
    assert kinds(falling, [collapsed] * 4, every=1) == []  # two of them are during warm-up


def test_a_plateau_needs_both_losses_and_the_metric_to_stand_still():
    still = [result(CHANCE + 0.05)] * 3
    assert kinds(noise(CHANCE), still) == ["plateau"]
    assert kinds(noise(CHANCE), still[:2]) == []  # the window is not full
    assert kinds(noise(CHANCE), still, window=3) == []
    falling = [loss - 0.02 * step for step, loss in enumerate(noise(CHANCE + 0.6))]
    assert kinds(falling, still) == []
    assert kinds(noise(CHANCE), [*still[:2], result((CHANCE + 0.05) * 0.97)]) == []
    assert kinds(noise(CHANCE), [*still[:2], result(CHANCE + 0.05, accuracy=0.46)]) == []
    assert kinds(noise(CHANCE), [*still[:2], result(CHANCE + 0.05, accuracy=0.44)]) == ["plateau"]  # noise of 400 rows


def test_noise_in_the_metric_is_judged_by_the_number_of_rows():
    jump = [result(CHANCE, rows=40), result(CHANCE, rows=40), result(CHANCE, accuracy=0.5, rows=40)]
    assert kinds(noise(CHANCE), jump) == ["plateau"]
    assert kinds(noise(CHANCE), [replace(one, rows=4000) for one in jump]) == []


def test_standing_still_after_having_learnt_is_no_problem():
    assert kinds(noise(0.5), [result(0.6, accuracy=0.9)] * 3) == []
    # It learnt, and then learnt the training examples by heart: validation is worse than the trivial answer, training is not.
    assert kinds(noise(0.2), [result(2.0, accuracy=0.8)] * 3) == []


def test_a_first_fall_to_the_trivial_answer_is_not_learning():
    losses = [3.0, 2.5, 2.0, 1.6, 1.3, *noise(CHANCE, 25)]
    assert kinds(losses, [result(CHANCE + 0.01)] * 3) == ["plateau"]
    assert kinds(losses, [result(CHANCE + 0.01, trivial=None)] * 3) == []  # without a trivial answer the fall counts


def test_an_objective_without_a_trivial_answer_is_compared_with_its_start():
    assert kinds(noise(4.0), [result(4.0, trivial=None)] * 3) == ["plateau"]
    assert kinds([8.0, *noise(4.0, 29)], [result(4.0, trivial=None)] * 3) == []


def test_a_validation_loss_that_is_not_finite_ends_the_trial(tiny):
    learner = tiny_learner(tiny(), 2)
    outputs = learner.outputs

    def broken(trials, examples):
        found = outputs(trials, examples)
        found[:, 0] = float("nan")
        return found

    learner.outputs = broken
    records: list[dict] = []
    with pytest.raises(TrainingError, match=r"trial 0 diverged at step 10: validation loss nan; trial 1 diverged at step 20"):
        run(tiny(), learner=learner, trials=2, on_record=records.append)
    assert [record["trial"] for record in records if record["event"] == "problem"] == [0, 1]
