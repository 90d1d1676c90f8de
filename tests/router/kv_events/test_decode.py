"""Reading engines' messages: both encodings, all kinds of hashes, salts and adapters, and anything else."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.blocks import pack_tokens
from homing.router.core.types import Tier
from homing.router.kv_events.decode import STORED_FIELDS, decode_batch
from homing.router.kv_events.events import EngineBatch, EngineCleared, EngineRemoved, KvEventError, Place
from homing.router.kv_events.places import natural_tier

from .engines import EXCERPT, captured

STORED = {
    "block_hashes": [11, 12],
    "parent_block_hash": None,
    "token_ids": list(range(8)),
    "block_size": 4,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
}


def one(event):
    return decode_batch(msgspec.msgpack.encode([1.5, [event], 3])).events[0]


def as_map(**fields):
    return {"type": "BlockStored", **STORED, **fields}


def as_array(**fields):
    """The old encoding, with the trailing defaults left out."""
    told = {**STORED, **fields}
    values = [told.get(name) for name in STORED_FIELDS]
    while values[-1] is None and len(values) > 6:
        values.pop()
    return ["BlockStored", *values]


def test_both_encodings_say_the_same():
    fields = {"group_idx": 0, "kv_cache_spec_kind": "full_attention", "extra_keys": [["salt"], None]}
    assert one(as_map(**fields)) == one(as_array(**fields))
    assert one(as_map()) == one(as_array()) == one(as_array()[:7])
    event = one(as_array(**fields))
    assert (event.hashes, event.packed_tokens, event.salt) == ((11, 12), pack_tokens(range(8)), "salt")
    assert one(["BlockRemoved", [1, 2], "CPU"]) == one(
        {"type": "BlockRemoved", "block_hashes": [1, 2], "medium": "CPU"}
    )
    assert one(["AllBlocksCleared"]) == one({"type": "AllBlocksCleared"}) == EngineCleared()


def test_hashes_are_unsigned_or_bytes():
    digest = bytes(range(32))
    assert one(as_map(block_hashes=[-1, digest], parent_block_hash=-2)).hashes == (2**64 - 1, digest)
    assert one(as_map(parent_block_hash=-2)).parent == 2**64 - 2


@pytest.mark.parametrize("extra", [[["s"], None], [[["cache_salt", "s"]], None]])
def test_a_salt_is_on_the_first_block_bare_or_tagged(extra):
    assert (one(as_map(extra_keys=extra)).salt, one(as_map(extra_keys=extra)).text_blocks) == ("s", 2)
    below = one(as_map(extra_keys=extra, parent_block_hash=9))
    assert (below.salt, below.text_blocks) == ("", 0), "a string further down is no salt"


def test_sglang_has_a_field_for_the_salt():
    event = one({"type": "BlockStored", **STORED, "cache_salt": "s", "session_id": "x", "medium": "CPU_PINNED"})
    assert (event.salt, natural_tier(event.place)) == ("s", Tier.HOST)


@pytest.mark.parametrize(
    ("extra", "text_blocks"),
    [
        ([["a"], ["a"]], 2),
        ([[["lora", "a", "/x"]], [["lora", "a", "/x"]]], 2),
        ([["a", "salt"], ["a"]], 2),
        ([["a"], ["a", ["image", -3]]], 1),
        ([["a", ["mm", "image", 0]], ["a"]], 0),
        ([["a", b"digest"], ["a"]], 0),
        ([["a"], ["a", ["prompt_embeds", b"digest"]]], 1),
    ],
)
def test_an_adapter_is_text_and_an_image_is_not(extra, text_blocks):
    event = one(as_map(lora_name="a", lora_id=1, extra_keys=extra))
    assert (event.lora, event.text_blocks) == ("a", text_blocks)


def test_an_adapter_without_a_name_shares_nothing():
    assert one(as_map(lora_id=7)).lora == "#7"


def test_of_token_pairs_the_first_counts():
    assert one(as_map(token_ids=[[i, i + 1] for i in range(8)])) == one(as_map())


def test_what_is_new_is_skipped_and_counted():
    batch = decode_batch(
        msgspec.msgpack.encode([1, [as_map(new=1), {"type": "BlockBaked"}, [*as_array(session_id="s"), 1, 2]]])
    )
    assert (len(batch.events), batch.unknown, batch.rank, batch.told_s) == (2, 1, None, 1.0)


def test_captured_messages_of_vllm():
    batches = [decode_batch(payload) for _, _, payload in captured(EXCERPT)]
    events = [event for batch in batches for event in batch.events]
    assert {batch.rank for batch in batches} == {0}
    assert {event.salt for event in events if hasattr(event, "salt")} == {"", "tenant-a"}
    assert sum(isinstance(event, EngineRemoved) for event in events) == 9
    assert sum(isinstance(event, EngineCleared) for event in events) == 1
    assert all(event.is_whole and event.block_tokens == 32 for event in events if hasattr(event, "salt"))
    assert all(event.place == Place(medium="GPU") for event in events if hasattr(event, "place"))


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ({}, "array"),
        ([1.0], "array"),
        (["now", []], "time"),
        ([1.0, {}], "events"),
        ([1.0, [], "x"], "data_parallel_rank"),
        ([1.0, [3]], "an event"),
        ([1.0, [[]]], "an event"),
        ([1.0, [{"type": "BlockRemoved"}]], "block_hashes"),
        ([1.0, [as_map(block_hashes=[1.5])]], "block hash"),
        ([1.0, [as_map(block_size="4")]], "block_size"),
        ([1.0, [as_map(block_size=-4)]], "block_size"),
        ([1.0, [as_map(token_ids=None)]], "token_ids"),
        ([1.0, [as_map(token_ids=[-1])]], "token_ids"),
        ([1.0, [as_map(token_ids=[2**32])]], "token_ids"),
        ([1.0, [as_map(token_ids=["a"])]], "token_ids"),
        ([1.0, [as_map(token_ids=[[]])]], "token_ids"),
        ([1.0, [as_map(medium=1)]], "medium"),
        ([1.0, [as_map(extra_keys=[1, None])]], "extra_keys"),
        ([1.0, [as_map(group_idx=True)]], "group_idx"),
    ],
)
def test_errors_name_what_is_wrong(raw, names):
    with pytest.raises(KvEventError, match=names):
        decode_batch(msgspec.msgpack.encode(raw))


@given(st.binary(max_size=60))
def test_garbage_is_an_error_or_a_batch(data):
    with suppress(KvEventError):
        assert isinstance(decode_batch(data), EngineBatch)


_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3) | st.binary()
)
_anything = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from([*STORED_FIELDS, "cache_salt", "other"]), _anything), st.booleans())
def test_any_values_in_known_fields_are_an_error_or_a_batch(fields, is_map):
    event = as_map(**fields) if is_map else as_array(**fields)
    try:
        batch = decode_batch(msgspec.msgpack.encode([1.0, [event]]))
    except KvEventError:
        return
    assert len(batch.events) == 1


@pytest.mark.parametrize("payload", [b"\x91" * 100_000, b"\x81\x90\x01", b"\xdd\xff\xff\xff\xff", b""])
def test_hostile_messages_are_errors(payload):
    with pytest.raises(KvEventError):
        decode_batch(payload)
