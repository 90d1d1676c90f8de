"""Block keys against golden vectors of NVIDIA Dynamo's binding, and as properties of prefixes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from homing.router.core.blocks import SEED, block_keys, group_seed, pack_tokens, reusable_blocks, unpack_tokens

TOKENS = pack_tokens(range(40))
LOCAL = (15310707395893867146, 15292316782987903195)
LOCAL_OF_LORA_A = (13515555613885636154, 1984712202812830800)
token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=80)


def test_the_first_key_is_the_local_hash_of_dynamo():
    assert block_keys(TOKENS, 16) == (LOCAL[0], 13769157705258532664)


def test_the_second_local_hash_is_chained_to_the_first_key():
    """The golden local hash of block 2, below block 1, with the chain computed by hand."""
    assert block_keys(TOKENS[64:], 16) == (LOCAL[1],), "a chain that begins here: its first key is its local hash"
    chained = xxh3_64_intdigest(struct.pack("<QQ", *LOCAL), 1337)
    assert block_keys(TOKENS, 16)[1] == chained


@pytest.mark.parametrize("block", [0, 1])
def test_a_lora_adapter_shifts_the_seed_as_dynamo_does(block):
    seed = group_seed(lora="a")
    assert block_keys(TOKENS[64 * block :], 16, seed=seed)[0] == LOCAL_OF_LORA_A[block]


def test_without_lora_and_salt_the_seed_is_dynamos():
    assert group_seed() == SEED == 1337


def test_every_group_has_a_seed_of_its_own():
    """One tenant must neither hit nor probe another's prefixes, under whatever adapter."""
    groups = [{"lora": lora, "tenant_salt": salt} for lora in ("", "a", "b") for salt in ("", "a", "b")]
    seeds = {group_seed(**group) for group in groups}
    assert len(seeds) == len(groups)
    assert all(0 <= seed < 2**64 for seed in seeds)
    keys = [set(block_keys(TOKENS, 16, seed=seed)) for seed in seeds]
    assert len(set.union(*keys)) == 2 * len(groups), "and no key in common"


@given(tokens=token_ids, block=st.integers(1, 20))
def test_only_full_blocks_have_keys(tokens, block):
    assert len(block_keys(pack_tokens(tokens), block)) == len(tokens) // block


@given(tokens=token_ids, block=st.integers(1, 8), data=st.data())
def test_a_chain_may_be_continued_at_any_block(tokens, block, data):
    keys = block_keys(pack_tokens(tokens), block)
    at = data.draw(st.integers(0, len(keys)))
    parent = keys[at - 1] if at else None
    assert keys[:at] + block_keys(pack_tokens(tokens[at * block :]), block, parent=parent) == keys


@given(tokens=st.lists(st.integers(0, 9), min_size=8, max_size=40), data=st.data())
def test_a_changed_token_changes_its_block_and_all_after_it(tokens, data):
    at = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens[:at], tokens[at] + 1, *tokens[at + 1 :]]
    before, after = block_keys(pack_tokens(tokens), 4), block_keys(pack_tokens(changed), 4)
    assert before[: at // 4] == after[: at // 4]
    assert not set(before[at // 4 :]) & set(after[at // 4 :])


def test_a_block_has_another_key_below_another_parent():
    keys = block_keys(pack_tokens([1, 2, 1, 2, 1, 2]), 2)
    assert len(set(keys)) == 3


@given(tokens=token_ids)
def test_packing_is_little_endian_and_reversible(tokens):
    packed = pack_tokens(tokens)
    assert packed == b"".join(token.to_bytes(4, "little") for token in tokens)
    assert unpack_tokens(packed) == tuple(tokens)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_id_outside_of_u32_cannot_be_packed(token):
    with pytest.raises(struct.error):
        pack_tokens([token])


@given(prompt=st.integers(1, 1000), block=st.integers(1, 64))
def test_the_last_token_is_never_out_of_a_cache(prompt, block):
    """Its logits are what the answer begins with. One block more would cover the whole prompt or more."""
    blocks = reusable_blocks(prompt, block)
    assert blocks * block < prompt <= (blocks + 1) * block
