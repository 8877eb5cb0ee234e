"""What prefix_cache.py relies on in transformers' cache classes, and its own arithmetic on prefixes."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from pipeline.engine.prefix_cache import Prefix, cache_of, empty_cache, layers_of, rows_of_prefix, side_by_side

CPU = torch.device("cpu")


def key_values(rows=2, heads=2, width=3, size=4, layers=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        (torch.randn(rows, heads, width, size, generator=generator), torch.randn(rows, heads, width, size, generator=generator))
        for _ in range(layers)
    )


def test_a_forward_pass_fills_an_empty_cache_with_a_layer_of_keys_and_values_each(tiny):
    base = tiny()
    cache = empty_cache()
    with torch.no_grad():
        base.model(torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    layers = layers_of(cache)
    assert len(layers) == base.model.config.num_hidden_layers
    assert {tensor.shape for pair in layers for tensor in pair} == {torch.Size((1, 2, 3, 8))}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3", "mistral_sliding"])
def test_going_on_from_cached_layers_equals_one_pass(tiny, family):
    base = tiny(family)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        cache = empty_cache()
        base.model(ids[:, :3], past_key_values=cache, use_cache=True)
        went_on = cache_of(layers_of(cache))
        found = base.model(ids[:, 3:], past_key_values=went_on, use_cache=True).logits
        expected = base.model(ids).logits[:, 3:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert layers_of(went_on)[0][0].shape[2] == 5


def test_appending_leaves_the_layers_that_a_cache_started_with_as_they_were():
    """One prefix serves many passes, so update() must not write into it."""
    layers = key_values()
    before = [tensor.clone() for pair in layers for tensor in pair]
    cache = cache_of(layers)
    assert layers_of(cache)[0][0] is layers[0][0], "nothing is copied before a pass appends"
    assert cache.get_seq_length() == 3
    keys, values = cache.update(torch.ones(2, 2, 1, 4), torch.zeros(2, 2, 1, 4), 1)
    assert torch.equal(keys[:, :, :3], layers[1][0])
    assert torch.equal(keys[:, :, 3:], torch.ones(2, 2, 1, 4))
    assert torch.equal(values[:, :, :3], layers[1][1])
    assert all(torch.equal(one, other) for one, other in zip((t for pair in layers for t in pair), before, strict=True))


def test_gradients_flow_through_a_cache_to_what_it_started_with():
    layers = tuple((k.requires_grad_(), v.requires_grad_()) for k, v in key_values(layers=1))
    keys, _ = cache_of(layers).update(torch.ones(2, 2, 1, 4), torch.ones(2, 2, 1, 4), 0)
    keys.sum().backward()
    assert torch.equal(layers[0][0].grad, torch.ones(2, 2, 3, 4))


def test_a_cache_without_layers_makes_them_as_they_come():
    cache = cache_of(())
    assert cache.get_seq_length() == 0
    cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    assert isinstance(cache, DynamicCache)
    assert layers_of(cache)[0][0].shape == (1, 2, 3, 4)


def test_visible_and_positions_of_prefixes_padded_on_the_left():
    prefix = Prefix(key_values(), (3, 1))
    assert prefix.width == 3
    assert prefix.visible(CPU).tolist() == [[True, True, True], [False, False, True]]
    assert prefix.positions(CPU).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_rows_of_one_prefix_are_a_view_and_rows_of_several_are_picked():
    single = Prefix(key_values(rows=1), (3,))
    assert rows_of_prefix(single, (0, 0, 0, 0))[0][0].shape == (4, 2, 3, 4)
    assert rows_of_prefix(single, (0, 0))[0][0].data_ptr() == single.layers[0][0].data_ptr()
    several = Prefix(key_values(), (3, 1))
    picked = rows_of_prefix(several, (1, 0, 1))
    assert torch.equal(picked[1][1], several.layers[1][1][[1, 0, 1]])


def test_side_by_side_keeps_each_prefixs_columns_together_per_head():
    prefix = Prefix(key_values(), (3, 1))
    keys = side_by_side(prefix)[0][0]
    assert keys.shape == (1, 2, 6, 4)
    assert torch.equal(keys[0, :, :3], prefix.layers[0][0][0])
    assert torch.equal(keys[0, :, 3:], prefix.layers[0][0][1])
    single = Prefix(key_values(rows=1), (3,))
    assert side_by_side(single)[0][0].data_ptr() == single.layers[0][0].data_ptr(), "one prefix is not copied"


def test_detached_values_are_leaves_and_keep_the_layout():
    prefix = Prefix(tuple((k.requires_grad_() * 2, v * 1) for k, v in key_values()), (3, 1), packed=True)
    leaves = prefix.detached()
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in leaves.tensors())
    assert [torch.equal(one, other) for one, other in zip(leaves.tensors(), prefix.tensors(), strict=True)] == [True] * 4
    assert (leaves.lengths, leaves.packed) == ((3, 1), True)
