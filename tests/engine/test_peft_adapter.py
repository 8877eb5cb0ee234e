"""Adapters and their files: PEFT reads ours, we read PEFT's, and what asks for more than sizes is refused."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertForMaskedLM

from pipeline.engine.base_model import load_base_model
from pipeline.engine.peft_adapter import load_peft_module, save_peft_module
from pipeline.engine.soft_prompt import WEIGHTS_FILE
from pipeline.errors import BaseModelError, BundleError
from tests.engine.tiny_adapters import CASES, EXAMPLES, HEAD, LOADERS, OWN, learner_of, module_of, steps
from tests.engine.tiny_models import family_config, make_tokenizer


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_reload_gives_equal_scores_and_plain_peft_gives_our_logits(tiny, tmp_path, family, method):
    base = tiny(family)
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


def test_the_start_of_an_adapter_depends_on_its_seed_alone(tiny):
    base = tiny("bert")
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


def test_a_head_is_not_trained_in_less_than_float32(model_folder):
    source = {"kind": "directory", "id": "tiny/bert", "path": str(model_folder("bert"))}
    base = load_base_model(source=source, dtype="bfloat16", device="cpu", num_labels=3)
    with pytest.raises(BaseModelError, match=r"tiny/bert was loaded in torch\.bfloat16"):
        module_of(base, "prompt_tuning")


def test_prefix_tuning_with_gradient_checkpointing_is_refused(tiny):
    with pytest.raises(BaseModelError, match="gradient checkpointing is refused for the method prefix_tuning"):
        module_of(tiny("t5"), "prefix_tuning", gradient_checkpointing=True)


def test_an_adapter_saved_by_peft_loads_here(tiny, tmp_path):
    base = tiny("mistral_sliding")
    config = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).eval()
    theirs.save_pretrained(tmp_path)
    ours = learner_of(base, [load_peft_module(tmp_path, base)]).log_probabilities(0, EXAMPLES)
    with torch.no_grad():
        logits = torch.stack([theirs(input_ids=torch.tensor([[*HEAD, *own]])).logits[0, -1, [60, 61, 62]] for own in OWN])
    torch.testing.assert_close(ours, logits.log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.fixture
def saved_lora(tiny, tmp_path):
    base = tiny("mistral_sliding")
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
def test_a_config_that_asks_for_more_than_sizes_is_refused(tiny, saved_lora, change, message):
    folder, config = saved_lora
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BundleError, match=message):
        load_peft_module(folder, tiny("mistral_sliding"))


def test_files_that_do_not_fit_are_refused(tiny, saved_lora):
    folder, _ = saved_lora
    with pytest.raises(BundleError, match="does not fit the base model tiny/t5"):
        load_peft_module(folder, tiny("t5"))
    base = tiny("mistral_sliding")
    module = module_of(base, "lora")
    next(module.parameters()).data.fill_(float("nan"))
    save_peft_module(folder, module=module, base=base)
    with pytest.raises(BundleError, match="holds NaN or infinite values in base_model"):
        load_peft_module(folder, base)
    (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(BundleError, match="cannot be read as safetensors"):
        load_peft_module(folder, base)
