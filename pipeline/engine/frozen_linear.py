"""Linear layers of a frozen base model on a CPU, multiplied by oneDNN instead of the BLAS library.

torch gives float32 matrix products to MKL, which on two threads of an AMD EPYC reaches 120 to 160 billion operations per second for
the 300 to 600 rows of a training pass; oneDNN, which torch also brings and already uses for bfloat16, reaches 190 to 210 on the same
weights, unpacked (see benchmarks/README.md). Since the weights take no gradient, a layer is one product forward and one backward.
The products are float32 either way and differ by rounding.
"""

import platform
from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx


class FrozenLinear(torch.nn.Linear):
    """A torch.nn.Linear whose products oneDNN computes as long as its own weights take no gradient. Same parameters, same state."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        trained = any(parameter.requires_grad for parameter in self.parameters(recurse=False))
        if trained or torch.compiler.is_compiling() or input.numel() == 0 or input.dtype != torch.float32:
            return super().forward(input)
        return cast(torch.Tensor, _Product.apply(input, self.weight, self.bias))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _multiply(values, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _multiply(grads[0].contiguous(), weight.t(), None), None, None


def multiply_by_onednn(model: torch.nn.Module) -> int:
    """Let oneDNN compute every plain linear layer of a float32 model on an x86 CPU; returns how many, 0 where it cannot."""
    if not _can_multiply(model):
        return 0
    return _change_class(model, torch.nn.Linear, FrozenLinear)


def multiply_by_blas(model: torch.nn.Module) -> int:
    """Undo `multiply_by_onednn`: torch's own linear layers again; returns how many."""
    return _change_class(model, FrozenLinear, torch.nn.Linear)


def _change_class(model: torch.nn.Module, old: type[torch.nn.Module], new: type[torch.nn.Module]) -> int:
    """Changing the class keeps parameters, hooks and names, and lets a layer be copied; a patched `forward` would not."""
    layers = [module for module in model.modules() if type(module) is old]
    for layer in layers:
        layer.__class__ = new
    return len(layers)


def _can_multiply(model: torch.nn.Module) -> bool:
    parameters = list(model.parameters())
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        # The operator that torch.compile's CPU backend calls. It is no public function, so a torch without it goes on as before.
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in parameters)
    )


def _multiply(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """values [..., K] times weight [N, K] transposed, plus bias [N]; weight may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
