"""Trials share a batch and nothing else: each learns what it would learn alone."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.scoring import score_examples
from pipeline.engine.shared_prefix import encode_prefixes
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.template import Verbalizers
from pipeline.engine.training import TrainingSettings, TrialSettings, train

HEAD = (20,)
VERBALIZERS = Verbalizers(("a", "b"), ((60,), (61, 63)))
# Two kinds of texts that differ in their first token, of 3 to 7 tokens.
EXAMPLES = [Example([30 + 10 * (index % 2), 25, 26, *range(70, 70 + index % 5)], index % 2) for index in range(24)]
STEPS = 12
SETTINGS = {"maximum_gradient_norm": 0.5, "batch_size": 4, "maximum_steps": STEPS, "evaluate_every": 4, "early_stopping_patience": 99}


@dataclass(frozen=True)
class Plan:
    """One trial: everything that may differ between trials of a batch."""

    seed: int
    rate: float
    count: int
    start: str = "text"
    optimiser: str = "adamw"
    method: str = "prompt_tuning"
    sizes: tuple[tuple[str, Any], ...] = ()
    name: str = "x"


OF_EMBEDDINGS = [
    Plan(0, 0.05, 6),
    Plan(1, 0.05, 6),
    Plan(0, 0.005, 3, "class_labels"),
    Plan(2, 0.3, 9, "random_uniform", "adafactor"),
    Plan(3, 0.02, 1, "sample_vocabulary"),
    Plan(4, 0.01, 4, method="residual_prompt_tuning", sizes=(("bottleneck", 8),)),
    Plan(5, 0.002, 5, method="p_tuning"),
    Plan(6, 0.002, 5, method="p_tuning", sizes=(("encoder", "LSTM"),)),
    Plan(7, 0.02, 7, method="multitask_prompt_tuning", sizes=(("ranks", 2),)),
]
OF_KEY_VALUES = [
    Plan(0, 0.02, 6, method="prefix_tuning"),
    Plan(1, 0.2, 2, "class_labels", "adafactor", method="prefix_tuning"),
    Plan(2, 0.005, 4, method="prefix_tuning", sizes=(("projection", True),)),
]


def module_of(base, plan):
    if plan.start == "broken":
        settings = MethodSettings(name="prompt_tuning")
        return build_method(base=base, settings=settings, embeddings=torch.full((plan.count, base.hidden_size), float("nan")), seed=0)
    embeddings = initial_embeddings(
        base=base,
        num_virtual_tokens=plan.count,
        initialisation=Initialisation(kind=plan.start, text="the plane was late" if plan.start == "text" else ""),
        seed=plan.seed,
        verbalizers=VERBALIZERS.token_ids,
        corpus=[example.token_ids for example in EXAMPLES],
    )
    return build_method(base=base, settings=MethodSettings(name=plan.method, **dict(plan.sizes)), embeddings=embeddings, seed=plan.seed)


class Watched(SharedPrefixLearner):
    """Notes which trials take part in each step."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.took_part: list[list[int]] = []

    def backward(self, batches, weight):
        self.took_part.append(sorted(batches))
        return super().backward(batches, weight)


def run(base, plans, rows_at_once=None, **changes):
    """Train the plans in one batch; returns the result, the learner and, per trial, losses by step and evaluation."""
    learner = Watched(
        base=base,
        head=HEAD,
        objective=Classification(VERBALIZERS),
        modules=[module_of(base, plan) for plan in plans],
        rows_at_once=rows_at_once,
    )
    trials = [
        TrialSettings(
            name=plan.name,
            seed=plan.seed,
            optimiser=OptimiserSettings(name=plan.optimiser, learning_rate=plan.rate, warmup_ratio=0.2, maximum_steps=STEPS),
        )
        for plan in plans
    ]
    losses: list[dict[tuple[str, int], float]] = [{} for _ in plans]

    def on_record(record):
        if record["event"] != "problem":
            losses[record["trial"]][record["event"], record["step"]] = record["loss"]

    result = train(
        learner=learner,
        trials=trials,
        train=EXAMPLES,
        validation=EXAMPLES,
        settings=TrainingSettings(**{**SETTINGS, "metric": "accuracy", **changes}),
        on_record=on_record,
    )
    return result, learner, losses


def assert_same_losses(found, expected):
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) <= 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("plans", [OF_EMBEDDINGS, OF_KEY_VALUES], ids=["embeddings", "key_values"])
def test_every_trial_of_a_batch_has_the_losses_it_has_alone(tiny, family, plans):
    base = tiny(family)
    together, learner, losses = run(base, plans)
    assert len(losses[0]) == STEPS + STEPS // 4
    for index, plan in enumerate(plans):
        alone, solo, expected = run(base, [plan])
        assert abs(expected[0]["step", STEPS] - expected[0]["step", 1]) > 1e-3, "a trial that does not move would prove nothing"
        assert_same_losses(losses[index], expected[0])
        found, best = together.trials[index].best_state, alone.trials[0].best_state
        assert together.trials[index].best_step == alone.best_step
        # What was kept as best is the same trained module; Adam's first steps blow rounding of tiny gradients up, hence not 1e-6.
        for name, value in best.items():
            torch.testing.assert_close(found[name], value, atol=2e-3, rtol=0)
        assert learner.took_part == [list(range(len(plans)))] * STEPS
        assert solo.took_part == [[0]] * STEPS


def test_fewer_rows_at_once_change_no_loss(tiny):
    plans = OF_EMBEDDINGS[:4]
    _, _, expected = run(tiny(), plans)
    _, _, found = run(tiny(), plans, rows_at_once=3)
    for index in range(len(plans)):
        assert_same_losses(found[index], expected[index])


def test_halving_frees_rows_and_leaves_the_survivors_as_they_are(tiny):
    plans = [Plan(seed, rate, 4) for seed, rate in ((0, 0.05), (1, 0.0001), (2, 0.03), (3, 0.0), (4, 0.01))]
    result, learner, losses = run(tiny(), plans, halving=True)
    _, _, unhalved = run(tiny(), plans)
    assert [len(trials) for trials in learner.took_part] == [5] * 4 + [3] * 4 + [2] * 4
    survivors = learner.took_part[-1]
    for index in range(len(plans)):
        assert losses[index].items() <= {**unhalved[index], **losses[index]}.items()
        for key, loss in losses[index].items():
            assert loss == pytest.approx(unhalved[index][key], abs=1e-4)
    # Who is given up is the worse half by the validation metric, then by the loss, at that evaluation.
    for before, after, step in ((learner.took_part[0], learner.took_part[4], 4), (learner.took_part[4], survivors, 8)):
        order = sorted(before, key=lambda index: unhalved[index]["evaluation", step])
        assert after == sorted(order[: len(after)])
        for index in set(before) - set(after):
            assert result.trials[index].ended == f"halved away at step {step}"
            assert max(key[1] for key in losses[index]) == step
    assert result.best_trial in survivors


def test_a_trial_that_diverges_leaves_the_others_as_they_are(tiny):
    plans = [Plan(0, 0.05, 6), Plan(1, 0.05, 4, "broken"), Plan(2, 0.02, 3)]
    result, learner, losses = run(tiny(), plans)
    assert result.trials[1].ended.startswith("diverged at step 1: loss nan")
    assert learner.took_part == [[0, 1, 2]] + [[0, 2]] * (STEPS - 1)
    for index in (0, 2):
        assert_same_losses(losses[index], run(tiny(), [plans[index]])[2][0])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("head", [HEAD, ()])
def test_tuned_prompts_of_several_lengths_score_in_one_mixed_batch_as_alone(tiny, family, kind, head):
    base = tiny(family)
    width = base.hidden_size if kind == "embeddings" else 2 * 2 * (2 if family == "llama" else 4) * 8
    generator = torch.Generator().manual_seed(0)
    soft_prompts: list[SoftPrompt | None] = [SoftPrompt(torch.randn(count, width, generator=generator), kind) for count in (1, 7, 4)]
    if kind == "embeddings":
        soft_prompts.append(None)  # the hard prompt alone is scored beside them
    rows = [index % len(soft_prompts) for index in range(len(EXAMPLES))]

    def score(prefixes, examples, **more):
        with torch.no_grad():
            prefix = encode_prefixes(base, prefixes, head)
        return score_examples(base=base, prefix=prefix, examples=examples, verbalizers=VERBALIZERS, batch_size=5, **more).numpy()

    mixed = score(soft_prompts, EXAMPLES, rows=rows)
    alone = np.stack([score([one], EXAMPLES) for one in soft_prompts])
    assert np.abs(alone - alone[0]).max() > 0.05, "prompts that score alike would prove nothing"
    np.testing.assert_allclose(mixed, alone[rows, np.arange(len(EXAMPLES))], atol=2e-5)


def test_spread_is_the_mean_and_sample_standard_deviation_over_the_seeds_of_a_name(tiny):
    plans = [Plan(seed, rate, 2, name=f"rate {rate}") for rate in (0.05, 0.005) for seed in range(3)]
    result, _, _ = run(tiny(), [*plans, Plan(0, 0.05, 2, name="one seed"), Plan(0, 0.05, 2, "broken", name="broken")])
    values = [0.5, 0.25, 0.875, 0.75, 0.75, 0.5, 0.125]
    for trial, value in zip(result.trials, values, strict=False):
        assert trial.best is not None
        trial.best = replace(trial.best, metrics={"accuracy": -1.0, "macro_f1": value})
    spread = result.spread("macro_f1")
    assert list(spread) == ["rate 0.05", "rate 0.005", "one seed"], "a trial that was never evaluated has no part in it"
    for name, of_name in (("rate 0.05", values[:3]), ("rate 0.005", values[3:6])):
        assert spread[name]["mean"] == pytest.approx(np.mean(of_name))
        assert spread[name]["standard_deviation"] == pytest.approx(np.std(of_name, ddof=1))
        assert spread[name]["trials"] == 3
    assert spread["one seed"]["mean"] == 0.125
    assert np.isnan(spread["one seed"]["standard_deviation"]), "one seed says nothing about the spread"
