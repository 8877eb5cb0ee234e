"""The training loop: what changes, what does not, and when it stops."""

from dataclasses import replace

import pytest
import torch

from pipeline.engine.batching import Example, training_order
from pipeline.engine.scoring import classification_result, score_examples
from pipeline.engine.soft_prompt import initial_soft_prompt, tensor_sha256
from pipeline.engine.template import Verbalizers
from pipeline.engine.training import TrainingSettings, learning_rate_at, train_soft_prompt
from pipeline.errors import TrainingError

VERBALIZERS = Verbalizers(("a", "b"), ((60,), (61,)))
# Two kinds of texts that differ in their first token: a soft prompt can learn to tell them apart.
EXAMPLES = [Example([30 + 10 * (index % 2), 25, 26, *range(70, 70 + index % 5)], index % 2) for index in range(40)]
SETTINGS = TrainingSettings(
    learning_rate=0.05,
    weight_decay=0.0,
    warmup_ratio=0.1,
    schedule="cosine",
    maximum_gradient_norm=1.0,
    batch_size=8,
    maximum_steps=40,
    evaluate_every=10,
    early_stopping_patience=10,
    metric="accuracy",
    seed=0,
)


def train(base, settings=SETTINGS, records=None, **changes):
    return train_soft_prompt(
        base=base,
        soft_prompt=initial_soft_prompt(base=base, num_virtual_tokens=5, init_text="the plane was late"),
        head=(20,),
        verbalizers=VERBALIZERS,
        train=EXAMPLES,
        validation=EXAMPLES,
        settings=replace(settings, **changes),
        on_record=(records if records is not None else []).append,
    )


def test_only_the_soft_prompt_changes_in_a_step(tiny):
    base = tiny()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    initial = initial_soft_prompt(base=base, num_virtual_tokens=5, init_text="the plane was late")
    result = train(base, maximum_steps=1)
    after = base.model.state_dict()
    assert len(before) == len(after) > 10
    for name, value in before.items():
        assert torch.equal(value, after[name]), f"{name} changed"
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.model.parameters())
    assert not torch.equal(result.soft_prompt, initial)


def test_training_learns_what_can_be_learnt(tiny):
    records: list[dict] = []
    result = train(tiny(), records=records, maximum_steps=120, learning_rate=0.1)
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert len(losses) == result.steps == 120
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert result.best.accuracy >= 0.9


def test_two_runs_give_the_same_bits_and_another_seed_does_not(tiny):
    first, second = train(tiny()), train(tiny())
    assert tensor_sha256(first.soft_prompt) == tensor_sha256(second.soft_prompt)
    assert tensor_sha256(first.soft_prompt) != tensor_sha256(train(tiny(), seed=1).soft_prompt)


def test_training_stops_when_the_metric_stops_improving_and_keeps_the_best(tiny):
    records: list[dict] = []
    result = train(tiny(), records=records, maximum_steps=400, evaluate_every=5, early_stopping_patience=2)
    evaluations = [record for record in records if record["event"] == "evaluation"]
    assert result.stopped_early
    assert result.steps < 400
    assert [record["best"] for record in evaluations[-2:]] == [False, False]
    best = max(evaluations, key=lambda record: (record["accuracy"], -record["loss"]))
    assert (best["step"], best["accuracy"]) == (result.best_step, result.best.accuracy)
    scores = score_examples(
        base=tiny(), soft_prompt=result.soft_prompt, head=(20,), examples=EXAMPLES, verbalizers=VERBALIZERS, batch_size=16
    )
    assert classification_result(scores, [example.label for example in EXAMPLES]).accuracy == result.best.accuracy


def test_divergence_is_an_error_that_says_what_to_change(tiny):
    base = tiny()
    broken = torch.full((5, base.hidden_size), float("nan"))
    with pytest.raises(TrainingError, match=r"diverged at step 1: loss nan.*Lower tune.learning_rate"):
        train_soft_prompt(
            base=base, soft_prompt=broken, head=(), verbalizers=VERBALIZERS, train=EXAMPLES, validation=EXAMPLES, settings=SETTINGS
        )


def test_learning_rate_schedules_start_peak_and_end_where_they_should():
    rates = {
        name: [learning_rate_at(step, replace(SETTINGS, schedule=name)) for step in range(40)] for name in ("cosine", "linear", "constant")
    }
    for name, values in rates.items():
        assert values[0] == pytest.approx(0.05 / 4), name
        assert max(values) == pytest.approx(0.05), name
    assert rates["constant"][-1] == 0.05
    assert rates["linear"][22] == pytest.approx(0.05 * 0.5)
    assert rates["cosine"][22] == pytest.approx(0.05 * 0.5)
    assert 0 < rates["cosine"][-1] < rates["linear"][-1]


def test_training_order_visits_every_example_once_per_epoch_in_batches_of_similar_length():
    examples = [Example([0] * (1 + index % 17), index) for index in range(64)]
    order = training_order(examples, batch_size=8, seed=3)
    epoch = [next(order) for _ in range(8)]
    assert sorted(example.label for batch in epoch for example in batch) == list(range(64))
    spread = max(max(len(e.token_ids) for e in batch) - min(len(e.token_ids) for e in batch) for batch in epoch)
    assert spread <= 4
    again = training_order(examples, batch_size=8, seed=3)
    assert [[e.label for e in next(again)] for _ in range(8)] == [[e.label for e in batch] for batch in epoch]
    second = [next(order) for _ in range(8)]
    assert [[e.label for e in batch] for batch in second] != [[e.label for e in batch] for batch in epoch]


def test_macro_f1_and_accuracy_equal_scikit_learns():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 4, generator=generator).log_softmax(-1)
    scores[:, 3] = -20.0  # a label never predicted
    scores = scores.log_softmax(-1)
    labels = torch.randint(0, 4, (200,), generator=generator).tolist()
    result = classification_result(scores, labels)
    predicted = scores.argmax(-1).tolist()
    assert result.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert result.macro_f1 == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    assert result.loss == pytest.approx(sklearn_metrics.log_loss(labels, scores.double().softmax(-1), labels=[0, 1, 2, 3]), rel=1e-4)
