"""The tables of methods and base models: as data, in docs/methods.md, and in what the parts really do."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import peft
import pytest
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM
from transformers.models.auto import modeling_auto

from pipeline.engine.base_model import architecture_of
from pipeline.engine.methods import MethodName
from pipeline.engine.support import ARCHITECTURES, ENCODER_FAMILIES, METHODS, REFUSALS, SUPPORT, architecture_stated, check_supported
from pipeline.errors import BaseModelError

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "methods.md"
OPTIONS = {
    "gradient checkpointing": "gradient_checkpointing",
    "torch.compile": "compiled",
    "generation": "generation",
    "a tuned prompt as start": "tuned_prompt_start",
}


def table_after(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the document, without its head and with code marks removed."""
    lines = DOCUMENT.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].splitlines()
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
        elif rows:
            break
    return [rows[0], *rows[2:]]


def test_the_documents_table_is_the_data():
    head, *rows = table_after("Method x architecture")
    assert head == ["Method", *ARCHITECTURES]
    assert {row[0]: dict(zip(ARCHITECTURES, row[1:], strict=True)) for row in rows} == {name: dict(SUPPORT[name]) for name in METHODS}
    assert len(rows) == len(METHODS)


def test_the_documents_refusals_are_the_data():
    _, *rows = table_after("Refused combinations")
    assert rows == [[one.option, ", ".join(one.methods), ", ".join(one.architectures), one.reason] for one in REFUSALS]


def test_every_method_of_the_engine_is_in_the_table():
    assert set(METHODS) == {*get_args(MethodName), "lora"}
    assert all(set(SUPPORT[method]) == set(ARCHITECTURES) for method in METHODS)


def test_every_method_has_its_paragraph_in_the_document():
    head, *rows = table_after("What each method trains")
    assert [row[0] for row in rows] == list(METHODS)
    assert all(len(row) == len(head) and all(row) for row in rows)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_combination_is_answered_as_the_tables_say(method, architecture):
    assert check_supported(method=method, architecture=architecture) == SUPPORT[method][architecture]
    for option, argument in OPTIONS.items():
        asked = {argument: True}
        reasons = [one.reason for one in REFUSALS if one.option == option and method in one.methods and architecture in one.architectures]
        assert len(reasons) <= 1
        if reasons:
            with pytest.raises(
                BaseModelError, match=f"{option} is refused for the method {method} .* architecture {architecture}: {reasons[0]}"
            ):
                check_supported(method=method, architecture=architecture, **asked)
        else:
            assert check_supported(method=method, architecture=architecture, **asked) == SUPPORT[method][architecture]


# Speech and music: as a causal language model transformers loads their decoder alone, which has no text to read.
NOT_OF_TEXT = {"musicgen", "musicgen_melody", "whisper"}
WITHOUT_DEFAULT = {"encoder-decoder", "gemma4_assistant"}  # they are made of other configs, with transformers 5.17 the first one too


def test_what_a_config_states_is_what_loading_finds():
    """For every family that may be a base model, with each class its config may name; the encoders among them are all known."""
    tables = [getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM")]
    told: dict[str, set[str]] = {architecture: set() for architecture in ARCHITECTURES}
    encoders: set[str] = set()
    for kind in sorted({kind for table in tables for kind in table} - NOT_OF_TEXT - WITHOUT_DEFAULT):
        config = CONFIG_MAPPING[kind]()
        try:
            found = architecture_of(config, kind)
        except BaseModelError:
            continue  # no base model, whatever its config says
        encoders |= {kind} if found == "encoder" else set()
        for name in {table[kind] for table in (*tables, modeling_auto.MODEL_MAPPING_NAMES) if isinstance(table.get(kind), str)}:
            config.architectures = [name]
            stated = architecture_stated(config.to_diff_dict())
            assert stated in (None, found), f"{kind} as {name}: {stated}, loaded as {found}"
            told[stated or found] |= {kind} if stated else set()
    assert told["encoder"] == encoders == ENCODER_FAMILIES & set(CONFIG_MAPPING)  # 5.17 does not know all families yet
    assert {"t5", "bart", "mbart", "pegasus"} <= told["encoder_decoder"]
    assert {"llama", "qwen3", "gpt2", "mistral", "gemma2", "bloom"} <= told["decoder"]


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": 3}, {"architectures": []}, {"architectures": "LlamaForCausalLM"}, {"model_type": "bert", "is_decoder": True}],
)
def test_a_config_that_does_not_tell_is_left_to_loading(config):
    assert architecture_stated(config) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"method": "adapters", "architecture": "decoder"}, "tune.method is 'adapters', expected one of prompt_tuning, "),
        ({"method": "lora", "architecture": "vision"}, "architecture is 'vision', expected one of decoder, "),
    ],
)
def test_unknown_names_are_refused(names, message):
    with pytest.raises(BaseModelError, match=message):
        check_supported(**names)


def test_peft_too_refuses_prefix_tuning_with_gradient_checkpointing(model_folder):
    model = AutoModelForSeq2SeqLM.from_pretrained(model_folder("t5"))
    model._set_gradient_checkpointing(enable=True)
    with pytest.raises(ValueError, match="does not work with gradient checkpointing"):
        peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3))


def test_the_tables_are_read_without_torch():
    code = "import sys, pipeline.engine.support; print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
