"""Loading base models: each architecture with its class, GGUF files, what is refused."""

import json
import shutil

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    T5ForConditionalGeneration,
    ViTConfig,
)

from pipeline.engine.base_model import load_base_model
from pipeline.errors import BaseModelError
from tests.engine.tiny_models import make_tokenizer


def load(folder, *, name="tiny", **more):
    return load_base_model(source={"kind": "directory", "id": name, "path": str(folder)}, device="cpu", **{"dtype": "float32", **more})


@pytest.mark.parametrize(
    ("family", "architecture", "kind", "context"),
    [
        ("qwen2", "decoder", Qwen2ForCausalLM, 128),
        ("t5", "encoder_decoder", T5ForConditionalGeneration, 77),
        ("bert", "encoder", BertForSequenceClassification, 77),
    ],
)
def test_each_architecture_gets_its_class_and_its_limit(model_folder, tmp_path, family, architecture, kind, context):
    folder = tmp_path / family
    shutil.copytree(model_folder(family), folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer()._tokenizer, model_max_length=77)
    tokenizer.save_pretrained(folder)
    base = load(folder, num_labels=5 if architecture == "encoder" else None)
    assert base.architecture == architecture
    assert type(base.model) is kind
    assert base.context_length == context
    assert base.hidden_size == 32
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    if architecture == "encoder":
        assert base.model.config.num_labels == 5
        assert base.model.classifier.weight.shape == (5, 32)


def test_a_bert_that_says_it_is_a_decoder_is_one(model_folder, tmp_path):
    folder = tmp_path / "decoder"
    shutil.copytree(model_folder("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_decoder": True}))
    with pytest.raises(
        BaseModelError, match=r"lacks .* weights of tiny"
    ):  # as a decoder it has a language model head, which the file lacks
        load(folder)


def test_auto_dtype_of_an_encoder_is_float32(model_folder, monkeypatch):
    monkeypatch.setattr("pipeline.engine.hardware._cpu_multiplies_bfloat16", lambda: True)
    assert load(model_folder("bert"), num_labels=3, dtype="auto").dtype == torch.float32
    assert load(model_folder("t5"), dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_device_map_gives_the_same_logits(model_folder, monkeypatch, family):
    loader, asked = (AutoModelForCausalLM if family == "llama" else AutoModelForSeq2SeqLM), []
    plainly = loader.from_pretrained
    monkeypatch.setattr(loader, "from_pretrained", lambda *given, **more: asked.append(more["device_map"]) or plainly(*given, **more))
    inputs = {"input_ids": torch.arange(20, 30)[None]}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[1, 5]])
    plain, mapped = (load(model_folder(family), device_map=kind).model for kind in ("none", "auto"))
    assert asked == [None, {"": "cpu"}]  # a machine without GPU has one device to spread over
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, mapped(**inputs).logits)


def test_an_encoder_needs_the_number_of_labels(model_folder):
    with pytest.raises(BaseModelError, match="tiny is an encoder, whose classification head needs the number of labels, found None"):
        load(model_folder("bert"))


def test_a_type_that_is_no_language_model_is_refused(model_folder, tmp_path):
    folder = tmp_path / "vision"
    shutil.copytree(model_folder("llama"), folder)
    ViTConfig().save_pretrained(folder)
    with pytest.raises(BaseModelError, match="tiny is of the type 'vit', which is neither"):
        load(folder)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("t5", "decoder.block.1.layer.0.SelfAttention.q.weight"),
        ("bert", "bert.encoder.layer.0.output.dense.weight"),
        ("bert", "bert.embeddings.position_embeddings.weight"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "of another shape"])
def test_a_model_with_weights_missing_is_refused(model_folder, tmp_path, family, name, how):
    folder = tmp_path / family
    shutil.copytree(model_folder(family), folder)
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(name)
    if how == "of another shape":
        tensors[name] = tensor[:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"lacks 1 weights of tiny, or has them in another shape .{name} first"):
        load(folder, num_labels=3 if family == "bert" else None)


def test_only_safetensors_are_read(model_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder("llama"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"holds no \*\.safetensors file"):
        load(folder)


def test_a_vocabulary_file_identifies_a_tokenizer_without_tokenizer_json(model_folder, tmp_path):
    shas = []
    for word in ("late", "early"):
        folder = tmp_path / word
        shutil.copytree(model_folder("bert"), folder)
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", word]))
        shas.append(load(folder, num_labels=3).tokenizer_sha256)
    assert shas[0] != shas[1]


def write_gguf(path, model, tokenizer):
    """The model as llama.cpp writes it (for Qwen2 it permutes nothing)."""
    config, writer = model.config, gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer._tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    tokens += [f"<unused{number}>" for number in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, ending = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_local_gguf_file_is_converted_once(model_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder("qwen2"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model, make_tokenizer())
    said = []
    source = {"kind": "gguf", "id": "tiny/qwen2", "path": str(path)}
    bases = [
        load_base_model(source=source, dtype="float32", device="cpu", attention="eager", cache=tmp_path / "cache", say=said.append)
        for _ in range(2)
    ]
    assert [message.split(",")[0] for message in said] == ["Converting tiny.gguf to safetensors"]
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(bases[1].model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert bases[0].weights_sha256 == bases[1].weights_sha256
    assert bases[0].tokenizer("the plane was late")["input_ids"] == make_tokenizer()("the plane was late")["input_ids"]


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), (b"PK\x03\x04zip", r"is no GGUF file: it starts with b'PK")])
def test_a_path_that_is_no_gguf_file_is_refused(tmp_path, content, message):
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BaseModelError, match=message):
        load_base_model(source={"kind": "gguf", "id": "x", "path": str(path)}, cache=tmp_path / "cache")
