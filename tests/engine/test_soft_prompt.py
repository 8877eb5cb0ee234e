"""The soft prompt's file format is PEFT's, and what does not fit is refused before it is used."""

import json
import os
import pickle
import re
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.engine.batching import Example
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.scoring import score_examples
from pipeline.engine.shared_prefix import encode_prefixes, key_value_shape
from pipeline.engine.soft_prompt import CONFIG_FILE, WEIGHTS_FILE, SoftPrompt, load_soft_prompt, save_soft_prompt, tensor_sha256
from pipeline.engine.template import Verbalizers
from pipeline.errors import BundleError

HEAD = (20, 21)
OWN = [[30, 31, 32], [40, 41], [50]]
VERBALIZERS = Verbalizers(("a", "b"), ((60,), (61,)))
COUNT = 5
METHODS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {},
    "residual_prompt_tuning": {},
    "p_tuning": {"encoder": "LSTM"},
    "multitask_prompt_tuning": {"ranks": 2},
    "prefix_tuning": {"projection": True},
}


def rows(base, seed=0, count=COUNT):
    return 0.15 * torch.randn(count, base.hidden_size, generator=torch.Generator().manual_seed(seed))


def save(folder, base, soft_prompt):
    save_soft_prompt(
        folder,
        soft_prompt=soft_prompt,
        base_model_id=base.source["id"],
        revision=None,
        init_text="anything",
        key_value_shape=key_value_shape(base) if soft_prompt.kind == "key_values" else None,
    )


def scores(base, soft_prompt):
    with torch.no_grad():
        prefix = encode_prefixes(base, [soft_prompt], HEAD)
    return score_examples(base=base, prefix=prefix, examples=[Example(ids, -1) for ids in OWN], verbalizers=VERBALIZERS, batch_size=3)


def peft_scores(model, **more):
    """Log-probabilities of the two verbalizers from a PEFT model, one example at a time."""
    found = []
    for own in OWN:
        ids = torch.tensor([[*HEAD, *own]])
        with torch.no_grad():
            found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0, -1, [60, 61]])
    return torch.stack(found).log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_what_every_method_exports_and_gives_our_logits(tiny, tmp_path, family, method):
    base = tiny(family)
    module = build_method(base=base, settings=MethodSettings(name=method, **METHODS[method]), embeddings=rows(base), seed=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    soft_prompt = module().detached()
    save(tmp_path, base, soft_prompt)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), tmp_path).eval()
    theirs = peft_scores(model)
    plain = scores(base, None)
    assert float((theirs - plain).abs().max()) > 1e-2, "the soft prompt must matter for the comparison to say something"
    torch.testing.assert_close(scores(base, soft_prompt), theirs, atol=1e-5, rtol=1e-5)
    loaded = load_soft_prompt(tmp_path, base)
    assert loaded.kind == soft_prompt.kind
    assert torch.equal(loaded.values, soft_prompt.values)


PEFT_CONFIGS: dict[str, Any] = {
    "prompt_tuning": peft.PromptTuningConfig,
    "p_tuning": lambda **common: peft.PromptEncoderConfig(encoder_hidden_size=16, **common),
    "p_tuning_lstm": lambda **common: peft.PromptEncoderConfig(encoder_reparameterization_type="LSTM", encoder_hidden_size=16, **common),
    "multitask": lambda **common: peft.MultitaskPromptTuningConfig(num_ranks=3, **common),
    "prefix_tuning": peft.PrefixTuningConfig,
    "prefix_tuning_projection": lambda **common: peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=16, **common),
}


def saved_by_peft(folder, base, kind, seed=1, **more):
    torch.manual_seed(seed)
    config = PEFT_CONFIGS[kind](task_type="CAUSAL_LM", num_virtual_tokens=COUNT, **more)
    model: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).eval()
    if kind == "multitask":  # PEFT starts the task's matrix near 0, where it would hide mistakes in it
        torch.nn.init.normal_(model.prompt_encoder["default"].prefix_task_cols)
        torch.nn.init.normal_(model.prompt_encoder["default"].prefix_task_rows)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_a_soft_prompt_saved_by_peft_loads_here_and_gives_its_logits(tiny, tmp_path, family, kind):
    base = tiny(family)
    model = saved_by_peft(tmp_path, base, kind)
    more = {"task_ids": torch.zeros(1, dtype=torch.long)} if kind == "multitask" else {}
    torch.testing.assert_close(scores(base, load_soft_prompt(tmp_path, base)), peft_scores(model, **more), atol=1e-5, rtol=1e-5)


def test_a_multitask_prompt_of_several_tasks_is_refused(tiny, tmp_path):
    saved_by_peft(tmp_path, tiny(), "multitask", num_tasks=2)
    with pytest.raises(BundleError, match=r"num_tasks is 2, expected 1\. Use a soft prompt of one task"):
        load_soft_prompt(tmp_path, tiny())


def test_half_precision_files_load_as_float32(tiny, tmp_path):
    values = rows(tiny()).bfloat16()
    save(tmp_path, tiny(), SoftPrompt(values))
    save_file({"prompt_embeddings": values}, tmp_path / WEIGHTS_FILE)
    loaded = load_soft_prompt(tmp_path, tiny()).values
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, values.float())


def test_a_loaded_soft_prompt_does_not_follow_its_file(tiny, tmp_path):
    values = rows(tiny())
    save(tmp_path, tiny(), SoftPrompt(values))
    loaded = load_soft_prompt(tmp_path, tiny()).values
    path = tmp_path / WEIGHTS_FILE
    with path.open("r+b") as stream:  # in place, as a program that shares the mapped file would
        stream.seek(-64, os.SEEK_END)
        stream.write(b"\xff" * 64)
    assert torch.equal(loaded, values)


def test_one_flipped_bit_changes_the_tensors_sha256():
    tensor = torch.zeros(2, 3)
    other = tensor.clone()
    other.view(torch.int32)[1, 2] ^= 1
    assert tensor_sha256(tensor) != tensor_sha256(other)


def test_key_values_are_not_saved_without_the_shape_they_have(tmp_path):
    with pytest.raises(ValueError, match="saved with the key_value_shape"):
        save_soft_prompt(tmp_path, soft_prompt=SoftPrompt(torch.zeros(2, 64), "key_values"), base_model_id="x", revision=None, init_text="")


@pytest.fixture
def embeddings_folder(tiny, tmp_path):
    save(tmp_path, tiny(), SoftPrompt(rows(tiny())))
    return tmp_path


@pytest.fixture
def prefix_folder(tiny, tmp_path):
    base = tiny()
    save(tmp_path, base, SoftPrompt(torch.zeros(COUNT, 2 * 2 * 2 * 8), "key_values"))
    return tmp_path


def with_one(value, shape=(COUNT, 32), dtype=torch.float32):
    values = torch.zeros(shape, dtype=dtype)
    values.view(-1)[7] = value
    return values


REFUSED_TENSORS = {
    "another width": ({"prompt_embeddings": torch.zeros(COUNT, 31)}, r"has shape \[5, 31\], .* the base model tiny/llama need \[5, 32\]"),
    "another number": ({"prompt_embeddings": torch.zeros(4, 32)}, r"has shape \[4, 32\], its config and the base model .* need \[5, 32\]"),
    "no rows": ({"prompt_embeddings": torch.zeros(0, 32)}, r"has shape \[0, 32\]"),
    "three dimensions": ({"prompt_embeddings": torch.zeros(1, COUNT, 32)}, r"has shape \[1, 5, 32\]"),
    "integers": ({"prompt_embeddings": torch.ones(COUNT, 32, dtype=torch.int32)}, "prompt_embeddings holds I32 values, expected one of"),
    "booleans": ({"prompt_embeddings": torch.ones(COUNT, 32, dtype=torch.bool)}, "holds BOOL values"),
    "NaN": ({"prompt_embeddings": with_one(float("nan"))}, "holds NaN or infinite values"),
    "infinity": ({"prompt_embeddings": with_one(float("-inf"))}, "holds NaN or infinite values"),
    "infinity in half precision": ({"prompt_embeddings": with_one(float("inf"), dtype=torch.float16)}, "holds NaN or infinite values"),
    "a long row": (
        {"prompt_embeddings": with_one(1e3)},
        r"has a row of norm 1e\+03; the longest the base model itself has is 1\.\d+ and 100",
    ),
    "a row whose norm overflows": ({"prompt_embeddings": torch.full((COUNT, 32), 3e38)}, "has a row of norm inf"),
    "another name": ({"lora_A": torch.zeros(COUNT, 32)}, r"holds the tensors \['lora_A'\], expected \['prompt_embeddings'\]"),
    "one more": ({"prompt_embeddings": torch.zeros(COUNT, 32), "x": torch.zeros(1)}, r"\['prompt_embeddings', 'x'\], expected"),
    "a long file": ({"prompt_embeddings": torch.zeros(1000, 32)}, r"has 128\d\d\d bytes, such a file has at most 66176"),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_embeddings_that_do_not_fit_are_refused(tiny, embeddings_folder, case):
    tensors, message = REFUSED_TENSORS[case]
    save_file(tensors, embeddings_folder / WEIGHTS_FILE)
    with pytest.raises(BundleError, match=message) as raised:
        load_soft_prompt(embeddings_folder, tiny())
    assert str(embeddings_folder / WEIGHTS_FILE) in str(raised.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(COUNT, 32), r"has shape \[5, 32\], .* need \[5, 64\]"),
        (torch.full((COUNT, 64), float("nan")), "holds NaN or infinite values"),
        (with_one(1e4, (COUNT, 64)), r"has a row of norm 1e\+04; the longest the base model itself has is \d\.\d+ and 100 times"),
        (torch.ones(COUNT, 64, dtype=torch.int64), "holds I64 values"),
    ],
)
def test_key_values_that_do_not_fit_are_refused(tiny, prefix_folder, values, message):
    load_soft_prompt(prefix_folder, tiny())
    save_file({"prompt_embeddings": values}, prefix_folder / WEIGHTS_FILE)
    with pytest.raises(BundleError, match=message):
        load_soft_prompt(prefix_folder, tiny())


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("content", [b"", b"{}", pickle.dumps(_Bomb()), b"\xff" * 64])
def test_files_that_are_no_safetensors_are_refused_and_never_unpickled(tiny, embeddings_folder, content):
    (embeddings_folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(f"{embeddings_folder / WEIGHTS_FILE} cannot be read as safetensors")):
        load_soft_prompt(embeddings_folder, tiny())


def test_a_pickle_beside_no_safetensors_is_not_looked_at(tiny, embeddings_folder):
    """PEFT's own loader falls back to adapter_model.bin."""
    (embeddings_folder / WEIGHTS_FILE).unlink()
    (embeddings_folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(BundleError, match=re.escape(f"{embeddings_folder / WEIGHTS_FILE} cannot be read: No such file")):
        load_soft_prompt(embeddings_folder, tiny())


def header(folder, **entry):
    """A safetensors file whose header says `entry` of the tensor and which holds the 640 bytes of the right one."""
    described = {"prompt_embeddings": {"dtype": "F32", "shape": [COUNT, 32], "data_offsets": [0, 640], **entry}}
    text = json.dumps(described).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(640))


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [0, 320]},
        {"data_offsets": [-640, 0]},
        {"shape": [COUNT, 2**62]},
        {"shape": [COUNT, 64]},
        {"dtype": "Q4"},
    ],
)
def test_a_header_that_lies_is_refused(tiny, embeddings_folder, entry):
    header(embeddings_folder)
    assert load_soft_prompt(embeddings_folder, tiny()).values.shape == (COUNT, 32)
    header(embeddings_folder, **entry)
    with pytest.raises(BundleError, match="cannot be read as safetensors"):
        load_soft_prompt(embeddings_folder, tiny())


def test_a_header_longer_than_any_is_refused_unread(tiny, embeddings_folder):
    path = embeddings_folder / WEIGHTS_FILE
    path.write_bytes((50_000_000).to_bytes(8, "little") + b" " * 50_000_000)
    with pytest.raises(BundleError, match="has 50000008 bytes, such a file has at most 66176"):
        load_soft_prompt(embeddings_folder, tiny())


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_links_and_pipes_are_refused(tiny, embeddings_folder, tmp_path_factory, name):
    path = embeddings_folder / name
    outside = tmp_path_factory.mktemp("outside") / name
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(BundleError, match=re.escape(f"{path} is not a plain file. Copy the file itself into the folder")):
        load_soft_prompt(embeddings_folder, tiny())
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever
    with pytest.raises(BundleError, match="is not a plain file"):
        load_soft_prompt(embeddings_folder, tiny())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA', expected .*PROMPT_TUNING"),
        ({"peft_type": "os.system"}, "peft_type is 'os.system'"),
        ({"peft_type": ["PROMPT_TUNING"]}, r"peft_type is \['PROMPT_TUNING'\]"),
        ({"peft_type": "x" * 5000}, "peft_type is 'x{79}, expected"),
        ({"auto_mapping": {"base_model_class": "Popen", "parent_library": "subprocess"}}, "auto_mapping is .*subprocess.*, expected None"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', expected CAUSAL_LM"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, expected 1"),
        ({"num_virtual_tokens": 6}, r"has shape \[5, 32\], its config and the base model tiny/llama need \[6, 32\]"),
        ({"num_virtual_tokens": 10**9}, "num_virtual_tokens is 1000000000, expected 1 to 128"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens is True, expected 1 to 128"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ({"peft_type": "PREFIX_TUNING"}, r"has shape \[5, 32\], .* need \[5, 64\]"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 1, "num_ranks": 10**9}, "num_ranks is 1000000000, expected 1 to 32"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 1, "num_ranks": 1}, "holds the tensors"),
        ({"inference_mode": "x" * 70_000}, "has 7[0-9]{4} bytes, such a file has at most 65536"),
    ],
)
def test_configs_that_describe_something_else_are_refused(tiny, embeddings_folder, changes, message):
    path = embeddings_folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BundleError, match=message):
        load_soft_prompt(embeddings_folder, tiny())


@pytest.mark.parametrize("content", ["", "[1]", "[" * 60_000, '{"peft_type"', "9" * 5000, "\udcff"])
def test_configs_that_are_no_json_object_are_refused(tiny, embeddings_folder, content):
    path = embeddings_folder / CONFIG_FILE
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=re.escape(str(path)) + " (cannot be read as PEFT's adapter config|holds a list)"):
        load_soft_prompt(embeddings_folder, tiny())


def test_keys_that_nobody_reads_change_nothing(tiny, embeddings_folder):
    """A base model, a tokenizer or a class that the config names is not fetched, loaded or imported."""
    before = load_soft_prompt(embeddings_folder, tiny())
    path = embeddings_folder / CONFIG_FILE
    strange = {"base_model_name_or_path": "/nowhere", "tokenizer_name_or_path": "no/such", "tokenizer_kwargs": {"trust_remote_code": True}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **strange, "unheard_of": [1]}))
    assert torch.equal(load_soft_prompt(embeddings_folder, tiny()).values, before.values)
    assert torch.equal(before.values, load_file(embeddings_folder / WEIGHTS_FILE)["prompt_embeddings"])
