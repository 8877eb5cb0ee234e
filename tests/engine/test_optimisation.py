"""Learning rates and optimisers, against their definitions written out."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.engine.optimisation import OptimiserSettings, learning_rate_at, make_optimiser, warmup_steps

SETTINGS = OptimiserSettings(learning_rate=0.05, warmup_ratio=0.1, maximum_steps=40)


def test_learning_rate_schedules_start_peak_and_end_where_they_should():
    rates = {
        name: [learning_rate_at(step, replace(SETTINGS, schedule=name)) for step in range(40)] for name in ("cosine", "linear", "constant")
    }
    for name, values in rates.items():
        assert values[0] == pytest.approx(0.05 / 4), name
        assert values[3] == max(values) == pytest.approx(0.05), name
    assert rates["constant"][-1] == 0.05
    assert rates["linear"][22] == pytest.approx(0.05 * 0.5)
    assert rates["cosine"][22] == pytest.approx(0.05 * 0.5)
    assert 0 < rates["cosine"][-1] < rates["linear"][-1]


@pytest.mark.parametrize(("ratio", "steps", "expected"), [(0.0, 40, 0), (0.1, 40, 4), (0.01, 40, 1), (1.0, 40, 40)])
def test_warm_up_takes_its_share_of_the_steps_rounded_up(ratio, steps, expected):
    settings = replace(SETTINGS, warmup_ratio=ratio, maximum_steps=steps)
    assert warmup_steps(settings) == expected
    rates = [learning_rate_at(step, settings) for step in range(steps)]
    assert rates[:expected] == pytest.approx([0.05 * (step + 1) / expected for step in range(expected)])
    assert all(0 <= rate <= 0.05 for rate in rates)


def moved(settings: OptimiserSettings, gradients: list[torch.Tensor]) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.full((2, 3), 0.5))
    optimiser = make_optimiser(settings, [parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimiser.step()
    return parameter.detach()


GRADIENTS = [torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def test_adamw_moves_as_loshchilov_and_hutter_define_it():
    rate, decay = 0.05, 0.1
    value, first, second = torch.full((2, 3), 0.5).double(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    for step, gradient in enumerate(GRADIENTS, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        value = value * (1 - rate * decay)
        value = value - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    assert torch.allclose(moved(replace(SETTINGS, weight_decay=decay), GRADIENTS).double(), value, atol=1e-6)


def test_adafactor_moves_by_the_learning_rate_whatever_the_size_of_the_parameter():
    """Shazeer and Stern (2018), algorithm 4 with factored second moments, clipping at 1 and no parameter scaling."""
    rate, value = 0.3, torch.full((2, 3), 0.5).double()
    rows, columns = torch.zeros(2).double(), torch.zeros(3).double()
    for step, gradient in enumerate(GRADIENTS, start=1):
        square = gradient.double() ** 2 + 1e-30
        beta = 1 - step**-0.8
        rows, columns = beta * rows + (1 - beta) * square.mean(1), beta * columns + (1 - beta) * square.mean(0)
        update = gradient.double() / (rows[:, None] * columns[None] / rows.mean()).sqrt()
        update = update / max(1.0, math.sqrt(float((update**2).mean())))
        value = value - rate * update
    settings = OptimiserSettings(name="adafactor", learning_rate=rate, schedule="constant", maximum_steps=40)
    assert torch.allclose(moved(settings, GRADIENTS).double(), value, atol=1e-5)
