"""FrozenLinear: oneDNN's products are torch's, forward and backward, and only where no weight is trained."""

import copy

import pytest
import torch

from pipeline.engine.frozen_linear import FrozenLinear, multiply_by_blas, multiply_by_onednn

pytestmark = pytest.mark.skipif(
    not multiply_by_onednn(torch.nn.Linear(2, 2).requires_grad_(False)), reason="this torch cannot multiply by oneDNN"
)


def frozen(*, bias: bool = True, seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias), torch.nn.SiLU(), torch.nn.Linear(40, 7, bias=bias))
    return model.requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 24), (2, 0, 24)])
def test_values_and_gradient_are_those_of_torch(bias, shape):
    plain, fast = frozen(bias=bias), frozen(bias=bias)
    assert multiply_by_onednn(fast) == 2
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    found, expected = fast(given[0]), plain(given[1])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad, atol=1e-5, rtol=1e-5)


def test_inputs_and_gradients_may_lie_in_any_order():
    plain, fast = frozen(), frozen()
    multiply_by_onednn(fast)
    given = [torch.randn(24, 3, 2, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    found, expected = (model(one.permute(2, 1, 0)).transpose(0, 1) for model, one in ((fast, given[0]), (plain, given[1])))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(2)).transpose(1, 2)  # its gradient is no contiguous tensor
    for outcome in (found, expected):
        (outcome * weight).sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad, atol=1e-5, rtol=1e-5)


def test_a_trained_layer_gets_its_gradient_from_torch():
    model = frozen()
    multiply_by_onednn(model)
    model[2].requires_grad_(True)
    model(torch.ones(3, 24)).sum().backward()
    assert model[2].weight.grad is not None
    assert model[2].bias.grad is not None
    assert model[0].weight.grad is None


def test_a_copy_has_its_own_weights_and_the_state_is_the_same():
    model = frozen()
    names = list(model.state_dict())
    multiply_by_onednn(model)
    assert list(model.state_dict()) == names
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.zero_()
        other[0].bias.zero_()
    assert not torch.equal(other(torch.ones(1, 24)), model(torch.ones(1, 24)))


def test_it_can_be_undone_and_leaves_subclasses_alone():
    class OfSomebodyElse(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), OfSomebodyElse(4, 4)).requires_grad_(False)
    assert multiply_by_onednn(model) == 1
    assert [type(layer) for layer in model] == [FrozenLinear, OfSomebodyElse]
    assert multiply_by_blas(model) == 1
    assert [type(layer) for layer in model] == [torch.nn.Linear, OfSomebodyElse]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_torch(dtype):
    assert multiply_by_onednn(frozen().to(dtype)) == 0


def test_a_float32_base_model_on_a_cpu_is_multiplied_by_onednn(tiny):
    layers = [module for module in tiny().model.modules() if isinstance(module, torch.nn.Linear)]
    assert {type(layer) for layer in layers} == {FrozenLinear}
