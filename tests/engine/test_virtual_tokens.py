"""Nearest words and drift against numpy, and against words that are known beforehand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pipeline.engine.initialisation import Initialisation, embed, initial_embeddings
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.peft_adapter import LoraSettings, build_peft_module
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.virtual_tokens import describe_virtual_tokens, virtual_tokens

TEXT = "thank you for the lovely flight"


def started(base, count: int = 6) -> SoftPrompt:
    initialisation = Initialisation(kind="text", text=TEXT)
    return SoftPrompt(initial_embeddings(base=base, num_virtual_tokens=count, initialisation=initialisation, seed=0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_an_untrained_prompt_lies_on_exactly_the_words_it_started_from(tiny, family):
    base = tiny(family)
    ids = list(base.tokenizer(TEXT)["input_ids"])
    prompt = started(base, len(ids))
    record = describe_virtual_tokens(base, prompt, prompt)
    assert [token["nearest"][0]["token_id"] for token in record["tokens"]] == ids
    assert "".join(token["nearest"][0]["text"] for token in record["tokens"]) == base.tokenizer.decode(ids)
    for token in record["tokens"]:
        nearest = token["nearest"][0]
        assert (nearest["cosine_distance"], nearest["l2_distance"]) == (0.0, 0.0)
        assert (token["drift_cosine_distance"], token["drift_l2_distance"]) == (0.0, 0.0)
        assert token["norm"] == token["initial_norm"] > 0


def test_distances_and_drift_are_those_of_scipy(tiny, monkeypatch):
    base = tiny()
    monkeypatch.setattr("pipeline.engine.virtual_tokens.WORDS_AT_ONCE", 37)  # blocks that do not divide the vocabulary
    assert len(base.tokenizer) % 37
    generator = torch.Generator().manual_seed(3)
    start = started(base)
    tuned = SoftPrompt(start.values + 0.02 * torch.randn(start.values.shape, generator=generator))
    record = describe_virtual_tokens(base, tuned, start, nearest=7)
    words = base.vocabulary_embeddings().detach().double().numpy()[: len(base.tokenizer)]
    rows, first = tuned.values.double().numpy(), start.values.double().numpy()
    cosine, euclidean = cdist(rows, words, "cosine"), cdist(rows, words)
    for index, token in enumerate(record["tokens"]):
        expected = np.argsort(cosine[index])[:7]
        found = token["nearest"]
        assert [word["token_id"] for word in found] == expected.tolist()
        np.testing.assert_allclose([word["cosine_distance"] for word in found], cosine[index, expected], atol=1e-9)
        np.testing.assert_allclose([word["l2_distance"] for word in found], euclidean[index, expected], atol=1e-9)
        assert token["drift_l2_distance"] == pytest.approx(np.linalg.norm(rows[index] - first[index]))
        assert token["drift_cosine_distance"] == pytest.approx(cdist(rows[[index]], first[[index]], "cosine")[0, 0], abs=1e-9)
        assert token["drift_l2_distance"] > 0
    assert record["vocabulary"] == {
        "words": len(words),
        "median_norm": pytest.approx(np.sort(np.linalg.norm(words, axis=1))[(len(words) - 1) // 2]),
    }


def test_a_scaled_word_is_nearest_by_direction_and_far_by_length(tiny):
    base = tiny()
    word = embed(base, [50])
    (token,) = describe_virtual_tokens(base, SoftPrompt(3 * word), SoftPrompt(word))["tokens"]
    nearest = token["nearest"][0]
    assert nearest["token_id"] == 50
    assert nearest["cosine_distance"] == pytest.approx(0, abs=1e-12)
    assert nearest["l2_distance"] == token["drift_l2_distance"] == pytest.approx(2 * float(word.double().norm()))


def test_a_row_of_zeros_is_as_far_from_every_word(tiny):
    base = tiny()
    (token,) = describe_virtual_tokens(base, SoftPrompt(torch.zeros(1, base.hidden_size)), SoftPrompt(embed(base, [50])))["tokens"]
    assert {word["cosine_distance"] for word in token["nearest"]} == {1.0}
    assert token["drift_cosine_distance"] == 1.0


def test_rows_behind_the_vocabulary_are_no_words(tiny):
    base = replace(tiny(), model=copy.deepcopy(tiny().model))
    base.model.resize_token_embeddings(len(base.tokenizer) + 8)
    table = base.vocabulary_embeddings()
    assert table.shape[0] == len(base.tokenizer) + 8
    behind = SoftPrompt(table[-1:].detach().clone())
    (token,) = describe_virtual_tokens(base, behind, behind, nearest=len(base.tokenizer))["tokens"]
    assert table.shape[0] - 1 not in {word["token_id"] for word in token["nearest"]}


def test_prompts_of_other_kinds_or_shapes_are_refused(tiny):
    base = tiny()
    one = started(base)
    for other in (SoftPrompt(one.values, "key_values"), SoftPrompt(one.values[:2])):
        with pytest.raises(ValueError, match="expected embeddings of one shape"):
            describe_virtual_tokens(base, one, other)


def test_a_prefix_and_lora_are_not_applicable_with_the_reason(tiny):
    base = tiny()
    prefix = build_method(base=base, settings=MethodSettings(name="prefix_tuning"), embeddings=started(base).values, seed=0)().detached()
    record = virtual_tokens(base, prefix, prefix)
    assert (record["applicable"], record["tokens"]) == (False, [])
    assert "keys and values of every layer" in record["reason"]
    assert build_peft_module(base=base, settings=LoraSettings(), seed=0).soft_prompt() is None
    assert virtual_tokens(base, None, None)["applicable"] is False


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning"])
def test_virtual_tokens_that_run_through_peft_are_looked_at_too(tiny, name):
    base = tiny("t5")
    start = started(base)
    module = build_peft_module(base=base, settings=MethodSettings(name=name), embeddings=start.values, seed=0)
    found = module.soft_prompt()
    assert found is not None
    assert not found.values.requires_grad
    torch.testing.assert_close(found.values, start.values, atol=1e-4, rtol=1e-3)
    assert virtual_tokens(base, found, start)["applicable"] is True
