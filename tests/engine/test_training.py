"""The training loop: what changes, what does not, and when it stops."""

import statistics
from dataclasses import replace

import pytest
import torch

from pipeline.engine.batching import Example, training_order, training_order_sha256
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.scoring import classification_result, score_examples
from pipeline.engine.training import TrialSettings, train
from pipeline.errors import TrainingError
from tests.engine.tiny_training import EXAMPLES, OPTIMISERS, SETTINGS, VERBALIZERS, fingerprint, run, tiny_learner


def of_event(records: list[dict], event: str) -> list[dict]:
    return [record for record in records if record["event"] == event]


def test_only_the_soft_prompt_changes_in_a_step(tiny):
    base = tiny()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    learner = tiny_learner(base)
    initial = {name: value.clone() for name, value in learner.modules[0].state_dict().items()}
    run(base, learner=learner, maximum_steps=1)
    after = base.model.state_dict()
    assert len(before) == len(after) > 10
    for name, value in before.items():
        assert torch.equal(value, after[name]), f"{name} changed"
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.model.parameters())
    found = learner.modules[0].state_dict()
    assert list(initial) == list(found) == ["encoder.embedding.weight"]
    assert not torch.equal(initial["encoder.embedding.weight"], found["encoder.embedding.weight"])


def test_training_learns_what_can_be_learnt(tiny):
    records: list[dict] = []
    result = run(
        tiny(),
        on_record=records.append,
        maximum_steps=120,
        optimiser=OptimiserSettings(learning_rate=0.1, warmup_ratio=0.1, maximum_steps=120),
    )
    losses = [record["loss"] for record in of_event(records, "step")]
    assert len(losses) == result.steps == 120
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert result.best.metrics["accuracy"] >= 0.9
    assert not result.stopped_early


@pytest.mark.parametrize("optimiser", list(OPTIMISERS))
def test_two_runs_give_the_same_bits_and_another_seed_does_not(tiny, optimiser):
    prints = []
    for seed in (0, 0, 1):
        records: list[dict] = []
        result = run(tiny(), seed=seed, optimiser=OPTIMISERS[optimiser], on_record=records.append)
        prints.append(fingerprint(result, records))
    assert prints[0] == prints[1]
    assert prints[0]["sha256"] != prints[2]["sha256"]


def test_training_stops_when_the_metric_stops_improving_and_keeps_the_best(tiny):
    records: list[dict] = []
    learner = tiny_learner(tiny())
    result = run(tiny(), learner=learner, on_record=records.append, maximum_steps=400, evaluate_every=5, early_stopping_patience=2)
    evaluations = of_event(records, "evaluation")
    assert result.stopped_early
    assert result.steps < 400
    assert result.trials[0].ended == "no gain in 2 evaluations"
    assert [record["best"] for record in evaluations[-2:]] == [False, False]
    best = max(evaluations, key=lambda record: (record["accuracy"], -record["loss"]))
    assert (best["step"], best["accuracy"]) == (result.best_step, result.best.metrics["accuracy"])
    scores = score_examples(base=tiny(), prefix=learner.prefix([0]), examples=EXAMPLES, verbalizers=VERBALIZERS, batch_size=16)
    again = classification_result(scores, [example.label for example in EXAMPLES])
    assert again.accuracy == result.best.metrics["accuracy"]
    assert again.loss == pytest.approx(result.best.loss, abs=1e-6)


def test_divergence_of_every_trial_is_an_error_that_says_what_to_change(tiny):
    learner = tiny_learner(tiny(), 2)
    for module in learner.modules:
        torch.nn.init.constant_(next(module.parameters()), float("nan"))
    records: list[dict] = []
    message = r"trial 0 diverged at step 1: loss nan.*trial 1 diverged at step 1.*Lower tune.learning_rate"
    with pytest.raises(TrainingError, match=message):
        run(tiny(), learner=learner, trials=2, on_record=records.append)
    assert [(record["kind"], record["trial"], record["step"]) for record in of_event(records, "problem")] == [
        ("divergence", 0, 1),
        ("divergence", 1, 1),
    ]


def test_a_trial_that_diverges_ends_alone_and_its_parameters_stay(tiny):
    learner = tiny_learner(tiny(), 2)
    values = next(learner.modules[0].parameters())
    with torch.no_grad():
        values[0, 0] = float("inf")
    before = values.detach().clone()
    records: list[dict] = []
    result = run(tiny(), learner=learner, trials=2, on_record=records.append)
    assert result.best_trial == 1
    assert result.trials[0].ended.startswith("diverged at step 1")
    assert torch.equal(values.detach(), before)
    steps = of_event(records, "step")
    assert sum(record["trial"] == 0 for record in steps) == 1
    assert sum(record["trial"] == 1 for record in steps) == 40
    assert [record["advice"] for record in of_event(records, "problem")] == [
        "Lower tune.learning_rate or tune.maximum_gradient_norm, or set base_model.dtype to float32."
    ]
    with pytest.raises(TrainingError, match=r"problem at step 1: trial 0 has the problem divergence"):
        run(tiny(), learner=learner, trials=2, on_problem="fail")


def test_a_trial_among_others_learns_what_it_learns_alone(tiny):
    together: list[dict] = []
    run(tiny(), trials=3, on_record=together.append)
    for trial in range(3):
        alone: list[dict] = []
        run(tiny(), seed=trial, on_record=alone.append)
        losses = [record["loss"] for record in of_event(together, "step") if record["trial"] == trial]
        assert len(losses) == 40
        assert losses == pytest.approx([record["loss"] for record in of_event(alone, "step")], abs=1e-4)


def test_halving_ends_the_worse_half_at_each_evaluation(tiny):
    records: list[dict] = []
    result = run(tiny(), trials=5, halving=True, on_record=records.append)
    evaluated = {step: [r for r in of_event(records, "evaluation") if r["step"] == step] for step in (10, 20, 30, 40)}
    assert [len(found) for found in evaluated.values()] == [5, 3, 2, 1]
    for step, following in ((10, 20), (20, 30), (30, 40)):
        ranked = sorted(evaluated[step], key=lambda r: (r["accuracy"], -r["loss"]), reverse=True)
        kept = {record["trial"] for record in evaluated[following]}
        assert kept == {record["trial"] for record in ranked[: len(kept)]}
        assert all(result.trials[r["trial"]].ended == f"halved away at step {step}" for r in ranked[len(kept) :])


def test_trials_have_their_own_learning_rates_and_the_spread_is_over_seeds_of_one_name(tiny):
    records: list[dict] = []
    trials = [
        TrialSettings(name=name, seed=seed, optimiser=replace(OPTIMISERS["adamw"], learning_rate=rate))
        for name, rate in (("slow", 0.001), ("fast", 0.1))
        for seed in (0, 1)
    ]
    result = train(
        learner=tiny_learner(tiny(), 4), trials=trials, train=EXAMPLES, validation=EXAMPLES, settings=SETTINGS, on_record=records.append
    )
    peaks = [max(r["learning_rate"] for r in of_event(records, "step") if r["trial"] == trial) for trial in range(4)]
    assert peaks == pytest.approx([0.001, 0.001, 0.1, 0.1])
    assert result.best_trial in (2, 3)
    spread = result.spread("accuracy")
    bests = [max(r["accuracy"] for r in of_event(records, "evaluation") if r["trial"] == trial) for trial in range(4)]
    for name, values in (("slow", bests[:2]), ("fast", bests[2:])):
        assert spread[name]["mean"] == pytest.approx(statistics.fmean(values), abs=1e-9)
        assert spread[name]["standard_deviation"] == pytest.approx(statistics.stdev(values), abs=1e-9)
        assert spread[name]["trials"] == 2


def test_gradients_are_clipped_to_the_norm_that_is_recorded_before_clipping(tiny):
    records: list[dict] = []
    learner = tiny_learner(tiny())
    run(tiny(), learner=learner, maximum_steps=1, maximum_gradient_norm=1e-4, on_record=records.append)
    assert of_event(records, "step")[0]["gradient_norm"] > 1e-3
    assert float(next(learner.modules[0].parameters()).grad.norm()) == pytest.approx(1e-4, rel=1e-2)


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


def test_the_order_hash_follows_the_examples_that_were_trained_on_and_nothing_else():
    examples = [Example(token_ids=[number] * (1 + number % 5), label=number % 2) for number in range(20)]

    def order(rows: list[Example], *, seed: int = 3, batches: int = 3) -> str:
        return training_order_sha256(rows, batch_size=4, seed=seed, batches=batches)

    seen = order(examples)
    assert order(list(examples)) == seen
    used = [example for _, batch in zip(range(3), training_order(examples, batch_size=4, seed=3), strict=False) for example in batch]
    unused = next(example for example in examples if example not in used)
    others = [Example([99] * len(example.token_ids), 0) if example is unused else example for example in examples]
    assert order(others) == seen
    relabelled = [Example(example.token_ids, 1 - example.label) if example is used[0] else example for example in examples]
    assert (
        len({seen, order(relabelled), order(examples[::-1]), order(examples, seed=4), order(examples, batches=4), order(others, batches=5)})
        == 6
    )


def test_macro_f1_and_accuracy_equal_scikit_learns():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 4, generator=generator).log_softmax(-1)
    scores[:, 3] = -20.0  # a label never predicted
    scores = scores.log_softmax(-1)
    labels = torch.randint(0, 4, (200,), generator=generator).tolist()
    result = Classification(VERBALIZERS).result(scores, [Example([0], label) for label in labels])
    predicted = scores.argmax(-1).tolist()
    assert result.metrics["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert result.metrics["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    assert result.loss == pytest.approx(sklearn_metrics.log_loss(labels, scores.double().softmax(-1), labels=[0, 1, 2, 3]), rel=1e-4)
    shares = [labels.count(label) / 200 for label in range(4)]
    constant = torch.tensor([shares] * 200, dtype=torch.float64).numpy()
    assert result.trivial_loss == pytest.approx(sklearn_metrics.log_loss(labels, constant, labels=[0, 1, 2, 3]))
    assert result.metrics["largest_prediction_share"] == max(predicted.count(label) for label in range(4)) / 200
