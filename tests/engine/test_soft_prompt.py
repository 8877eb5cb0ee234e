"""The soft prompt's file format is PEFT's, and what does not fit is refused."""

import pickle
import re

import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pipeline.engine.batching import Example
from pipeline.engine.scoring import score_examples
from pipeline.engine.soft_prompt import WEIGHTS_FILE, initial_soft_prompt, load_soft_prompt, save_soft_prompt, tensor_sha256
from pipeline.engine.template import Verbalizers
from pipeline.errors import BundleError

VERBALIZERS = Verbalizers(("a", "b"), ((60,), (61,)))


def test_peft_loads_our_file_and_gives_our_probabilities(tiny, tmp_path):
    base = tiny()
    soft_prompt = torch.randn(6, base.hidden_size, generator=torch.Generator().manual_seed(0))
    save_soft_prompt(tmp_path, soft_prompt=soft_prompt, base_model_id="tiny/llama", revision=None, init_text="anything")
    own = [[30, 31, 32], [40, 41]]
    ours = score_examples(
        base=base,
        soft_prompt=load_soft_prompt(tmp_path, base),
        head=(20,),
        examples=[Example(ids, -1) for ids in own],
        verbalizers=VERBALIZERS,
        batch_size=2,
    )
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), tmp_path).eval()
    with torch.no_grad():
        theirs = torch.stack([model(input_ids=torch.tensor([[20, *ids]])).logits[0, -1, [60, 61]] for ids in own])
    torch.testing.assert_close(ours, theirs.log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_a_prompt_saved_by_peft_loads_here(tiny, tmp_path):
    base = tiny()
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=7,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="thank you for the lovely flight",
        tokenizer_name_or_path=str(base.folder),
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config)
    model.save_pretrained(tmp_path)
    loaded = load_soft_prompt(tmp_path, base)
    assert torch.equal(loaded, model.prompt_encoder["default"].embedding.weight)
    assert torch.equal(loaded, initial_soft_prompt(base=base, num_virtual_tokens=7, init_text="thank you for the lovely flight"))


def test_initial_soft_prompt_tiles_a_short_text(tiny):
    base = tiny()
    ids = base.tokenizer("the plane")["input_ids"]
    rows = initial_soft_prompt(base=base, num_virtual_tokens=2 * len(ids) + 1, init_text="the plane")
    assert torch.equal(rows, base.vocabulary_embeddings()[torch.tensor([*ids, *ids, ids[0]])])


def test_one_flipped_bit_changes_the_tensors_sha256():
    tensor = torch.zeros(2, 3)
    other = tensor.clone()
    other.view(torch.int32)[1, 2] ^= 1
    assert tensor_sha256(tensor) != tensor_sha256(other)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prompt_embeddings": torch.zeros(4, 31)}, r"has shape \[4, 31\], the base model tiny/llama needs \[P, 32\]"),
        ({"prompt_embeddings": torch.full((4, 32), float("nan"))}, "holds NaN or infinite values"),
        ({"prompt_embeddings": torch.full((4, 32), 1e6)}, "has a row of norm"),
        ({"lora_A": torch.zeros(4, 32)}, r"holds the tensors \['lora_A'\], expected only 'prompt_embeddings'"),
        ({"prompt_embeddings": torch.zeros(4, 32), "more": torch.zeros(1)}, "expected only"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tiny, tmp_path, tensors, message):
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(BundleError, match=message):
        load_soft_prompt(tmp_path, tiny())


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("content", [b"", b"{}", pickle.dumps(_Bomb()), b"\xff" * 64])
def test_files_that_are_no_safetensors_are_refused_and_never_unpickled(tiny, tmp_path, content):
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(f"{tmp_path / WEIGHTS_FILE} cannot be read as safetensors")):
        load_soft_prompt(tmp_path, tiny())
