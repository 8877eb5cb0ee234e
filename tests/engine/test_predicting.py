"""A tuned prompt bundle gives the probabilities that PEFT gives, and never on another base model."""

import json
import pickle
import shutil
import sys
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pipeline.engine import ranking
from pipeline.engine.base_model import load_base_model
from pipeline.engine.initialisation import key_values_of
from pipeline.engine.predicting import load_predictor
from pipeline.engine.shared_prefix import key_value_shape
from pipeline.engine.soft_prompt import SoftPrompt, save_soft_prompt, tensor_sha256
from pipeline.errors import BundleError, TemplateError
from pipeline.manifest import verify_bundle, write_manifest

TEMPLATE = "Tweet: {text}\nSentiment:"
WORDS = {"negative": " bad", "positive": " good", "neutral": " the lovely"}  # of 2, 1 and several tokens
FIELD = 20  # the last text is longer
TEXTS = ["the plane was late", "thank you", "boarding starts at gate four at six in the evening"]
ROWS = [{"text": text, "unused": "x"} for text in TEXTS]


@pytest.fixture
def make_bundle(tiny, tmp_path):
    """A function that writes a bundle: embeddings or key_values, for a family."""

    def make(family="llama", kind="embeddings", words=WORDS, **of_template):
        base = tiny(family)
        values = 0.15 * torch.randn(4, base.hidden_size, generator=torch.Generator().manual_seed(0))
        soft_prompt = SoftPrompt(values) if kind == "embeddings" else SoftPrompt(key_values_of(base, values), "key_values")
        save_soft_prompt(
            tmp_path,
            soft_prompt=soft_prompt,
            base_model_id=base.source["id"],
            revision=None,
            init_text="anything",
            key_value_shape=key_value_shape(base),
        )
        (tmp_path / "template.json").write_text(json.dumps({"template": TEMPLATE, "maximum_field_tokens": FIELD, **of_template}))
        (tmp_path / "verbalizers.json").write_text(json.dumps(words))
        write_manifest(tmp_path, {"soft_prompt": {"sha256": tensor_sha256(soft_prompt.values)}, "base_model": base.identity()})
        return tmp_path

    return make


def peft_probabilities(base, bundle, per_token=False):
    """Softmax over the log-probabilities of the verbalizers' tokens, from PEFT's own model, one text and verbalizer at a time."""
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), bundle).eval()
    found = np.zeros((len(TEXTS), len(WORDS)))
    for row, text in enumerate(TEXTS):
        head, field, tail = (base.tokenizer(part)["input_ids"] for part in ("Tweet:", " " + text, "\nSentiment:"))
        for column, word in enumerate(WORDS.values()):
            answer = base.tokenizer(word)["input_ids"]
            ids = torch.tensor([head + field[:FIELD] + tail + answer])
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            given = logits[-len(answer) - 1 : -1].log_softmax(-1)
            total = sum(float(given[depth, token]) for depth, token in enumerate(answer))
            found[row, column] = total / len(answer) if per_token else total
    exponents = np.exp(found - found.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("normalised", [None, False, True])
def test_a_bundle_gives_the_probabilities_of_pefts_model(tiny, make_bundle, family, kind, normalised):
    base = tiny(family)
    bundle = make_bundle(family, kind, **({} if normalised is None else {"length_normalisation": normalised}))
    verify_bundle(bundle)
    predictor = load_predictor(bundle, base=base)
    assert predictor.fields == ("text",)
    assert predictor.labels == tuple(WORDS)
    found = predictor.predict(ROWS, batch_size=2)
    expected = peft_probabilities(base, bundle, per_token=bool(normalised))
    assert len({len(base.tokenizer(word)["input_ids"]) for word in WORDS.values()}) > 1, "words of one length would not tell"
    assert np.abs(expected - peft_probabilities(base, bundle, per_token=not normalised)).max() > 0.02
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_the_base_model_of_the_manifest_is_loaded(tiny, make_bundle):
    bundle = make_bundle()
    expected = load_predictor(bundle, base=tiny()).predict(ROWS)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["base_model"]["source"]["path"] == str(tiny().folder)
    predictor = load_predictor(bundle, device="cpu")
    assert predictor.base is not tiny()
    np.testing.assert_allclose(predictor.predict(ROWS), expected, atol=0.1 if predictor.base.dtype == torch.bfloat16 else 1e-6)


def test_the_prefix_is_computed_once_for_all_predictions(tiny, make_bundle, monkeypatch):
    calls: list[int] = []
    whole = ranking.encode_prefixes

    def counted(*arguments):
        calls.append(1)
        return whole(*arguments)

    monkeypatch.setattr(ranking, "encode_prefixes", counted)
    seen: list[int] = []
    hook = tiny().model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        predictor = load_predictor(make_bundle(words={"a": "b", "c": "d"}), base=tiny())
        loaded = len(seen)
        first = predictor.predict(ROWS, batch_size=1)
        again = predictor.predict(ROWS, batch_size=1)
    finally:
        hook.remove()
    assert calls == [1]
    own = sorted((len(ids) for ids in predictor.template.encode(ROWS)), reverse=True)
    assert seen[loaded:] == own * 2, "only the rows' own tokens may be run"
    np.testing.assert_array_equal(first, again)
    assert not any(tensor.requires_grad for tensor in predictor.ranker.prefix.tensors())


def test_no_rows_give_no_probabilities_and_a_missing_field_is_named(tiny, make_bundle):
    predictor = load_predictor(make_bundle(), base=tiny())
    assert predictor.predict([]).shape == (0, 3)
    with pytest.raises(TemplateError, match="Row 2: the field 'text'"):
        predictor.predict([ROWS[0], {"txt": "x"}])


def edit(bundle, name, **changes):
    path = bundle / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_base_model_of_the_same_shape_is_refused(make_bundle, model_folder, tmp_path_factory):
    """PEFT loads such an adapter without a word."""
    bundle = make_bundle()
    other = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_folder("llama"), other)
    path = other / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    base = load_base_model(source={"kind": "directory", "id": "tiny/llama", "path": str(other)}, dtype="float32", device="cpu")
    with pytest.raises(
        BundleError, match=f"was tuned on tiny/llama with weights_sha256 [0-9a-f]{{64}}, the model found has {base.weights_sha256}"
    ):
        load_predictor(bundle, base=base)


def test_another_tokenizer_is_refused(tiny, make_bundle):
    bundle = make_bundle()
    identity = {**tiny().identity(), "tokenizer_sha256": "0" * 64}
    edit(bundle, "manifest.json", base_model=identity)
    with pytest.raises(BundleError, match=f"with tokenizer_sha256 {'0' * 64}, the model found has {tiny().tokenizer_sha256}"):
        load_predictor(bundle, base=tiny())


def test_other_values_than_the_manifest_records_are_refused(tiny, make_bundle):
    bundle = make_bundle()
    save_file({"prompt_embeddings": torch.zeros(4, 32)}, bundle / "adapter_model.safetensors")
    with pytest.raises(BundleError, match="do not have the sha256 its manifest records"):
        load_predictor(bundle, base=tiny())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("manifest.json", {"base_model": "x"}, "base_model is 'x', expected a value of type dict"),
        ("manifest.json", {"base_model": {}}, "was tuned on None with weights_sha256 None"),
        ("manifest.json", {"soft_prompt": None}, "soft_prompt is None, expected a value of type dict"),
        ("manifest.json", {"soft_prompt": {}}, "do not have the sha256 its manifest records"),
        ("template.json", {"template": ["{text}"]}, r"template is \['\{text\}'\], expected a value of type str"),
        ("template.json", {"maximum_field_tokens": "20"}, "maximum_field_tokens is '20', expected a value of type int"),
        ("template.json", {"length_normalisation": "yes"}, "length_normalisation is 'yes', expected a value of type bool"),
        ("verbalizers.json", {"negative": 3}, "negative is 3, expected a value of type str"),
    ],
)
def test_files_with_other_keys_than_expected_are_refused(tiny, make_bundle, name, changes, message):
    bundle = make_bundle()
    edit(bundle, name, **changes)
    with pytest.raises(BundleError, match=message):
        load_predictor(bundle, base=tiny())


@pytest.mark.parametrize("name", ["manifest.json", "template.json", "verbalizers.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 60_000, pickle.dumps({"template": TEMPLATE})])
def test_files_that_are_no_json_object_are_refused(tiny, make_bundle, name, content):
    bundle = make_bundle()
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} (cannot be read as JSON|holds)"):
        load_predictor(bundle, base=tiny())


@pytest.mark.parametrize(
    "source",
    [
        None,
        [],
        {},
        {"kind": "pickle", "id": "x", "path": "x"},
        {"kind": ["hub"], "id": "x", "revision": "x"},
        {"kind": "hub", "id": "x"},
        {"kind": "directory", "id": "x", "path": 3},
        {"kind": "package_gguf", "id": "x", "package": "trap.inner", "path": "x.gguf"},
        {"kind": "package_gguf", "id": "x", "package": "../trap", "path": "x.gguf"},
    ],
)
def test_a_manifest_cannot_name_code_to_import(tiny, make_bundle, tmp_path_factory, monkeypatch, source: Any):
    """Python finds a package inside another one by importing the outer one."""
    folder = tmp_path_factory.mktemp("trap")
    (folder / "trap").mkdir()
    (folder / "trap" / "__init__.py").write_text("raise SystemExit('imported because a manifest said so')")
    monkeypatch.syspath_prepend(str(folder))
    bundle = make_bundle()
    edit(bundle, "manifest.json", base_model={**tiny().identity(), "source": source})
    with pytest.raises(BundleError, match=r"manifest's base_model\.source is|manifest looks for the base model in the package"):
        load_predictor(bundle, device="cpu")
    assert "trap" not in sys.modules
