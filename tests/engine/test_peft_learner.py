"""Training through PEFT's forward: against transformers and PEFT themselves, one example at a time."""

import json

import accelerate
import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.engine.base_model import load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.methods import MethodSettings
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.peft_adapter import LoraSettings, PeftModule, build_peft_module, load_peft_module, save_peft_module
from pipeline.engine.peft_learner import PeftLearner
from pipeline.engine.prefix_cache import empty_cache, layers_of
from pipeline.engine.soft_prompt import WEIGHTS_FILE, flatten_key_values
from pipeline.engine.support import METHODS, SUPPORT
from pipeline.engine.template import Verbalizers
from pipeline.engine.training import TrainingSettings, TrialSettings, train
from pipeline.errors import BaseModelError, BundleError
from tests.engine.tiny_models import family_config, make_tokenizer

FAMILIES = {"decoder": "mistral_sliding", "encoder_decoder": "t5", "encoder": "bert"}
LOADERS = {"mistral_sliding": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM, "bert": AutoModelForSequenceClassification}
SETTINGS = {
    **{name: MethodSettings(name=name) for name in METHODS if name != "lora"},
    "lora": LoraSettings(rank=2, alpha=4),
    "p_tuning with LSTM": MethodSettings(name="p_tuning", encoder="LSTM", encoder_hidden_size=8),
    "prefix_tuning with projection": MethodSettings(name="prefix_tuning", projection=True, encoder_hidden_size=8),
}
CASES = [(FAMILIES[architecture], method) for method in SETTINGS for architecture in SUPPORT[method.split()[0]]]
HEAD = (20, 21)
OWN = [[30, 31, 32, 33, 34, 35, 36, 37], [40], [50, 51, 52]]
EXAMPLES = [Example(own, label) for label, own in enumerate(OWN)]
SINGLE = Classification(Verbalizers(("a", "b", "c"), ((60,), (61,), (62,))))
SEVERAL = Verbalizers(("a", "b", "c"), ((60,), (61, 70), (62, 71, 72)))
TOY = [Example([30 + 10 * (number % 3), 25, *range(70, 70 + number % 4)], number % 3) for number in range(24)]


@pytest.fixture(scope="module")
def base_of(model_folder):
    loaded = {}

    def base(family):
        if family not in loaded:
            source = {"kind": "directory", "id": f"tiny/{family}", "path": str(model_folder(family))}
            labels = 3 if family == "bert" else None
            loaded[family] = load_base_model(source=source, dtype="float32", device="cpu", num_labels=labels)
        return loaded[family]

    return base


def start(base, tokens=4):
    text = Initialisation(kind="text", text="the plane was late and nobody said a word")
    return initial_embeddings(base=base, num_virtual_tokens=tokens, initialisation=text, seed=0)


def module_of(base, method, *, seed=0, **more):
    return build_peft_module(base=base, settings=SETTINGS[method], embeddings=start(base), seed=seed, **more)


def learner_of(base, modules, objective=SINGLE, **more):
    return PeftLearner(base=base, head=HEAD, objective=objective, modules=modules, **more)


def steps(learner, trials=(0,), count=2):
    """A few optimiser steps; LoRA's first factor has no gradient in the first."""
    optimisers = [torch.optim.AdamW(learner.modules[trial].parameters(), lr=0.05) for trial in trials]
    for _ in range(count):
        for optimiser in optimisers:
            optimiser.zero_grad()
        learner.backward(dict.fromkeys(trials, EXAMPLES), 1 / 3)
        for optimiser in optimisers:
            optimiser.step()


def copied(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_step_changes_exactly_the_adapter_and_the_head(base_of, family, method):
    base = base_of(family)
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


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_reload_gives_equal_scores_and_plain_peft_gives_our_logits(base_of, tmp_path, family, method):
    base = base_of(family)
    learner = learner_of(base, [module_of(base, method)])
    steps(learner)
    save_peft_module(tmp_path, module=learner.modules[0], base=base)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == f"tiny/{family}"

    ours = learner.log_probabilities(0, EXAMPLES)
    reloaded = learner_of(base, [load_peft_module(tmp_path, base)])
    torch.testing.assert_close(reloaded.log_probabilities(0, EXAMPLES), ours, atol=1e-5, rtol=1e-5)
    assert not list(reloaded.modules[0].parameters())

    extra = {"num_labels": 3} if family == "bert" else {}
    plain = peft.PeftModel.from_pretrained(LOADERS[family].from_pretrained(base.folder, **extra), tmp_path).eval()
    rows = []
    for own in OWN:
        inputs = {"input_ids": torch.tensor([[*HEAD, *own]])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if family == "t5":
            inputs["decoder_input_ids"] = torch.tensor([[1]])
        with torch.no_grad():
            logits = plain(**inputs).logits
        rows.append(logits[0] if family == "bert" else logits[0, -1, [60, 61, 62]])
    torch.testing.assert_close(torch.stack(rows).log_softmax(-1), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length_normalisation", [False, True])
def test_encoder_decoder_scores_equal_a_naive_loop(base_of, length_normalisation):
    base = base_of("t5")
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


def test_encoder_scores_are_the_heads_logits_behind_the_prompt(base_of):
    base = base_of("bert")
    module = module_of(base, "prompt_tuning")
    with torch.no_grad():
        found = learner_of(base, [module]).scores(module, EXAMPLES)
        head = module.model.base_model.classifier.modules_to_save["default"]
        for row, own in enumerate(OWN):
            words = base.model.bert.embeddings.word_embeddings(torch.tensor([[*HEAD, *own]]))
            pooled = base.model.bert(inputs_embeds=torch.cat([module.model.get_prompt(1), words], dim=1)).pooler_output
            torch.testing.assert_close(found[row], torch.nn.functional.linear(pooled, head.weight, head.bias)[0], atol=1e-5, rtol=1e-5)


def test_sliding_window_loss_and_gradient_equal_pefts(base_of):
    base = base_of("mistral_sliding")
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


def test_a_prefix_of_a_texts_keys_and_values_is_that_text_within_a_sliding_window_too(base_of):
    base = base_of("mistral_sliding")
    text, cache = [22, 23, 24, 26], empty_cache()
    module = module_of(base, "prefix_tuning")
    with torch.no_grad():
        base.model(input_ids=torch.tensor([text]), past_key_values=cache, use_cache=True)
        next(module.parameters()).copy_(flatten_key_values(layers_of(cache)))
        found = learner_of(base, [module]).scores(module, EXAMPLES)
        plain = [base.model(torch.tensor([[*text, *HEAD, *own]])).logits[0, -1, [60, 61, 62]] for own in OWN]
    assert len(text) + len(HEAD) + len(OWN[0]) > base.model.config.sliding_window
    torch.testing.assert_close(found, torch.stack(plain), atol=1e-5, rtol=1e-5)


def test_decoder_scores_of_several_tokens_equal_plain_forwards(base_of):
    base = base_of("mistral_sliding")
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
def test_a_score_depends_neither_on_batch_mates_nor_on_padding(base_of, family):
    base = base_of(family)
    module = module_of(base, "prefix_tuning")
    learner = learner_of(base, [module], Classification(SEVERAL))
    with torch.no_grad():
        alone = torch.cat([learner.scores(module, [example]) for example in EXAMPLES])
        torch.testing.assert_close(learner.scores(module, [*EXAMPLES, Example(list(range(20, 80)), 0)])[:3], alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "method"),
    [("t5", "prompt_tuning"), ("bert", "prompt_tuning"), ("mistral_sliding", "prompt_tuning"), ("mistral_sliding", "lora")],
)
def test_training_improves_each_architecture(base_of, family, method):
    base = base_of(family)
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


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_gradient(base_of):
    base = base_of("bert")
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
def test_gradient_checkpointing_computes_the_layers_again_and_gives_the_same_gradient(base_of, family, method):
    base = base_of(family)
    runs, gradients = [], []
    for checkpointing in (False, True):
        module = module_of(base, method, gradient_checkpointing=checkpointing)
        layers = [part for part in module.model.modules() if isinstance(part, GradientCheckpointingLayer)]
        passed = []
        for layer in layers:
            # Inside the layer, since the layer itself is called once and only what is in it is run again.
            next(part for part in layer.modules() if isinstance(part, torch.nn.Linear)).register_forward_hook(
                lambda *_, passed=passed: passed.append(1)
            )
        learner_of(base, [module]).backward({0: EXAMPLES}, 1.0)
        runs.append(len(passed))
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert runs[1] == 2 * runs[0] > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)


def test_the_start_of_an_adapter_depends_on_its_seed_alone(base_of):
    base = base_of("bert")
    state = torch.get_rng_state()
    one, same, other = (module_of(base, "prefix_tuning", seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    differing = {name for name, value in one.items() if not torch.equal(value, other[name])}
    assert differing == {name for name in one if not name.endswith("bias")}


def test_a_pooler_that_the_files_lack_is_trained_and_saved_with_the_head(tmp_path):
    folder, saved = tmp_path / "base", tmp_path / "adapter"
    torch.manual_seed(1)
    BertForMaskedLM(family_config("bert")).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    source = {"kind": "directory", "id": "tiny/masked", "path": str(folder)}
    base, again = (load_base_model(source=source, dtype="float32", device="cpu", num_labels=3) for _ in range(2))
    assert base.head_modules == ("bert.pooler.dense",)
    assert not torch.equal(base.model.bert.pooler.dense.weight, again.model.bert.pooler.dense.weight), "loads must differ to prove anything"
    for method in ("prompt_tuning", "lora"):
        learner = learner_of(base, [module_of(base, method)])
        steps(learner)
        save_peft_module(saved, module=learner.modules[0], base=base)
        plain = peft.PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3), saved).eval()
        with torch.no_grad():
            theirs = torch.cat([plain(input_ids=torch.tensor([[*HEAD, *own]])).logits for own in OWN]).log_softmax(-1)
        ours = learner.log_probabilities(0, EXAMPLES)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            learner_of(again, [load_peft_module(saved, again)]).log_probabilities(0, EXAMPLES), ours, atol=1e-5, rtol=1e-5
        )


def test_a_base_model_that_accelerate_has_spread_out_trains_alike(model_folder, base_of, tmp_path):
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
    learners = [learner_of(one, [module_of(one, "prompt_tuning")]) for one in (base, base_of("mistral_sliding"))]
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


def test_a_head_is_not_trained_in_less_than_float32(model_folder):
    source = {"kind": "directory", "id": "tiny/bert", "path": str(model_folder("bert"))}
    base = load_base_model(source=source, dtype="bfloat16", device="cpu", num_labels=3)
    with pytest.raises(BaseModelError, match=r"tiny/bert was loaded in torch\.bfloat16"):
        module_of(base, "prompt_tuning")


def test_prefix_tuning_with_gradient_checkpointing_is_refused(base_of):
    with pytest.raises(BaseModelError, match="gradient checkpointing is refused for the method prefix_tuning"):
        module_of(base_of("t5"), "prefix_tuning", gradient_checkpointing=True)


def test_an_adapter_saved_by_peft_loads_here(base_of, tmp_path):
    base = base_of("mistral_sliding")
    config = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).eval()
    theirs.save_pretrained(tmp_path)
    ours = learner_of(base, [load_peft_module(tmp_path, base)]).log_probabilities(0, EXAMPLES)
    with torch.no_grad():
        logits = torch.stack([theirs(input_ids=torch.tensor([[*HEAD, *own]])).logits[0, -1, [60, 61, 62]] for own in OWN])
    torch.testing.assert_close(ours, logits.log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.fixture
def saved_lora(base_of, tmp_path) -> tuple[PeftModule, dict]:
    base = base_of("mistral_sliding")
    module = module_of(base, "lora")
    save_peft_module(tmp_path, module=module, base=base)
    return tmp_path, json.loads((tmp_path / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "OFT"}, "peft_type is 'OFT', expected PROMPT_TUNING, P_TUNING, PREFIX_TUNING or LORA"),
        ({"r": 10**9}, "r is 1000000000, expected 1 to 32"),
        ({"r": 3}, "has shape .*, its config and the base model tiny/mistral_sliding need"),
        ({"target_modules": "(a+)+$"}, r"target_modules is '\(a\+\)\+\$', expected a list of names"),
        ({"target_modules": ["nothing"]}, "does not fit the base model tiny/mistral_sliding"),
        ({"use_rslora": True}, "use_rslora is True, expected False"),
        ({"auto_mapping": {"base_model_class": "x", "parent_library": "os"}}, "auto_mapping is .*, expected None"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', expected 'CAUSAL_LM'"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config is .*, expected None"),
    ],
)
def test_a_config_that_asks_for_more_than_sizes_is_refused(base_of, saved_lora, change, message):
    folder, config = saved_lora
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BundleError, match=message):
        load_peft_module(folder, base_of("mistral_sliding"))


def test_files_that_do_not_fit_are_refused(base_of, saved_lora):
    folder, _ = saved_lora
    with pytest.raises(BundleError, match="does not fit the base model tiny/t5"):
        load_peft_module(folder, base_of("t5"))
    base = base_of("mistral_sliding")
    module = module_of(base, "lora")
    next(module.parameters()).data.fill_(float("nan"))
    save_peft_module(folder, module=module, base=base)
    with pytest.raises(BundleError, match="holds NaN or infinite values in base_model"):
        load_peft_module(folder, base)
    (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(BundleError, match="cannot be read as safetensors"):
        load_peft_module(folder, base)
