"""Bytes between paged caches and slots: every layout, every number format, and shapes that are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.workers.vllm.geometry import UnsupportedCacheError, geometry_of
from homing.workers.vllm.memory import HostMemory
from homing.workers.vllm.store import BlockStore

from .engines import BLOCK_TOKENS, caches


def filled(blocks, kv):
    store = BlockStore(blocks)
    memory = HostMemory(geometry_of(kv, BLOCK_TOKENS), store, weights="w")
    return store, memory


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]),
    tokens_first=st.booleans(),
)
def test_blocks_come_back_as_they_went(data, dtype, tokens_first):
    kv = caches(8, seed=1, dtype=torch.float32)
    kv = {name: layer.to(dtype) for name, layer in kv.items()}
    if tokens_first:
        kv = {name: layer.transpose(1, 2).contiguous().transpose(1, 2) for name, layer in kv.items()}
        assert not next(iter(kv.values())).is_contiguous()
    ids = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=6, unique=True))
    to_ids = data.draw(st.permutations(range(8)))[: len(ids)]
    _, memory = filled(8, kv)
    slots = data.draw(st.permutations(range(8)))[: len(ids)]
    memory.gather(slots, kv, ids)
    into = {name: torch.zeros_like(layer) for name, layer in kv.items()}
    memory.scatter(slots, into, to_ids)
    for name, layer in kv.items():
        assert torch.equal(into[name][list(to_ids)].view(torch.uint8), layer[ids].contiguous().view(torch.uint8))
        untouched = [i for i in range(8) if i not in to_ids]
        assert not into[name][untouched].to(torch.float32).any()


def test_the_wire_form_is_the_same_for_every_layout():
    kv = caches(4, seed=3)
    turned = {name: layer.transpose(1, 2).contiguous().transpose(1, 2) for name, layer in kv.items()}
    views = []
    for paged in (kv, turned):
        store, memory = filled(1, paged)
        slot = store.reserve(77)
        memory.gather([slot], paged, [2])
        views.append(bytes(memory.view(77, 0, memory.layers)))
    assert views[0] == views[1]
    assert views[0] == b"".join(layer[2].contiguous().numpy().tobytes() for layer in kv.values())


def test_a_part_of_the_layers_is_a_part_of_the_bytes():
    kv = caches(2)
    store, memory = filled(2, kv)
    memory.gather([store.reserve(5)], kv, [1])
    whole = bytes(memory.view(5, 0, 3))
    assert bytes(memory.view(5, 1, 2)) == whole[memory.layer_block_bytes :]


def test_formats_differ_with_everything_that_makes_kv_other():
    shapes = [caches(), caches(layers=2), caches(heads=1), caches(width=4), caches(dtype=torch.bfloat16)]
    names = {geometry_of(kv, BLOCK_TOKENS).format("w") for kv in shapes}
    assert len(names) == len(shapes)
    assert geometry_of(caches(), BLOCK_TOKENS).format("v") not in names


@pytest.mark.parametrize(
    ("kv", "told"),
    [
        ({}, "no KV cache"),
        ({**caches(), "odd": torch.zeros(16, 1, BLOCK_TOKENS, 8)}, "layers of different shapes"),
        ({"mla": torch.zeros(16, BLOCK_TOKENS, 8)}, r"\[blocks, heads, tokens, width\]"),
        ({"long": torch.zeros(16, 2, 2 * BLOCK_TOKENS, 8)}, "--block-size 8"),
    ],
)
def test_other_shapes_are_refused_by_name(kv, told):
    with pytest.raises(UnsupportedCacheError, match=told):
        geometry_of(kv, BLOCK_TOKENS)
