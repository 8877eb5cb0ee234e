"""The tokenizer and the context of a base model, read without loading it, are those of the loaded one."""

import json
import shutil
import subprocess
import sys

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, BertTokenizer

from pipeline.engine.model_files import read_tokenizer
from pipeline.errors import BaseModelError
from tests.engine.test_base_model import write_gguf
from tests.engine.tiny_models import make_tokenizer

TEXT = "the plane was late, <s> and nobody said \u00e9 \U0001f600"


def read(folder):
    return read_tokenizer(source={"kind": "directory", "id": "tiny", "path": str(folder)})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "t5", "bloom"])
def test_tokens_and_context_are_those_of_the_loaded_model(model_folder, tiny, family):
    base, files = tiny(family), read(model_folder(family))
    assert (
        Tokenizer.from_str(files.tokenizer).encode(TEXT, add_special_tokens=False).ids
        == base.tokenizer(TEXT, add_special_tokens=False).input_ids
    )
    assert files.context_length == base.context_length


def test_a_context_that_only_the_tokenizer_names(model_folder, tiny, tmp_path):
    folder = tmp_path / "t5"
    shutil.copytree(model_folder("t5"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77}))
    assert read(folder).context_length == 77
    assert tiny("t5").context_length == read(model_folder("t5")).context_length == 10**6


def test_older_vocabulary_files_will_do(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "late", "##r", "plane"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 64}))
    files = read(tmp_path)
    assert Tokenizer.from_str(files.tokenizer).encode("plane later", add_special_tokens=False).tokens == ["plane", "late", "##r"]
    assert files.context_length == 64
    assert BertTokenizer(str(tmp_path / "vocab.txt")).tokenize("plane later") == ["plane", "late", "##r"]


def test_a_gguf_file_is_converted_once(model_folder, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, AutoModelForCausalLM.from_pretrained(model_folder("qwen2")), make_tokenizer())
    source = {"kind": "gguf", "id": "tiny/qwen2", "path": str(path)}
    first = read_tokenizer(source=source, cache=tmp_path / "cache")
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(made) == 1
    assert read_tokenizer(source=source, cache=tmp_path / "cache") == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")} == made
    assert Tokenizer.from_str(first.tokenizer).encode("late").ids == make_tokenizer()("late").input_ids


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_named(model_folder, tmp_path, lost):
    folder = tmp_path / "tiny"
    shutil.copytree(model_folder("llama"), folder)
    for name in {lost, "tokenizer_config.json" if lost == "tokenizer.json" else lost}:
        (folder / name).unlink()
    with pytest.raises(BaseModelError, match="tokenizer of tiny"):
        read(folder)


def test_reading_it_loads_neither_torch_nor_transformers(model_folder):
    code = (
        "import sys\nfrom pipeline.engine.model_files import read_tokenizer\n"
        "read_tokenizer(source={'kind': 'directory', 'id': 'tiny', 'path': sys.argv[1]})\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model_folder("llama"))], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
