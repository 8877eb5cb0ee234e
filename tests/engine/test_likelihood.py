"""Likelihoods of texts behind a template, with and without a soft prompt, against the model's plain forward pass."""

from pathlib import Path

import pytest
import torch

from pipeline.engine.base_model import load_base_model
from pipeline.engine.likelihood import likelihood_obstacle, text_likelihoods
from pipeline.engine.soft_prompt import SoftPrompt, save_soft_prompt
from pipeline.engine.template import compile_template
from tests.engine.tiny_models import save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood")
    save_model("llama", folder)
    return load_base_model(
        source={"kind": "directory", "id": "tiny/llama", "path": str(folder)}, dtype="float32", device="cpu", num_labels=2
    )


@pytest.fixture
def bundle(base, tmp_path: Path):
    torch.manual_seed(3)
    soft_prompt = SoftPrompt(torch.randn(3, base.hidden_size))
    save_soft_prompt(tmp_path, soft_prompt=soft_prompt, base_model_id="tiny/llama", revision=None, init_text="")
    return tmp_path, soft_prompt.values


def plain(base, soft, ids, target):
    """Sum of log-probabilities of `target` behind the embeddings `soft` and the tokens `ids`, by the model's own forward."""
    embed = base.model.get_input_embeddings()
    whole = embed(torch.tensor([[*ids, *target]]))
    if soft is not None:
        whole = torch.cat([soft[None], whole], dim=1)
    with torch.no_grad():
        scores = base.model(inputs_embeds=whole).logits[0].log_softmax(-1)
    start = whole.shape[1] - len(target)
    return float(sum(scores[start - 1 + at, token] for at, token in enumerate(target)))


def template_of(base, text: str):
    return compile_template(tokenizer=base.tokenizer, template=text, maximum_field_tokens=64)


def test_texts_of_several_lengths_with_and_without_soft_prompt(base, bundle) -> None:
    folder, values = bundle
    template = template_of(base, "Tweet: {text}\nSentiment:")
    texts = [("", "the plane was late"), ("the crew was great.", "thank you"), ("", "a")]
    ids = lambda text: base.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for soft, path in ((None, None), (values, folder)):
        found = text_likelihoods(base=base, template=template, bundle=path, texts=texts, batch_size=2)
        for (context, text), one in zip(texts, found, strict=True):
            target = ids(" " + text)
            before = [*template.head, *(ids(" " + context) if context else [])]
            assert one.tokens == len(target)
            assert one.log_probability == pytest.approx(plain(base, soft, before, target), abs=1e-3)


def test_a_template_that_starts_with_its_field(base) -> None:
    template = template_of(base, "{text} is")
    assert template.head == ()
    (found,) = text_likelihoods(base=base, template=template, bundle=None, texts=[("", "late")], batch_size=2)
    target = base.tokenizer("late", add_special_tokens=False)["input_ids"]
    assert found.log_probability == pytest.approx(plain(base, None, [base.tokenizer.bos_token_id], target), abs=1e-3)


def test_a_text_beyond_the_context_has_no_likelihood(base, bundle) -> None:
    found = text_likelihoods(
        base=base,
        template=template_of(base, "{text}"),
        bundle=bundle[0],
        texts=[("", "x" * 127), ("", "x y"), ("", "x" * 120)],
        batch_size=2,
    )
    assert found[0] is None
    assert None not in found[1:]


def test_what_has_no_likelihood_says_why(base) -> None:
    assert likelihood_obstacle(base, "shared prefix") is None
    assert "scores labels alone" in likelihood_obstacle(base, "PEFT")
