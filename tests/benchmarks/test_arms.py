"""The arms do the same work: same loss and gradient from the same soft prompt, the same number of examples, each arm its own order."""

from pathlib import Path

import pytest
import torch

from benchmarks import quality
from benchmarks.arms import (
    ARMS,
    ENGINE,
    ENGINE_FULL,
    ENGINE_PREFIX,
    PREFIX,
    TRAINER,
    Run,
    gradient_error,
    peft_weight,
    start_values,
    training_row,
)
from benchmarks.demo_task import Demo
from benchmarks.epochs import engine_epoch, evenly_spaced, grouped_epoch, random_epoch, width
from pipeline.params import load_task

BATCH_SIZE = 8


def first_loss(task, examples, arm: str) -> float:
    run: Run = ARMS[arm].train(task, [examples[:BATCH_SIZE]], start_values(task.base, 5))
    assert len(run.seconds) == 1
    return run.loss


@pytest.mark.parametrize(("ours", "theirs"), [(ENGINE_FULL, TRAINER), (ENGINE_PREFIX, PREFIX)])
def test_loss_at_step_0_is_the_same(task, examples, ours, theirs):
    if ours == ENGINE_PREFIX:
        found = gradient_error(task, examples[:BATCH_SIZE], start_values(task.base, 5), "prefix_tuning")["engine_loss"]
    else:
        found = first_loss(task, examples, ours)
    assert found == pytest.approx(first_loss(task, examples, theirs), rel=1e-5)


def test_loss_of_the_default_arm_is_the_verbalizers_part_of_the_full_one(task, examples):
    batch = examples[:BATCH_SIZE]
    expected = []
    for example in batch:
        ids = torch.tensor([[*task.head, *example.token_ids]])
        inputs = torch.cat([start_values(task.base, 5)[None], task.base.model.get_input_embeddings()(ids)], dim=1)
        logits = task.base.model(inputs_embeds=inputs).logits[0, -1, [60, 61, 62]]
        expected.append(float(-logits.log_softmax(-1)[example.label]))
    assert first_loss(task, examples, ENGINE) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_gradient_is_pefts(task, examples, method):
    found = gradient_error(task, examples[:BATCH_SIZE], start_values(task.base, 5), method)
    assert found["gradient_norm"] > 1e-4, "a vanishing gradient would prove nothing"
    assert found["relative_error"] <= 1e-5
    assert found["engine_loss"] == pytest.approx(found["peft_loss"], rel=1e-5)


def test_trainer_learns_the_label_token_alone(task, examples):
    row = training_row(task, examples[1])
    assert row["input_ids"] == [20, 21, 22, *examples[1].token_ids, 61]
    assert [label for label in row["labels"] if label != -100] == [61]
    assert row["labels"][-1] == 61


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_times_every_step_and_leaves_the_base_model_as_it_was(task, examples, arm):
    before = {name: value.clone() for name, value in task.base.model.state_dict().items()}
    batches = ARMS[arm].epoch(examples, BATCH_SIZE)[:3]
    run = ARMS[arm].train(task, batches, start_values(task.base, 4))
    assert len(run.seconds) == 3
    assert min(run.seconds) > 0
    assert not task.base.model.training
    assert task.base.model.config._attn_implementation == task.base.attention
    for name, value in task.base.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("epoch", [engine_epoch, random_epoch, grouped_epoch])
def test_an_epoch_has_every_example_once(examples, epoch):
    batches = epoch(examples, BATCH_SIZE)
    assert [len(batch) for batch in batches] == [BATCH_SIZE] * 6
    assert sorted(id(example) for batch in batches for example in batch) == sorted(id(example) for example in examples)


def test_evenly_spaced_batches_stand_for_the_epoch(examples):
    epoch = random_epoch(examples, 1)
    lengths = sorted(width(batch) for batch in epoch)
    assert [width(batch) for batch in evenly_spaced(epoch, 48)] == lengths
    assert [width(batch) for batch in evenly_spaced(epoch, 2)] == [lengths[12], lengths[36]]


@pytest.mark.parametrize("rate", [5e-5, 1e-2, 3e-2])
def test_pefts_settings_in_the_engine_leave_the_soft_prompt_that_trainer_leaves(task, examples, rate):
    demo = Demo(load_task(Path(__file__).parents[2] / "params.yaml", "tweet_sentiment"), {}, {})
    data = quality.Data(examples, [], [])
    wanted = quality.Configuration(
        side=quality.PEFT, init="RANDOM", learning_rate=rate, seed=3, steps=12, batch_size=8, num_virtual_tokens=4, dtype="float32"
    )
    start = peft_weight(quality.peft_start(task, demo, wanted)).detach().clone()
    theirs = quality.tune_with_peft(task, demo, data, wanted)
    ours = quality.tune_with_pefts_settings(task, demo, data, wanted)
    moved = (theirs - start).norm()
    assert moved > 0
    assert (ours - theirs).norm() <= 1e-3 * moved
    assert not task.base.model.training
