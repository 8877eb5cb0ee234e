"""The shared-prefix pass against PEFT's own forward and against plain forwards of the base model."""

import peft
import pytest
import torch

from pipeline.engine.batching import Example, collate
from pipeline.engine.shared_prefix import check_agreement, encode_prefix, label_scores
from pipeline.engine.soft_prompt import initial_soft_prompt
from pipeline.engine.template import Verbalizers
from pipeline.errors import BaseModelError

FAMILIES = ["llama", "gpt2", "qwen2", "gpt_neox"]
HEAD = (20, 21, 22)
OWN = [[30, 31, 32, 33, 34], [40], [50, 51, 52]]
LABELS = [0, 1, 2]
SINGLE = Verbalizers(("a", "b", "c"), ((60,), (61,), (62,)))
SEVERAL = Verbalizers(("a", "b", "c"), ((60,), (61, 70), (62, 71, 72)))


def naive_peft(base, soft_prompt):
    """PEFT's forward, one example at a time: logits after the last token, and the PeftModel (for its gradient)."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=soft_prompt.shape[0], token_dim=base.hidden_size)
    model = peft.get_peft_model(base.model, config).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(soft_prompt)
    ids = [torch.tensor([[*HEAD, *own]]) for own in OWN]
    logits = torch.stack([model(input_ids=one, attention_mask=torch.ones_like(one)).logits[0, -1] for one in ids])
    return logits, weight


@pytest.fixture(autouse=True)
def _undo_peft(tiny):
    """get_peft_model marks the base model's parameters; put them back for the next test."""
    yield
    for family in FAMILIES:
        tiny(family).model.requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_pefts(tiny, family):
    base = tiny(family)
    soft_prompt = initial_soft_prompt(base=base, num_virtual_tokens=5, init_text="the plane was late").requires_grad_(True)

    batch = collate([Example(own, label) for own, label in zip(OWN, LABELS, strict=True)], SINGLE, base.device)
    loss = torch.nn.functional.cross_entropy(label_scores(base, encode_prefix(base, soft_prompt, HEAD), batch, SINGLE), batch.labels)
    loss.backward()

    logits, weight = naive_peft(base, soft_prompt.detach())
    expected = torch.nn.functional.cross_entropy(logits[:, [60, 61, 62]], torch.tensor(LABELS))
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert soft_prompt.grad is not None
    assert float(weight.grad.norm()) > 1e-4, "a vanishing gradient would prove nothing"
    assert float((soft_prompt.grad - weight.grad).norm() / weight.grad.norm()) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [HEAD, ()])
def test_verbalizers_of_several_tokens_equal_plain_forwards(tiny, family, head):
    base = tiny(family)
    soft_prompt = initial_soft_prompt(base=base, num_virtual_tokens=4, init_text="a lovely flight")
    with torch.no_grad():
        batch = collate([Example(own, 0) for own in OWN], SEVERAL, base.device)
        found = label_scores(base, encode_prefix(base, soft_prompt, head), batch, SEVERAL)
        embed = base.model.get_input_embeddings()
        for row, own in enumerate(OWN):
            for column, verbalizer in enumerate(SEVERAL.token_ids):
                ids = torch.tensor([[*head, *own, *verbalizer]])
                embeddings = torch.cat([soft_prompt[None], embed(ids)], dim=1)
                log_probabilities = base.model(inputs_embeds=embeddings).logits[0].log_softmax(-1)
                start = embeddings.shape[1] - len(verbalizer) - 1
                expected = sum(float(log_probabilities[start + depth, token]) for depth, token in enumerate(verbalizer))
                assert float(found[row, column]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("verbalizers", [SINGLE, SEVERAL])
def test_score_depends_neither_on_batch_mates_nor_on_padding(tiny, verbalizers):
    base = tiny()
    soft_prompt = initial_soft_prompt(base=base, num_virtual_tokens=4, init_text="a lovely flight")
    with torch.no_grad():
        prefix = encode_prefix(base, soft_prompt, HEAD)
        alone = [label_scores(base, prefix, collate([Example(own, 0)], verbalizers, base.device), verbalizers)[0] for own in OWN]
        for mates in (OWN, OWN[::-1], [*OWN, list(range(20, 80))]):
            together = label_scores(base, prefix, collate([Example(own, 0) for own in mates], verbalizers, base.device), verbalizers)
            for row, own in enumerate(mates):
                if own in OWN:
                    torch.testing.assert_close(together[row], alone[OWN.index(own)], atol=2e-5, rtol=1e-5)


def test_soft_prompt_of_a_text_gives_that_texts_logits(tiny):
    base = tiny()
    text = list(base.tokenizer("the plane was late")["input_ids"])
    soft_prompt = base.vocabulary_embeddings()[text].clone()
    with torch.no_grad():
        batch = collate([Example(own, 0) for own in OWN], SINGLE, base.device)
        found = label_scores(base, encode_prefix(base, soft_prompt, ()), batch, SINGLE)
        plain = torch.stack([base.model(torch.tensor([[*text, *own]])).logits[0, -1, [60, 61, 62]] for own in OWN])
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_pass_the_self_check(tiny, family):
    assert check_agreement(tiny(family)) is None


def test_sliding_window_is_refused(tiny):
    with pytest.raises(BaseModelError, match="tiny/mistral_sliding attends through a sliding window"):
        check_agreement(tiny("mistral_sliding"))


def test_self_check_notices_logits_that_the_shared_pass_does_not_make(tiny, monkeypatch):
    base = tiny()
    plain = base.model.forward

    def rescaled(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(base.model, "forward", rescaled)
    with pytest.raises(BaseModelError, match="tiny/llama: the shared-prefix pass and the plain forward pass differ by"):
        check_agreement(base)
