"""The shared-prefix pass against PEFT's own forward and against plain forwards of the base model."""

import re

import peft
import pytest
import torch

from pipeline.engine.batching import Example, collate
from pipeline.engine.initialisation import Initialisation, embed, initial_embeddings, key_values_of
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.shared_prefix import disagreement, encode_prefixes, key_value_shape, label_scores, sliding_window
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.template import Verbalizers

FAMILIES = [
    "llama",
    "gpt2",
    "qwen2",
    "qwen2_sliding",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "mistral",
    "mistral_sliding",
    "gpt_neox",
]
HEAD = (20, 21, 22)
OWN = [[30, 31, 32, 33, 34], [40], [50, 51, 52]]
LABELS = [0, 1, 2]
SINGLE = Verbalizers(("a", "b", "c"), ((60,), (61,), (62,)))
SEVERAL = Verbalizers(("a", "b", "c"), ((60,), (61, 70), (62, 71, 72)))


def embeddings(base, count, text="the plane was late"):
    return initial_embeddings(base=base, num_virtual_tokens=count, initialisation=Initialisation(kind="text", text=text), seed=0)


def soft_prompts(base, kind, counts=(5, 2, 7)):
    """Prompts of several lengths, drawn at random around the vocabulary's size."""
    width = base.hidden_size
    if kind == "key_values":
        layers, heads, size = key_value_shape(base)
        width = 2 * layers * heads * size
    return [SoftPrompt(torch.randn(count, width, generator=torch.Generator().manual_seed(count)) * 0.5, kind) for count in counts]


def scores(base, prefix, rows, own, verbalizers=SINGLE):
    batch = collate([Example(ids, 0) for ids in own], verbalizers, base.device)
    return label_scores(base, prefix, rows, batch, verbalizers)


def peft_model(base, soft_prompt):
    """PEFT's model around the base model, and the parameter that holds the soft prompt."""
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": soft_prompt.num_virtual_tokens, "num_transformer_submodules": 1}
    if soft_prompt.kind == "embeddings":
        config = peft.PromptTuningConfig(token_dim=base.hidden_size, **common)
    else:
        layers, heads, size = key_value_shape(base)
        config = peft.PrefixTuningConfig(
            token_dim=heads * size, num_attention_heads=heads, num_layers=layers, encoder_hidden_size=heads * size, **common
        )
    model = peft.get_peft_model(base.model, config).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(soft_prompt.values)
    return model, weight


def naive_logits(base, soft_prompt, own, head=HEAD):
    """PEFT's forward, one example at a time: logits of the three labels after the last token, and the trained parameter."""
    model, weight = peft_model(base, soft_prompt)
    rows = [torch.tensor([[*head, *ids]]) for ids in own]
    return torch.stack([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1, [60, 61, 62]] for ids in rows]), weight


@pytest.fixture(autouse=True)
def _undo_peft(tiny):
    """get_peft_model marks the base model's parameters; put them back for the next test."""
    yield
    for family in FAMILIES:
        tiny(family).model.requires_grad_(False)


@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_pefts(tiny, family, kind):
    base = tiny(family)
    prompt = soft_prompts(base, kind, (5,))[0]
    values = prompt.values.requires_grad_(True)

    found = torch.nn.functional.cross_entropy(
        scores(base, encode_prefixes(base, [prompt], HEAD), (0,) * len(OWN), OWN), torch.tensor(LABELS)
    )
    found.backward()

    logits, weight = naive_logits(base, SoftPrompt(values.detach(), kind), OWN)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(weight.grad.norm()) > 1e-4, "a vanishing gradient would prove nothing"
    assert float((values.grad - weight.grad).norm() / weight.grad.norm()) <= 1e-5


@pytest.mark.parametrize("head", [HEAD, ()])
@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_several_lengths_in_one_batch_equal_each_alone_with_peft(tiny, family, kind, head):
    base = tiny(family)
    prompts = soft_prompts(base, kind)
    rows = [0, 1, 2, 2, 0, 1]
    own = [OWN[index % 3] for index in range(6)]
    with torch.no_grad():
        mixed = scores(base, encode_prefixes(base, prompts, head), rows, own)
        for slot, prompt in enumerate(prompts):
            mine = [index for index, row in enumerate(rows) if row == slot]
            alone, _ = naive_logits(base, prompt, [own[index] for index in mine], head)
            torch.testing.assert_close(mixed[mine], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
def test_a_prompts_gradient_comes_from_its_own_rows_alone(tiny, kind):
    base = tiny()

    def gradients(rows, own, counts=(5, 2, 7)):
        prompts = soft_prompts(base, kind, counts)
        leaves = [prompt.values.requires_grad_(True) for prompt in prompts]
        found = scores(base, encode_prefixes(base, prompts, HEAD), rows, own)
        torch.nn.functional.cross_entropy(found, torch.arange(len(own)) % 3, reduction="sum").backward()
        return [leaf.grad for leaf in leaves]

    together = gradients([0, 1, 2], OWN)
    others_changed = gradients([0, 1, 2], [OWN[0], [90, 91], [92] * 9])
    torch.testing.assert_close(together[0], others_changed[0], atol=1e-6, rtol=1e-5)
    assert float((together[1] - others_changed[1]).norm()) > 1e-3
    torch.testing.assert_close(together[0], gradients([0], OWN[:1], (5,))[0], atol=1e-6, rtol=1e-5)
    unused = gradients([0, 0, 0], OWN)
    assert unused[1] is None or not bool(unused[1].any()), "a prompt without rows takes no gradient"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [HEAD, ()])
def test_verbalizers_of_several_tokens_equal_plain_forwards(tiny, family, head):
    base = tiny(family)
    prompt = embeddings(base, 4)
    with torch.no_grad():
        found = scores(base, encode_prefixes(base, [SoftPrompt(prompt)], head), (0, 0, 0), OWN, SEVERAL)
        for row, own in enumerate(OWN):
            for column, verbalizer in enumerate(SEVERAL.token_ids):
                ids = [*head, *own, *verbalizer]
                log_probabilities = base.model(inputs_embeds=torch.cat([prompt, embed(base, ids)])[None]).logits[0].log_softmax(-1)
                start = len(prompt) + len(ids) - len(verbalizer) - 1
                expected = sum(float(log_probabilities[start + depth, token]) for depth, token in enumerate(verbalizer))
                assert float(found[row, column]) == pytest.approx(expected, abs=2e-5, rel=1e-6)


@pytest.mark.parametrize("verbalizers", [SINGLE, SEVERAL])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral_sliding"])
def test_score_depends_neither_on_batch_mates_nor_on_padding(tiny, family, verbalizers):
    base = tiny(family)
    with torch.no_grad():
        prefix = encode_prefixes(base, soft_prompts(base, "embeddings"), HEAD)
        alone = {tuple(own): scores(base, prefix, [row], [own], verbalizers)[0] for row, own in enumerate(OWN)}
        slot = {tuple(own): row for row, own in enumerate(OWN)}
        for mates in (OWN, OWN[::-1], [*OWN, list(range(20, 80))]):
            together = scores(base, prefix, [slot.get(tuple(own), 0) for own in mates], mates, verbalizers)
            for row, own in enumerate(mates):
                if tuple(own) in alone:
                    torch.testing.assert_close(together[row], alone[tuple(own)], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_made_of_a_text_gives_that_texts_logits(tiny, family, kind):
    base = tiny(family)
    text = list(base.tokenizer("the plane was late")["input_ids"])
    values = embed(base, text)
    prompt = SoftPrompt(values if kind == "embeddings" else key_values_of(base, values), kind)
    with torch.no_grad():
        found = scores(base, encode_prefixes(base, [prompt], ()), (0, 0, 0), OWN)
        plain = torch.stack([base.model(torch.tensor([[*text, *own]])).logits[0, -1, [60, 61, 62]] for own in OWN])
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


def test_prompts_of_two_kinds_are_refused_in_one_batch(tiny):
    base = tiny()
    with pytest.raises(ValueError, match=r"all of one kind, found \['embeddings', 'key_values'\]"):
        encode_prefixes(base, [*soft_prompts(base, "embeddings", (2,)), *soft_prompts(base, "key_values", (2,))], HEAD)


def test_without_prompt_and_head_the_plain_model_is_left(tiny):
    base = tiny()
    with torch.no_grad():
        prefix = encode_prefixes(base, [None], ())
        found = scores(base, prefix, (0, 0, 0), OWN)
        plain = torch.stack([base.model(torch.tensor([own])).logits[0, -1, [60, 61, 62]] for own in OWN])
    assert prefix == Prefix((), (0,))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_pass_the_self_check(tiny, family):
    assert disagreement(tiny(family)) is None


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bloom", "its forward pass does not take the prefix's cache, masks and positions"),
        ("gpt_neo", r"its configuration sets \['window_size'\]"),
        ("granite", "its label scores and those of its plain forward pass differ by 0"),
        ("qwen3_next", r"it has layers of \['linear_attention'\], and only \['full_attention', 'sliding_attention'\] follow"),
    ],
)
def test_families_that_break_the_assumption_are_found_out_with_the_reason(tiny, family, reason):
    assert re.match(reason, disagreement(tiny(family)) or "")


def test_self_check_notices_a_window_that_the_model_does_not_keep_to(tiny, monkeypatch):
    """Short texts never leave the configured window, so only the narrowed one shows that the masks would be wrong."""
    base = tiny("mistral_sliding")
    monkeypatch.setattr(base.model.config, "sliding_window", 64)
    assert disagreement(base) is None
    assert sliding_window(base) == 64, "the window is put back"
    plain = base.model.forward

    def without_window(input_ids):
        window, base.model.config.sliding_window = base.model.config.sliding_window, None
        try:
            return plain(input_ids)
        finally:
            base.model.config.sliding_window = window

    monkeypatch.setattr(base.model, "forward", without_window)
    assert "differ by" in disagreement(base)


def test_self_check_notices_logits_that_the_shared_pass_does_not_make(tiny, monkeypatch):
    base = tiny()
    plain = base.model.forward

    def rescaled(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(base.model, "forward", rescaled)
    assert str(disagreement(base)).startswith("its label scores and those of its plain forward pass differ by")
