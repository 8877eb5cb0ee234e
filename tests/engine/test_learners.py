"""SharedPrefixLearner: trials do not touch each other, and running out of memory changes the passes but not the step."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.template import Verbalizers

VERBALIZERS = Verbalizers(("a", "b", "c"), ((60,), (61, 70), (62,)))
EXAMPLES = [Example(list(range(30, 31 + index % 7)), index % 3) for index in range(11)]
# Trials of different length; trial 1 sees other examples than the others.
BATCHES = {0: EXAMPLES[:5], 1: EXAMPLES[5:10], 2: EXAMPLES[:5]}


@dataclass
class MemoryFor:
    """The real objective on a card that holds `rows` rows at once; `tried` are the numbers of rows asked for."""

    rows: int
    objective: Classification = field(default_factory=lambda: Classification(VERBALIZERS))
    tried: list[int] = field(default_factory=list)

    def losses(self, base, prefix, rows, examples):
        self._take(len(examples))
        return self.objective.losses(base, prefix, rows, examples)

    def outputs(self, base, prefix, examples, batch_size):
        self._take(batch_size)
        return self.objective.outputs(base, prefix, examples, batch_size)

    def result(self, outputs, examples):
        return self.objective.result(outputs, examples)

    def _take(self, rows):
        self.tried.append(rows)
        if rows > self.rows:
            raise torch.cuda.OutOfMemoryError(f"{rows} rows do not fit")


def learner(base, *, objective=None, method="prompt_tuning", trials=3, **settings):
    text = Initialisation(kind="text", text="the plane was late and nobody said a word")
    rows = initial_embeddings(base=base, num_virtual_tokens=6, initialisation=text, seed=0)
    modules = [build_method(base=base, settings=MethodSettings(name=method), embeddings=rows[: 6 - n], seed=n) for n in range(trials)]
    return SharedPrefixLearner(base=base, head=(20, 21), objective=objective or Classification(VERBALIZERS), modules=modules, **settings)


def gradients(one):
    return [torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.requires_grad]) for module in one.modules]


def assert_same_step(found, expected):
    """Both have taken BATCHES: gradients equal within rounding, 2e-6 of their size."""
    for one, other in zip(gradients(found), gradients(expected), strict=True):
        assert float(other.norm()) > 1e-3, "a vanishing gradient would prove nothing"
        assert float((one - other).norm() / other.norm()) <= 2e-6


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "residual_prompt_tuning"])
@pytest.mark.parametrize("packing", ["off", "on"])
def test_fewer_rows_at_once_leave_the_step_as_it_is(tiny, method, packing):
    whole, parts = learner(tiny(), method=method), learner(tiny(), method=method, rows_at_once=4, packing=packing)
    assert parts.backward(BATCHES, 0.2) == pytest.approx(whole.backward(BATCHES, 0.2), rel=1e-5)
    assert_same_step(parts, whole)


def test_a_cpu_takes_passes_of_a_limited_number_of_tokens(tiny, monkeypatch):
    """49 tokens in passes of about 20 are three of 5 rows; the step is that of one pass."""
    whole = learner(tiny(), rows_at_once=15)
    monkeypatch.setattr("pipeline.engine.learners.CPU_TOKENS_AT_ONCE", 20)
    counted = MemoryFor(rows=15)
    parts = learner(tiny(), objective=counted)
    assert sum(len(example.token_ids) for batch in BATCHES.values() for example in batch) == 49
    assert parts.backward(BATCHES, 0.2) == pytest.approx(whole.backward(BATCHES, 0.2), rel=1e-5)
    assert_same_step(parts, whole)
    assert counted.tried == [5, 5, 5]
    assert parts.rows_at_once is None, "what a step takes depends on its texts, and is no limit for the next"


def test_out_of_memory_halves_the_rows_and_takes_the_same_step(tiny):
    card = MemoryFor(rows=4)
    whole, small = learner(tiny()), learner(tiny(), objective=card)
    assert small.backward(BATCHES, 0.2) == pytest.approx(whole.backward(BATCHES, 0.2), rel=1e-5)
    assert_same_step(small, whole)
    assert card.tried == [15, 7, 3, 3, 3, 3, 3]
    assert small.rows_at_once == 3, "what did not fit is not tried again"
    small.backward(BATCHES, 0.2)
    assert card.tried[7:] == [3, 3, 3, 3, 3]


def test_out_of_memory_in_the_middle_of_a_step_counts_no_row_twice(tiny):
    """The rows run shortest first, so a card can fail at a later chunk, when others have left their gradients."""

    class FailsOnce(MemoryFor):
        def _take(self, rows):
            self.tried.append(rows)
            if len(self.tried) == 2:
                raise torch.cuda.OutOfMemoryError("the longest rows do not fit")

    whole, small = learner(tiny()), learner(tiny(), objective=FailsOnce(rows=0), rows_at_once=8)
    assert small.backward(BATCHES, 0.2) == pytest.approx(whole.backward(BATCHES, 0.2), rel=1e-5)
    assert_same_step(small, whole)
    assert small.rows_at_once == 4


def test_a_smaller_batch_that_fits_lowers_nothing(tiny):
    one = learner(tiny(), rows_at_once=12)
    one.backward({0: EXAMPLES[:2]}, 0.5)
    assert one.rows_at_once == 12


def test_one_row_that_does_not_fit_is_an_error(tiny):
    with pytest.raises(torch.cuda.OutOfMemoryError, match="1 rows do not fit"):
        learner(tiny(), objective=MemoryFor(rows=0)).backward(BATCHES, 0.2)


def test_evaluation_halves_its_batch_and_gives_the_same_outputs(tiny):
    card = MemoryFor(rows=5)
    whole, small = learner(tiny()), learner(tiny(), objective=card, scoring_batch_size=16)
    torch.testing.assert_close(small.outputs([0, 2], EXAMPLES), whole.outputs([0, 2], EXAMPLES), atol=1e-5, rtol=1e-5)
    assert card.tried == [16, 8, 4]
    assert small.scoring_batch_size == 4


@pytest.mark.parametrize("packing", ["off", "on"])
def test_a_trial_in_the_batch_equals_the_trial_alone(tiny, packing):
    together = learner(tiny(), packing=packing)
    losses = together.backward(BATCHES, 0.2)
    for trial, batch in BATCHES.items():
        alone = learner(tiny())
        assert alone.backward({trial: batch}, 0.2)[trial] == pytest.approx(losses[trial], rel=1e-5)
        expected = alone.modules[trial]().values
        torch.testing.assert_close(together.modules[trial]().values, expected)
        one, other = (next(part.modules[trial].parameters()).grad for part in (together, alone))
        assert float((one - other).norm() / other.norm()) <= 1e-5


def test_only_trained_parameters_take_a_gradient(tiny):
    base = tiny()
    one = learner(base)
    one.backward(BATCHES, 0.2)
    assert [name for name, parameter in base.model.named_parameters() if parameter.grad is not None or parameter.requires_grad] == []


def test_packing_is_chosen_by_the_kernel_unless_it_is_named(tiny):
    base = tiny()
    assert base.attention != "flex_attention"
    assert {packing: learner(base, packing=packing).prefix([0]).packed for packing in ("auto", "on", "off")} == {
        "auto": False,
        "on": True,
        "off": False,
    }


@pytest.mark.parametrize("packing", ["off", "on"])
def test_a_trial_that_is_not_finite_leaves_the_others_as_they_are(tiny, packing):
    whole, spoilt = learner(tiny(), packing=packing), learner(tiny(), packing=packing)
    expected = whole.backward(BATCHES, 0.2)
    bad, *others = sorted(BATCHES)
    with torch.no_grad():
        next(spoilt.modules[bad].parameters()).fill_(float("nan"))
    losses = spoilt.backward(BATCHES, 0.2)
    assert not math.isfinite(losses[bad])
    assert others
    for trial in others:
        assert losses[trial] == pytest.approx(expected[trial], rel=1e-5)
        one, other = (next(part.modules[trial].parameters()).grad for part in (spoilt, whole))
        assert float((one - other).norm() / other.norm()) <= 1e-5
