"""What the engine states about this process's arithmetic, and what torch.compile makes of a training step."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.deterministic

from pipeline.engine.base_model import load_base_model
from pipeline.engine.hardware import deterministic_algorithms, set_product_precision
from pipeline.engine.shared_prefix import compile_decoder
from tests.engine.tiny_training import EXAMPLES, tiny_learner

CUBLAS = torch.backends.cuda.matmul


def stated() -> tuple[Any, ...]:
    """float32 products, cuDNN's, and sums of 16-bit products."""
    sums = (CUBLAS.allow_bf16_reduced_precision_reduction, CUBLAS.allow_fp16_reduced_precision_reduction)
    return torch.get_float32_matmul_precision(), CUBLAS.allow_tf32, torch.backends.cudnn.allow_tf32, *sums


@pytest.fixture
def torchs_own() -> Iterator[None]:
    """What torch or another library may have chosen before, and chooses again afterwards."""

    def choose() -> None:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        CUBLAS.allow_bf16_reduced_precision_reduction = CUBLAS.allow_fp16_reduced_precision_reduction = True

    choose()
    yield
    choose()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("torchs_own")
@pytest.mark.parametrize(
    ("device", "tf32", "expected"),
    [
        ("cuda", False, ("highest", False, False, False, False)),
        ("cuda", True, ("high", True, True, False, False)),
        ("cpu", True, ("highest", False, False, False, False)),
    ],
)
def test_precision_is_stated_whatever_was_chosen_before(device, tf32, expected):
    set_product_precision(torch.device(device), tf32=tf32)
    assert stated() == expected


@pytest.mark.usefixtures("torchs_own")
def test_loading_a_base_model_states_it(model_folder):
    load_base_model(source={"kind": "directory", "id": "tiny/llama", "path": str(model_folder("llama"))}, device="cpu")
    assert stated() == ("highest", False, False, False, False)


def test_deterministic_kernels_and_unfilled_tensors_hold_within_and_are_undone():
    def settings() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory

    before = settings()
    with deterministic_algorithms():
        assert settings() == (True, False)
    assert settings() == before == (False, True)


# torch 2.13's compiler looks at the gradients of a prefix's tensors, which are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "mistral_sliding"))])
def test_a_compiled_decoder_takes_the_same_step(model_folder, family):
    """The compiler's front end and graphs are the real ones; making kernels of them needs a C++ compiler, so they are run as they are."""
    base = load_base_model(source={"kind": "directory", "id": f"tiny/{family}", "path": str(model_folder(family))}, device="cpu")
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    plain, compiled = tiny_learner(base), tiny_learner(base)
    with deterministic_algorithms():
        expected = [plain.backward({0: EXAMPLES[first : first + 8]}, 1 / 8)[0] for first in (0, 9)]
        compile_decoder(base, backend=count)
        found = [compiled.backward({0: EXAMPLES[first : first + 8]}, 1 / 8)[0] for first in (0, 9)]
    assert graphs, "nothing was compiled"
    assert found == pytest.approx(expected, rel=1e-5)
    (one,), (other,) = ([parameter.grad for parameter in learner.modules[0].parameters()] for learner in (compiled, plain))
    assert other is not None
    assert one is not None
    assert float((one - other).norm() / other.norm()) <= 1e-5
