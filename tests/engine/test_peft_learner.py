"""Training through PEFT's forward: against transformers and PEFT themselves, one example at a time."""

import accelerate
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, DistilBertConfig, DistilBertForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.engine.base_model import load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.peft_adapter import build_peft_module, plain_module
from pipeline.engine.peft_learner import PeftLearner
from pipeline.engine.prefix_cache import empty_cache, layers_of
from pipeline.engine.shared_prefix import disagreement
from pipeline.engine.soft_prompt import flatten_key_values
from pipeline.engine.template import Verbalizers
from pipeline.engine.training import TrainingSettings, TrialSettings, train
from pipeline.errors import BaseModelError
from tests.engine.tiny_adapters import (
    CASES,
    EXAMPLES,
    HEAD,
    LOADERS,
    OWN,
    SETTINGS,
    SEVERAL,
    SINGLE,
    TOY,
    copied,
    learner_of,
    module_of,
    start,
    steps,
)
from tests.engine.tiny_models import make_tokenizer


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_step_changes_exactly_the_adapter_and_the_head(tiny, family, method):
    base = tiny(family)
    modules = [module_of(base, method, seed=seed) for seed in (0, 1)]
    trained = set(modules[0].state_dict())
    kinds = {"modules_to_save", "lora_A", "lora_B"} if method == "lora" else {"modules_to_save", "prompt_encoder"}
    assert all(any(kind in name for kind in kinds) for name in trained)
    assert any("classifier" in name for name in trained) == (family == "bert")
    before, base_before, other_before = copied(modules[0].model), copied(base.model), copied(modules[1].model)
    # Verbalizers of several tokens: with one, the decoder of T5 attends to a single token, and its queries have no gradient.
    steps(learner_of(base, modules, Classification(SEVERAL)))
    after = copied(modules[0].model)
    changed = {name.replace(".", "/") for name in after if not torch.equal(before[name], after[name])}
    assert changed == trained
    assert all(torch.equal(value, base_before[name]) for name, value in base.model.named_parameters())
    assert all(torch.equal(value, other_before[name]) for name, value in modules[1].model.named_parameters())


@pytest.mark.parametrize("length_normalisation", [False, True])
def test_encoder_decoder_scores_equal_a_naive_loop(tiny, length_normalisation):
    base = tiny("t5")
    module = module_of(base, "prompt_tuning")
    objective = Classification(SEVERAL, length_normalisation=length_normalisation)
    with torch.no_grad():
        found = learner_of(base, [module], objective).scores(module, EXAMPLES)
        prompt = module.model.get_prompt(batch_size=1)
        assert prompt.shape == (1, 4, 32)
        for row, own in enumerate(OWN):
            embeddings = torch.cat([prompt, base.model.shared(torch.tensor([[*HEAD, *own]]))], dim=1)
            for column, ids in enumerate(SEVERAL.token_ids):
                logits = base.model(inputs_embeds=embeddings, decoder_input_ids=torch.tensor([[1, *ids[:-1]]])).logits[0]
                expected = sum(float(logits[at].log_softmax(-1)[token]) for at, token in enumerate(ids))
                assert float(found[row, column]) == pytest.approx(expected / (len(ids) if length_normalisation else 1), abs=2e-5)


def test_encoder_decoder_loss_and_gradient_equal_a_naive_loops(tiny):
    base = tiny("t5")
    module = module_of(base, "prompt_tuning")
    losses = learner_of(base, [module], Classification(SEVERAL)).backward({0: EXAMPLES}, 1 / 3)

    prompt = start(base).requires_grad_(True)
    rows = []
    for own in OWN:
        embeddings = torch.cat([prompt, base.model.shared(torch.tensor([*HEAD, *own]))])[None]
        outputs = [base.model(inputs_embeds=embeddings, labels=torch.tensor([ids])) for ids in SEVERAL.token_ids]
        rows.append(torch.stack([-output.loss * len(ids) for output, ids in zip(outputs, SEVERAL.token_ids, strict=True)]))
    expected = torch.nn.functional.cross_entropy(torch.stack(rows), torch.tensor([0, 1, 2]))
    expected.backward()
    (found,) = [parameter.grad for parameter in module.parameters()]
    assert losses[0] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(prompt.grad.norm()) > 1e-4, "a vanishing gradient would prove nothing"
    assert float((found - prompt.grad).norm() / prompt.grad.norm()) <= 1e-5


def test_encoder_scores_are_the_heads_logits_behind_the_prompt(tiny):
    base = tiny("bert")
    module = module_of(base, "prompt_tuning")
    with torch.no_grad():
        found = learner_of(base, [module]).scores(module, EXAMPLES)
        head = module.model.base_model.classifier.modules_to_save["default"]
        for row, own in enumerate(OWN):
            words = base.model.bert.embeddings.word_embeddings(torch.tensor([[*HEAD, *own]]))
            pooled = base.model.bert(inputs_embeds=torch.cat([module.model.get_prompt(1), words], dim=1)).pooler_output
            torch.testing.assert_close(found[row], torch.nn.functional.linear(pooled, head.weight, head.bias)[0], atol=1e-5, rtol=1e-5)


def test_sliding_window_loss_and_gradient_equal_pefts(tiny):
    base = tiny("mistral_sliding")
    learner = learner_of(base, [module_of(base, "prompt_tuning")])
    losses = learner.backward({0: EXAMPLES}, 1 / 3)

    plain = AutoModelForCausalLM.from_pretrained(base.folder)
    model = peft.get_peft_model(plain, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=32)).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(start(base))
    logits = torch.stack([model(input_ids=torch.tensor([[*HEAD, *own]])).logits[0, -1, [60, 61, 62]] for own in OWN])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
    expected.backward()
    assert losses[0] == pytest.approx(float(expected.detach()), rel=1e-5)
    (found,) = [parameter.grad for parameter in learner.modules[0].parameters()]
    assert float(weight.grad.norm()) > 1e-4, "a vanishing gradient would prove nothing"
    assert float((found - weight.grad).norm() / weight.grad.norm()) <= 1e-5


def test_a_prefix_of_a_texts_keys_and_values_is_that_text_within_a_sliding_window_too(tiny):
    base = tiny("mistral_sliding")
    text, cache = [22, 23, 24, 26], empty_cache()
    module = module_of(base, "prefix_tuning")
    with torch.no_grad():
        base.model(input_ids=torch.tensor([text]), past_key_values=cache, use_cache=True)
        next(module.parameters()).copy_(flatten_key_values(layers_of(cache)))
        found = learner_of(base, [module]).scores(module, EXAMPLES)
        plain = [base.model(torch.tensor([[*text, *HEAD, *own]])).logits[0, -1, [60, 61, 62]] for own in OWN]
    assert len(text) + len(HEAD) + len(OWN[0]) > base.model.config.sliding_window
    torch.testing.assert_close(found, torch.stack(plain), atol=1e-5, rtol=1e-5)


def test_decoder_scores_of_several_tokens_equal_plain_forwards(tiny):
    base = tiny("mistral_sliding")
    module = module_of(base, "lora")
    with torch.no_grad():
        found = learner_of(base, [module], Classification(SEVERAL)).scores(module, EXAMPLES)
        for row, own in enumerate(OWN):
            for column, ids in enumerate(SEVERAL.token_ids):  # a new LoRA adapter adds nothing
                log_probabilities = base.model(torch.tensor([[*HEAD, *own, *ids]])).logits[0].log_softmax(-1)
                at = len(HEAD) + len(own) - 1
                expected = sum(float(log_probabilities[at + depth, token]) for depth, token in enumerate(ids))
                assert float(found[row, column]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("family", LOADERS)
def test_a_score_depends_neither_on_batch_mates_nor_on_padding(tiny, family):
    base = tiny(family)
    module = module_of(base, "prefix_tuning")
    learner = learner_of(base, [module], Classification(SEVERAL))
    with torch.no_grad():
        alone = torch.cat([learner.scores(module, [example]) for example in EXAMPLES])
        torch.testing.assert_close(learner.scores(module, [*EXAMPLES, Example(list(range(20, 80)), 0)])[:3], alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "method"),
    [("t5", "prompt_tuning"), ("bert", "prompt_tuning"), ("mistral_sliding", "prompt_tuning"), ("mistral_sliding", "lora")],
)
def test_training_improves_each_architecture(tiny, family, method):
    base = tiny(family)
    learner = learner_of(base, [module_of(base, method, seed=seed) for seed in (0, 1)])
    before = learner.result(learner.log_probabilities(0, TOY), TOY)
    optimiser = OptimiserSettings(name="adamw", learning_rate=0.05, maximum_steps=12)
    settings = TrainingSettings(
        maximum_gradient_norm=1.0, batch_size=8, maximum_steps=12, evaluate_every=6, early_stopping_patience=9, metric="accuracy"
    )
    trials = [TrialSettings(name="one", seed=seed, optimiser=optimiser) for seed in (0, 1)]
    result = train(learner=learner, trials=trials, train=TOY, validation=TOY, settings=settings)
    assert all(trial.best.loss < before.loss - 0.05 for trial in result.trials)
    assert learner.result(learner.log_probabilities(result.best_trial, TOY), TOY).loss == pytest.approx(result.best.loss, abs=1e-6)


class SmallMemory(PeftLearner):
    """A learner on a machine where more than two examples do not fit."""

    def scores(self, module, examples):
        found = super().scores(module, examples)
        if len(examples) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return found


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_gradient(tiny):
    base = tiny("bert")
    batch = TOY[:7]
    whole, halved = (
        kind(base=base, head=HEAD, objective=SINGLE, modules=[module_of(base, "prompt_tuning")]) for kind in (PeftLearner, SmallMemory)
    )
    losses = [learner.backward({0: batch}, 1 / 7)[0] for learner in (whole, halved)]
    assert halved.rows_at_once == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for one, other in zip(whole.modules[0].parameters(), halved.modules[0].parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("family", "method"), [("t5", "prompt_tuning"), ("bert", "p_tuning"), ("mistral_sliding", "lora")])
def test_gradient_checkpointing_computes_the_layers_again_and_gives_the_same_gradient(tiny, family, method):
    base = tiny(family)
    runs, gradients = [], []
    for checkpointing in (False, True):
        module = module_of(base, method, gradient_checkpointing=checkpointing)
        learner = learner_of(base, [module])
        layers = [part for part in module.model.modules() if isinstance(part, GradientCheckpointingLayer)]
        passed = []
        for layer in layers:
            # Inside the layer, since the layer itself is called once and only what is in it is run again.
            next(part for part in layer.modules() if isinstance(part, torch.nn.Linear)).register_forward_hook(
                lambda *_, passed=passed: passed.append(1)
            )
        learner.backward({0: EXAMPLES}, 1.0)
        runs.append(len(passed))
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert runs[1] == 2 * runs[0] > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)


def test_a_base_model_that_accelerate_has_spread_out_trains_alike(model_folder, tiny, tmp_path):
    source = {"kind": "directory", "id": "tiny/mistral_sliding", "path": str(model_folder("mistral_sliding"))}
    base = load_base_model(source=source, dtype="float32", device="cpu")
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
    }
    accelerate.dispatch_model(base.model, {**places, "lm_head": "cpu"}, main_device="cpu", offload_dir=tmp_path)
    assert base.model.model.layers[0].mlp.up_proj.weight.device.type == "meta", "nothing was offloaded"
    learners = [learner_of(one, [module_of(one, "prompt_tuning")]) for one in (base, tiny("mistral_sliding"))]
    losses = [learner.backward({0: EXAMPLES}, 1 / 3)[0] for learner in learners]
    gradients = [next(learner.modules[0].parameters()).grad for learner in learners]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_an_encoder_family_without_key_value_prefix_is_refused(tmp_path):
    torch.manual_seed(1)
    config = DistilBertConfig(vocab_size=320, max_position_embeddings=128, dim=32, hidden_dim=64, n_layers=2, n_heads=4, num_labels=3)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    source = {"kind": "directory", "id": "tiny/distilbert", "path": str(tmp_path)}
    base = load_base_model(source=source, dtype="float32", device="cpu", num_labels=3)
    with pytest.raises(BaseModelError, match=r"tiny/distilbert is of a family \(distilbert\) that takes no key/value prefix"):
        module_of(base, "prefix_tuning")
    steps(learner_of(base, [module_of(base, "prompt_tuning")]))


@pytest.mark.parametrize("family", ["bloom", "gpt_neo", "granite", "qwen3_next"])
def test_families_that_the_shared_pass_refuses_are_scored_as_by_themselves(tiny, family):
    base = tiny(family)
    assert disagreement(base) is not None
    module = module_of(base, "prompt_tuning")
    with torch.no_grad():
        found = learner_of(base, [module]).scores(module, EXAMPLES)
        for row, own in enumerate(OWN):
            embeddings = torch.cat([start(base), base.model.get_input_embeddings()(torch.tensor([*HEAD, *own]))])
            plain = base.model(inputs_embeds=embeddings[None]).logits[0, -1, [60, 61, 62]]
            torch.testing.assert_close(found[row], plain, atol=1e-5, rtol=1e-5)


def test_a_prefix_before_recurrent_attention_is_refused(tiny):
    base = tiny("qwen3_next")
    with pytest.raises(BaseModelError, match=r"tiny/qwen3_next cannot be scored through PEFT with PREFIX_TUNING: .* found ValueError: "):
        learner_of(base, [build_peft_module(base=base, settings=SETTINGS["prefix_tuning"], num_virtual_tokens=3, seed=0)])


def test_the_plain_base_model_is_asked_in_the_same_way_and_refused_in_the_same_words(tiny):
    base = tiny("t5")
    learner = learner_of(base, [plain_module(base)])
    with torch.no_grad():
        plain = [base.model(input_ids=torch.tensor([[*HEAD, *own]]), decoder_input_ids=torch.tensor([[1]])).logits[0, 0] for own in OWN]
    torch.testing.assert_close(learner.log_probabilities(0, EXAMPLES), torch.stack(plain)[:, [60, 61, 62]].log_softmax(-1))
    two = Classification(Verbalizers(("a", "b"), ((60,), (61,))))
    with pytest.raises(
        BaseModelError, match=r"tiny/bert cannot be scored through PEFT with no adapter: .* \[1, 2\] were expected, found \[1, 3\]"
    ):
        learner_of(tiny("bert"), [plain_module(tiny("bert"))], two)
