"""Rankers: what does not fit into GPU memory is ranked in smaller batches, with the same result."""

from contextlib import contextmanager

import pytest
import torch

from pipeline.engine.batching import Example
from pipeline.engine.objectives import Classification
from pipeline.engine.ranking import hard_prompt_ranker
from pipeline.engine.template import Verbalizers

EXAMPLES = [Example(list(range(30, 31 + index % 5)), -1) for index in range(11)]
OBJECTIVE = Classification(Verbalizers(("a", "b"), ((60,), (61,))))


@contextmanager
def room_for(base, rows):
    """The base model on a card that holds `rows` rows at once; yields the numbers of rows that were tried."""
    tried = []

    def take(_module, _given, named):
        count = len(named["inputs_embeds"] if named.get("inputs_embeds") is not None else named["input_ids"])
        tried.append(count)
        if count > rows:
            raise torch.cuda.OutOfMemoryError(f"{count} rows do not fit")

    hook = base.model.base_model.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield tried
    finally:
        hook.remove()


@pytest.mark.parametrize("through", ["shared prefix", "PEFT"])
def test_a_batch_that_does_not_fit_is_halved_and_the_progress_counts_each_row_once(tiny, through):
    base = tiny()
    ranker = hard_prompt_ranker(base, (20, 21), OBJECTIVE, through)
    expected = ranker.rank(EXAMPLES, batch_size=8)
    advanced = []
    with room_for(base, 3) as tried:
        found = ranker.rank(EXAMPLES, batch_size=8, advance=advanced.append)
    assert [count for count in tried if count > 1] == [8, 4, 2, 2, 2, 2, 2]
    assert sum(advanced) == len(EXAMPLES)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_row_that_does_not_fit_is_an_error(tiny):
    base = tiny()
    ranker = hard_prompt_ranker(base, (20, 21), OBJECTIVE, "shared prefix")
    with room_for(base, 0), pytest.raises(torch.cuda.OutOfMemoryError, match="1 rows do not fit"):
        ranker.rank(EXAMPLES, batch_size=8)
