"""Every method against PEFT's own model, and where each starts."""

from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.template import Verbalizers
from pipeline.engine.training import TrainingSettings, TrialSettings, train

HEAD = (20, 21)
EXAMPLES = [Example([30, 31, 32, 33], 0), Example([40], 1), Example([50, 51, 52], 0)]
VERBALIZERS = Verbalizers(("a", "b"), ((60,), (61,)))
TEXT = "the plane was late"
COUNT = 6

METHODS = {
    "prompt_tuning": {"name": "prompt_tuning"},
    "residual_prompt_tuning": {"name": "residual_prompt_tuning", "bottleneck": 12},
    "p_tuning_mlp": {"name": "p_tuning"},
    "p_tuning_lstm": {"name": "p_tuning", "encoder": "LSTM", "encoder_hidden_size": 20},
    "multitask_prompt_tuning": {"name": "multitask_prompt_tuning"},
    "multitask_prompt_tuning_ranks": {"name": "multitask_prompt_tuning", "ranks": 3},
    "prefix_tuning": {"name": "prefix_tuning"},
    "prefix_tuning_projection": {"name": "prefix_tuning", "projection": True, "encoder_hidden_size": 24},
}
PEFT_CONFIGS: dict[str, Any] = {
    "prompt_tuning": lambda common: peft.PromptTuningConfig(**common),
    "p_tuning_mlp": lambda common: peft.PromptEncoderConfig(encoder_reparameterization_type="MLP", **common),
    "p_tuning_lstm": lambda common: peft.PromptEncoderConfig(encoder_reparameterization_type="LSTM", encoder_hidden_size=20, **common),
    "multitask_prompt_tuning": lambda common: peft.MultitaskPromptTuningConfig(**common),
    "multitask_prompt_tuning_ranks": lambda common: peft.MultitaskPromptTuningConfig(num_ranks=3, **common),
    "prefix_tuning": lambda common: peft.PrefixTuningConfig(**common),
    "prefix_tuning_projection": lambda common: peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=24, **common),
}


def text_rows(base, count=COUNT):
    return initial_embeddings(base=base, num_virtual_tokens=count, initialisation=Initialisation(kind="text", text=TEXT), seed=0)


def made(base, method, seed=3, count=COUNT):
    return build_method(base=base, settings=MethodSettings(**METHODS[method]), embeddings=text_rows(base, count), seed=seed)


def learner_of(base, module):
    return SharedPrefixLearner(base=base, head=HEAD, objective=Classification(VERBALIZERS), modules=[module])


def loss_of(logits):
    """Mean cross-entropy over the two verbalizers, from the logits [B, V] after the last token."""
    return torch.nn.functional.cross_entropy(logits[:, [60, 61]], torch.tensor([example.label for example in EXAMPLES]))


def last_logits(model, **more):
    """Logits after the last token of a PEFT model, one example at a time: no padding, no batch."""
    rows = []
    for example in EXAMPLES:
        ids = torch.tensor([[*HEAD, *example.token_ids]])
        rows.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0, -1])
    return torch.stack(rows)


def moved(module):
    """Away from its start, so that no gradient is zero by construction."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


def assert_same_gradients(module, expected):
    """`expected` maps the encoder's parameter names to gradients; rel 1e-5 in norm."""
    found = dict(module.encoder.named_parameters())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float(gradient.norm()) > 1e-6, f"{name}: a vanishing gradient would prove nothing"
        assert float((found[name].grad - gradient).norm() / gradient.norm()) <= 1e-5, name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", PEFT_CONFIGS)
def test_loss_and_gradients_equal_pefts(tiny, family, method):
    base = tiny(family)
    module = moved(made(base, method))
    found = learner_of(base, module).backward({0: EXAMPLES}, 1 / len(EXAMPLES))[0]

    model: Any = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base.folder), PEFT_CONFIGS[method]({"task_type": "CAUSAL_LM", "num_virtual_tokens": COUNT})
    )
    model.base_model.eval()
    theirs = model.prompt_encoder["default"]
    theirs.load_state_dict(module.encoder.state_dict(), strict=True)
    more = {"task_ids": torch.zeros(1, dtype=torch.long)} if "multitask" in method else {}
    loss = loss_of(last_logits(model, **more))
    loss.backward()
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_same_gradients(module, {name: parameter.grad for name, parameter in theirs.named_parameters()})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_residual_loss_and_gradients_equal_a_calculation_by_hand(tiny, family):
    base = tiny(family)
    module = moved(made(base, "residual_prompt_tuning"))
    found = learner_of(base, module).backward({0: EXAMPLES}, 1 / len(EXAMPLES))[0]

    copies = {name: parameter.detach().clone().requires_grad_() for name, parameter in module.encoder.named_parameters()}
    rows, down, down_bias, up, up_bias, scale, shift = copies.values()
    branch = (rows @ down.T + down_bias).clamp(min=0) @ up.T + up_bias
    centred = branch - branch.mean(1, keepdim=True)
    soft_prompt = rows + scale * centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() + shift
    embed = base.model.get_input_embeddings()
    logits = [
        base.model(inputs_embeds=torch.cat([soft_prompt, embed(torch.tensor([*HEAD, *one.token_ids]))])[None]).logits[0, -1]
        for one in EXAMPLES
    ]
    loss = loss_of(torch.stack(logits))
    loss.backward()
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_same_gradients(module, {name: copy.grad for name, copy in copies.items()})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_with_the_logits_of_the_text_itself(tiny, family, method):
    base = tiny(family)
    learner = learner_of(base, made(base, method))
    outputs = Classification(VERBALIZERS).losses(base, learner.prefix([0]), [0] * len(EXAMPLES), EXAMPLES)
    ids = base.tokenizer(TEXT)["input_ids"]
    text = [ids[index % len(ids)] for index in range(COUNT)]
    with torch.no_grad():
        plain = torch.stack([base.model(torch.tensor([[*text, *HEAD, *one.token_ids]])).logits[0, -1] for one in EXAMPLES])
    expected = torch.nn.functional.cross_entropy(plain[:, [60, 61]], torch.tensor([one.label for one in EXAMPLES]), reduction="none")
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_change_every_parameter_of_the_method_and_nothing_else(tiny, method):
    base = tiny()
    module = made(base, method)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    # Two, not one: what stands behind a layer that starts at 0 moves from the second step on.
    train(
        learner=learner_of(base, module),
        trials=[TrialSettings(name=method, seed=0, optimiser=OptimiserSettings(learning_rate=0.01, schedule="constant", maximum_steps=2))],
        train=EXAMPLES,
        validation=EXAMPLES,
        settings=TrainingSettings(
            maximum_gradient_norm=1.0, batch_size=3, maximum_steps=2, evaluate_every=2, early_stopping_patience=9, metric="accuracy"
        ),
    )
    after = base.model.state_dict()
    assert len(before) == len(after) > 10
    for name, value in before.items():
        assert torch.equal(value, after[name]), f"{name} of the base model changed"
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.model.parameters())
    trained = dict(module.named_parameters())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in trained.values())
    unchanged = [name for name, value in start.items() if torch.equal(value, trained[name])]
    assert unchanged == [], "these parameters never move"


def test_ranks_of_a_multitask_prompt_do_not_stay_alike(tiny):
    module = made(tiny(), "multitask_prompt_tuning_ranks")
    learner_of(tiny(), module).backward({0: EXAMPLES}, 1 / len(EXAMPLES))
    gradient = module.encoder.prefix_task_cols.grad[0]
    for other in (1, 2):
        assert float((gradient[:, 0] - gradient[:, other]).norm()) > 0.1 * float(gradient[:, other].norm()) > 0


@pytest.mark.parametrize("method", ["p_tuning_mlp", "p_tuning_lstm", "prefix_tuning_projection", "residual_prompt_tuning"])
def test_networks_depend_on_the_seed_and_on_no_global_state(tiny, method):
    base = tiny()
    before = torch.random.get_rng_state()
    first = made(base, method, seed=1).state_dict()
    torch.rand(3)
    again, other = made(base, method, seed=1).state_dict(), made(base, method, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.random.set_rng_state(before)
    made(base, method, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_too_narrow_for_the_start_comes_as_near_as_it_can(tiny):
    base = tiny()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, base.hidden_size, generator=generator)
    settings = MethodSettings(name="p_tuning", encoder_hidden_size=8)
    module = build_method(base=base, settings=settings, embeddings=rows, seed=0)
    error = module().values.detach() - rows
    features = module.encoder.mlp_head[:-1](module.encoder.embedding.weight).detach()
    # The residual of least squares is orthogonal to everything the last layer can add.
    assert float((features.T @ error).abs().max()) < 1e-3
    assert 0.1 < float(error.norm() / rows.norm()) < 1
