"""The KV tensor's bytes: what the data plane reads and writes."""

from pathlib import Path

import pytest
import torch

from homing.workers.model.kv import KvTensor
from homing.workers.model.tiny import TINY_CONFIG


@pytest.fixture
def kv():
    return KvTensor(TINY_CONFIG, blocks=3, block_tokens=4, weights_fingerprint="f00d", dtype=torch.bfloat16)


def test_sizes_follow_from_the_layout(kv):
    assert kv.kv.shape == (3, 4, 2, 4, 2, 16)
    assert kv.layer_block_bytes == 2 * 4 * 2 * 16 * 2
    assert kv.block_bytes == 4 * kv.layer_block_bytes
    assert kv.kv.nbytes == 3 * kv.block_bytes
    assert kv.format == "llama/4x2x16/bfloat16/b4/f00d"


def test_a_view_is_the_memory_of_its_block_and_layers(kv):
    view = kv.view(1, 2, 1)
    assert (view.format, view.contiguous, view.readonly, len(view)) == (
        "B",
        True,
        False,
        kv.layer_block_bytes,
    )
    view[:] = b"\x80\x3f" * (len(view) // 2)  # 1.0 in bfloat16
    assert (kv.kv[1, 2] == 1).all()
    assert kv.kv.float().sum() == kv.kv[1, 2].numel()


def test_views_of_all_layers_in_parts_are_the_view_of_the_block(kv):
    kv.kv.normal_(generator=torch.Generator().manual_seed(3))
    parts = b"".join(kv.view(2, first, count) for first, count in ((0, 1), (1, 2), (3, 1)))
    assert parts == kv.view(2) == kv.dump(2)


def test_dump_and_load_carry_a_block_to_another_cache(kv):
    kv.kv.normal_(generator=torch.Generator().manual_seed(3))
    other = KvTensor(TINY_CONFIG, blocks=2, block_tokens=4, weights_fingerprint="f00d", dtype=torch.bfloat16)
    other.load(kv.dump(1, 1, 2), 0, 1, 2)
    assert torch.equal(other.kv[0, 1:3], kv.kv[1, 1:3])
    assert not other.kv[0, 0].any()
    assert not other.kv[1].any()


@pytest.mark.parametrize("where", [(3, 0, 1), (-1, 0, 1), (0, 4, 1), (0, 3, 2), (0, -1, 1), (0, 0, 0)])
def test_what_is_outside_the_tensor_is_refused(kv, where):
    with pytest.raises(IndexError, match=r"block 3|block -1|layers"):
        kv.view(*where)


def test_a_load_of_the_wrong_length_is_refused(kv):
    with pytest.raises(ValueError, match="3 bytes given"):
        kv.load(b"abc", 0)


def test_blocks_that_were_never_used_take_no_memory():
    """Several workers on one machine may each be given a cache for their worst case."""

    def resident_kb():
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0])

    before = resident_kb()
    kv = KvTensor(TINY_CONFIG, blocks=65_536, block_tokens=16, weights_fingerprint="")
    assert kv.kv.nbytes == 2**30
    assert not kv.kv[-1].any()
    assert resident_kb() - before < 64 * 1024


def test_an_empty_cache_is_refused():
    with pytest.raises(ValueError, match="positive"):
        KvTensor(TINY_CONFIG, blocks=0, block_tokens=4, weights_fingerprint="")


def test_views_of_memory_that_is_not_the_hosts_are_refused_with_the_way_out():
    kv = KvTensor(TINY_CONFIG, blocks=1, block_tokens=4, weights_fingerprint="", device="meta")
    with pytest.raises(RuntimeError, match=r"dump\(\) and load\(\)"):
        kv.view(0)
