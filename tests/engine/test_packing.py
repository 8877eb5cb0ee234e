"""Packed rows against padded batches: the same scores, losses and gradients."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example, collate
from pipeline.engine.packing import FLEX_ATTENTION, pack
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.shared_prefix import encode_prefixes, key_value_shape, label_scores
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.template import Verbalizers
from pipeline.errors import BaseModelError

HEAD = (20, 21)
EXAMPLES = [Example(list(range(30, 30 + length)), length % 3) for length in (5, 1, 9, 2, 4, 12)]
ROWS = [0, 1, 0, 2, 2, 1]  # each prompt has an example short enough to see it through a window of 6 tokens
SINGLE = Verbalizers(("a", "b", "c"), ((60,), (61,), (62,)))
SEVERAL = Verbalizers(("a", "b", "c"), ((60,), (61, 70), (62, 71, 72)))


def soft_prompts(base: BaseModel, kind: str = "embeddings") -> list[SoftPrompt]:
    """Three prompts of 3, 7 and 4 virtual tokens whose values collect gradients."""
    layers, heads, size = key_value_shape(base)
    width = base.hidden_size if kind == "embeddings" else 2 * layers * heads * size
    draws = [torch.randn(count, width, generator=torch.Generator().manual_seed(count)) * 0.3 for count in (3, 7, 4)]
    return [SoftPrompt(values.to(base.device).requires_grad_(True), kind) for values in draws]


def loss_and_gradients(base: BaseModel, *, packed: bool, verbalizers=SINGLE, kind="embeddings") -> tuple[float, list[torch.Tensor]]:
    prompts = soft_prompts(base, kind)
    prefix = replace(encode_prefixes(base, prompts, HEAD), packed=packed)
    batch = collate(EXAMPLES, verbalizers, base.device)
    loss = torch.nn.functional.cross_entropy(label_scores(base, prefix, ROWS, batch, verbalizers), batch.labels)
    loss.backward()
    return loss.item(), [prompt.values.grad for prompt in prompts]


@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("verbalizers", [SINGLE, SEVERAL], ids=["one_token", "several_tokens"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral_sliding", "gemma2"])
def test_packed_equals_padded_in_loss_and_gradient(tiny, family, verbalizers, kind):
    base = tiny(family)
    padded, expected = loss_and_gradients(base, packed=False, verbalizers=verbalizers, kind=kind)
    packed, found = loss_and_gradients(base, packed=True, verbalizers=verbalizers, kind=kind)
    assert packed == pytest.approx(padded, rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert float(other.norm()) > 1e-5, "a vanishing gradient would prove nothing"
        assert float((one - other).norm() / other.norm()) <= 1e-5


def test_packed_run_holds_each_real_token_once(tiny):
    """What reaches the model is a row of the real tokens, behind every prefix once."""
    base = tiny()
    seen: dict[str, torch.Size] = {}

    def watch(_module, _args, kwargs):
        seen.update(tokens=kwargs["inputs_embeds"].shape[:2], keys=kwargs["past_key_values"].layers[0].keys.shape)

    with torch.no_grad():
        prefix = replace(encode_prefixes(base, soft_prompts(base), HEAD), packed=True)
        with base.model.base_model.register_forward_pre_hook(watch, with_kwargs=True):
            label_scores(base, prefix, ROWS, collate(EXAMPLES, SEVERAL, base.device), SEVERAL)
    assert seen["tokens"] == (1, sum(len(example.token_ids) for example in EXAMPLES) + 3 * len(EXAMPLES))
    assert seen["keys"][::2] == (1, 3 * (7 + len(HEAD)))


def test_mask_shows_each_token_its_prefix_and_its_example_only():
    """Against a mask spelled out token by token: two examples of 2 and 1 tokens behind prefixes of 1 and 2."""
    layers = ((torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 4)),)
    batch = collate([Example([5, 6], 0), Example([7], 0)], SINGLE, torch.device("cpu"))
    row = pack(Prefix(layers, (1, 2)), (0, 1), batch.input_ids, batch.positions, batch.visible, batch.real)
    assert row.input_ids.tolist() == [[5, 6, 7]]
    assert row.positions.tolist() == [[1, 2, 2]]
    # Keys: prefix 0 (padding, real), prefix 1 (real, real), then the tokens 5, 6, 7.
    assert row.visible(None).int().tolist() == [[0, 1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1]]
    assert row.visible(2).int().tolist() == [[0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0, 1]]
    hidden = torch.arange(3.0)[None, :, None] + 1
    assert row.unpacked(hidden)[:, :, 0].tolist() == [[1, 2], [3, 0]]


@pytest.fixture
def unfused() -> Iterator[None]:
    """FlexAttention without torch.compile, whose kernels for the CPU crash on some shapes (torch 2.13)."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.13, when it loads its compiler
@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("verbalizers", [SINGLE, SEVERAL], ids=["one_token", "several_tokens"])
@pytest.mark.parametrize("family", ["llama", "llama_for_flex", "mistral_sliding", "gemma2"])
def test_flex_attention_with_block_masks_gives_the_padded_scores(tiny, model_folder, family, verbalizers):
    """Forward only: torch has no backward pass of FlexAttention for the CPU."""
    base = tiny(family)
    flexible = with_flex_attention(model_folder(family), family, "cpu", "float32")
    batch = collate(EXAMPLES, verbalizers, base.device)
    with torch.no_grad():
        prompts = soft_prompts(base)
        expected = label_scores(base, encode_prefixes(base, prompts, HEAD), ROWS, batch, verbalizers)
        prefix = encode_prefixes(flexible, prompts, HEAD)
        found = label_scores(flexible, prefix, ROWS, batch, verbalizers)
        padded = label_scores(flexible, replace(prefix, packed=False), ROWS, batch, verbalizers)
    assert prefix.packed, "packing is on by default with this kernel"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's gradient exists on a GPU only, and torch finds no CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_attention_gives_the_padded_loss_and_gradient_on_a_gpu(model_folder, dtype):
    source = {"kind": "directory", "id": "tiny/llama_for_flex", "path": str(model_folder("llama_for_flex"))}
    padded, expected = loss_and_gradients(load_base_model(source=source, dtype=dtype, device="cuda", attention="eager"), packed=False)
    packed, found = loss_and_gradients(with_flex_attention(model_folder("llama_for_flex"), "llama_for_flex", "cuda", dtype), packed=True)
    tolerance = {"float32": 1e-3, "bfloat16": 5e-2}[dtype]  # the fused kernel multiplies in TF32
    assert packed == pytest.approx(padded, rel=tolerance)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) <= 10 * tolerance


def test_flex_attention_is_refused_on_a_cpu(model_folder):
    source = {"kind": "directory", "id": "tiny/llama", "path": str(model_folder("llama"))}
    with pytest.raises(BaseModelError, match="'flex_attention' was asked for on a CPU, where torch cannot train with it"):
        load_base_model(source=source, device="cpu", attention="flex_attention")


def with_flex_attention(folder, family: str, device: str, dtype: str) -> BaseModel:
    """The base model switched to FlexAttention after loading."""
    source = {"kind": "directory", "id": f"tiny/{family}", "path": str(folder)}
    base = load_base_model(source=source, dtype=dtype, device=device, attention="eager")
    base.model.set_attn_implementation(FLEX_ATTENTION)
    return replace(base, attention=FLEX_ATTENTION)
