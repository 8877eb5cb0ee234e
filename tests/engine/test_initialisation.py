"""Each kind of start against an independent computation."""

from collections import Counter

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engine.initialisation import COMMONEST_TOKENS, Initialisation, embed, initial_embeddings, key_values_of
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.errors import TemplateError

TEXT = "thank you for the lovely flight"
LABELS = ((40,), (41, 42, 43), (44, 45))


def start(base, kind, count=9, seed=0, **more):
    of_kind = {name: more.pop(name) for name in ("text", "values") if name in more}
    return initial_embeddings(base=base, num_virtual_tokens=count, initialisation=Initialisation(kind=kind, **of_kind), seed=seed, **more)


def vocabulary(base):
    return base.vocabulary_embeddings().numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("count", [3, 20])
def test_text_start_has_the_bits_of_pefts(tiny, family, count):
    base = tiny(family)
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=count,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=TEXT,
        tokenizer_name_or_path=str(base.folder),
    )
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).prompt_encoder["default"].embedding.weight
    assert 3 < len(base.tokenizer(TEXT)["input_ids"]) < 20, "one count must cut the text and one must repeat it"
    assert torch.equal(start(base, "text", count, text=TEXT), theirs)


def test_class_labels_are_the_means_of_their_tokens_in_turn(tiny):
    base = tiny()
    means = [np.mean([vocabulary(base)[token] for token in ids], axis=0) for ids in LABELS]
    expected = np.stack([means[index % 3] for index in range(7)])
    np.testing.assert_allclose(start(base, "class_labels", 7, verbalizers=LABELS).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(start(base, "class_labels", 2, verbalizers=LABELS).numpy(), expected[:2], rtol=1e-6)


def drawn_tokens(base, rows):
    """Which token each row is the embedding of."""
    distances = ((rows.numpy()[:, None] - vocabulary(base)[None]) ** 2).sum(-1)
    assert (distances.min(1) == 0).all()
    return distances.argmin(1).tolist()


def test_a_sample_of_the_vocabulary_is_drawn_without_replacement_from_the_commonest_tokens(tiny, monkeypatch):
    base = tiny()
    monkeypatch.setattr("pipeline.engine.initialisation.COMMONEST_TOKENS", 30)
    generator = np.random.default_rng(0)
    corpus = [generator.zipf(1.3, 50).clip(max=250).tolist() for _ in range(60)]
    commonest = {token for token, _ in Counter(token for ids in corpus for token in ids).most_common(30)}
    assert len({token for ids in corpus for token in ids}) > 60
    samples = [drawn_tokens(base, start(base, "sample_vocabulary", 20, seed=seed, corpus=corpus)) for seed in range(12)]
    assert all(len(set(sample)) == 20 and set(sample) <= commonest for sample in samples)
    # 12 samples of 20 of 30 tokens miss one of them with a chance below 1 in 10,000.
    assert set().union(*samples) == commonest
    assert samples[0] == drawn_tokens(base, start(base, "sample_vocabulary", 20, seed=0, corpus=corpus))
    assert len({tuple(sample) for sample in samples}) == 12
    few = drawn_tokens(base, start(base, "sample_vocabulary", 7, corpus=[[5, 6], [6, 7]]))
    assert sorted(Counter(few).values()) == [2, 2, 3]
    assert set(few) == {5, 6, 7}


def test_the_commonest_tokens_are_as_many_as_in_the_paper():
    assert COMMONEST_TOKENS == 5000


def test_random_uniform_fills_its_range_and_depends_on_the_seed(tiny):
    base = tiny()
    rows = start(base, "random_uniform", 500).numpy()
    assert rows.shape == (500, 32)
    assert -0.5 <= rows.min() < -0.499
    assert 0.499 < rows.max() < 0.5
    # Standard error of the mean of 16,000 draws: 0.0023; the standard deviation of the distribution is 1 / sqrt(12).
    assert abs(rows.mean()) < 0.01
    assert rows.std() == pytest.approx(12**-0.5, rel=0.02)
    assert torch.equal(start(base, "random_uniform", 5, seed=1), start(base, "random_uniform", 5, seed=1))
    assert not torch.equal(start(base, "random_uniform", 5, seed=1), start(base, "random_uniform", 5, seed=2))


@pytest.mark.parametrize("count", [2, 5, 12])
def test_a_warm_start_is_the_tuned_prompt_cut_or_repeated(tiny, count):
    values = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    rows = start(tiny(), "tuned_prompt", count, values=SoftPrompt(values))
    np.testing.assert_array_equal(rows.numpy(), np.tile(values.numpy(), (3, 1))[:count])
    rows += 1
    assert float(values.abs().max()) < 6, "the tuned prompt itself must not change"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_key_values_of_a_text_are_what_the_base_model_caches(tiny, family):
    base = tiny(family)
    ids = base.tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        cache = base.model(torch.tensor([ids]), use_cache=True).past_key_values
        flat = np.stack([tensor[0].numpy() for layer in cache.layers for tensor in (layer.keys, layer.values)])
    found = key_values_of(base, embed(base, ids)).numpy()
    assert found.shape == (len(ids), flat.shape[0] * flat.shape[1] * flat.shape[3])
    for position in range(len(ids)):
        np.testing.assert_allclose(found[position], flat[:, :, position].ravel(), atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("text", {"text": ""}, r"cannot start from the text '': it has no tokens"),
        ("class_labels", {}, "cannot start from the label set: it has no tokens"),
        ("sample_vocabulary", {}, "cannot start from the training texts: it has no tokens"),
        ("sample_vocabulary", {"corpus": [[], []]}, "cannot start from the training texts: it has no tokens"),
        ("tuned_prompt", {}, r"cannot start from None: embeddings \[P, 32\] are needed"),
        (
            "tuned_prompt",
            {"values": SoftPrompt(torch.zeros(4, 31))},
            r"cannot start from \('embeddings', \[4, 31\]\): embeddings \[P, 32\]",
        ),
        ("tuned_prompt", {"values": SoftPrompt(torch.zeros(4, 32), "key_values")}, r"cannot start from \('key_values', \[4, 32\]\)"),
        ("tuned_prompt", {"values": SoftPrompt(torch.zeros(0, 32))}, "cannot start from the tuned prompt: it has no tokens"),
    ],
)
def test_what_cannot_be_started_from_is_named(tiny, kind, more, message):
    with pytest.raises(TemplateError, match=message):
        start(tiny(), kind, **more)
