"""What goes over the wire and back: cache events keep their order and their parents; bad requests are told why."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.protos import common_pb2, worker_pb2
from homing.router.core.blocks import pack_tokens
from homing.router.core.events import BlocksRemoved, BlocksStored
from homing.router.core.types import BlockKey, WorkerId
from homing.router.service.wire import cache_events
from homing.workers.engine.kvcache import KvEvent, Removed, Stored
from homing.workers.wire import BadRequestError, decode_job, kv_events, prefill_job, sampling_of, source_of

CONFIG: Any = SimpleNamespace(vocab_tokens=512, context_tokens=256, eos_ids=(0,))
BLOCK = 16


def stored(key: int, parent: int | None = None) -> Stored:
    return Stored(key=BlockKey(key), parent=None if parent is None else BlockKey(parent))


def removed(key: int) -> Removed:
    return Removed(key=BlockKey(key))


# -- cache events ------------------------------------------------------------------------------------------------------


def test_neighbours_in_one_chain_share_a_message() -> None:
    messages = kv_events([stored(1), stored(2, 1), stored(3, 2), removed(9), removed(8), stored(4, 3)])
    assert [message.WhichOneof("what") for message in messages] == ["stored", "removed", "stored"]
    assert list(messages[0].stored.keys) == [1, 2, 3]
    assert not messages[0].stored.HasField("parent")
    assert list(messages[1].removed.keys) == [9, 8]
    assert messages[2].stored.parent == 3


def test_two_chains_side_by_side_are_two_messages() -> None:
    messages = kv_events([stored(1), stored(2), stored(3, 1)])
    assert [list(message.stored.keys) for message in messages] == [[1], [2], [3]]
    assert messages[2].stored.parent == 1


def test_a_parent_of_key_zero_is_told() -> None:
    """Zero is a possible hash: absent and zero must not be confused."""
    (message,) = kv_events([stored(5, 0)])
    assert message.stored.HasField("parent")
    assert message.stored.parent == 0


KEYS = st.integers(0, 6) | st.integers(0, (1 << 64) - 1)
EVENTS = st.lists(st.builds(stored, KEYS, st.none() | KEYS) | st.builds(removed, KEYS), max_size=60)


@given(EVENTS)
def test_the_router_reads_what_the_worker_told(events: list[KvEvent]) -> None:
    """Grouping loses nothing: told apart again, the changes are the same, in the same order (I10)."""
    told: list[KvEvent] = []
    for event in cache_events(WorkerId("w"), kv_events(events)):
        if isinstance(event, BlocksStored):
            parents = [event.parent, *event.keys]
            told += [Stored(key=key, parent=parent) for key, parent in zip(event.keys, parents, strict=False)]
        else:
            assert isinstance(event, BlocksRemoved)
            told += [Removed(key=key) for key in event.keys]
    assert told == events


# -- requests ----------------------------------------------------------------------------------------------------------


def decode(**changes: Any) -> worker_pb2.DecodeRequest:
    valid = {"request_id": "r", "tokens_le32": pack_tokens(range(40)), "key_seed": 1, "max_output_tokens": 4}
    return worker_pb2.DecodeRequest(**(valid | changes))


def prefill(**changes: Any) -> worker_pb2.PrefillRequest:
    valid = {"request_id": "r", "tokens_le32": pack_tokens(range(40)), "key_seed": 1, "handover_end_block": 2}
    return worker_pb2.PrefillRequest(**(valid | changes))


def source(**changes: Any) -> worker_pb2.BlockSource:
    valid = {"kind": common_pb2.MOVE_KIND_FETCH, "source": "s", "target": "t", "block_first": 0, "block_end": 2}
    return worker_pb2.BlockSource(move=common_pb2.Move(**(valid | changes)), address="127.0.0.1:1")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"request_id": ""}, "request_id: missing"),
        ({"tokens_le32": b""}, "tokens_le32: expected one or more 4-byte token ids, got 0"),
        ({"tokens_le32": b"12345"}, "tokens_le32: .* got 5 bytes"),
        ({"tokens_le32": pack_tokens([1, 512])}, "tokens_le32: token id 512 .* vocabulary of 512"),
        ({"max_output_tokens": 0}, "max_output_tokens: expected at least 1"),
        ({"max_output_tokens": 217}, "tokens_le32: 40 prompt tokens and 217 .* context of 256"),
        ({"max_output_tokens": (1 << 32) - 1}, "context of 256"),
        ({"sampling": common_pb2.Sampling(temperature=float("nan"))}, "sampling: temperature nan"),
        ({"sampling": common_pb2.Sampling(temperature=-1)}, "sampling: temperature -1"),
        ({"sampling": common_pb2.Sampling(top_p=1.5)}, "sampling: top_p 1.5"),
        ({"sources": [source(), source()]}, "sources: expected at most one, got 2"),
        ({"sources": [source(kind=0)]}, r"sources\[0\].move.kind: 0"),
        ({"sources": [source(kind=77)]}, r"sources\[0\].move.kind: 77"),
        ({"sources": [source(block_first=2)]}, r"sources\[0\].move: blocks \[2, 2\)"),
        ({"sources": [worker_pb2.BlockSource(move=source().move)]}, r"sources\[0\].address: missing"),
    ],
)
def test_a_bad_decode_names_the_field_and_the_rule(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequestError, match=told):
        decode_job(decode(**changes), CONFIG, BLOCK, 0.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"request_id": ""}, "request_id: missing"),
        ({"tokens_le32": b"123"}, "tokens_le32: .* got 3 bytes"),
        ({"handover_end_block": 0}, "handover_end_block: blocks .0, 0. are not within the 2 full blocks"),
        ({"handover_end_block": 3}, "handover_end_block: blocks .0, 3."),
        ({"handover_first_block": 2}, "handover_end_block: blocks .2, 2."),
        ({"tokens_le32": pack_tokens(range(32))}, "within the 1 full blocks"),
        ({"handover_lease_s": -1.0}, "handover_lease_s: expected seconds, at least 0, got -1"),
        ({"handover_lease_s": float("nan")}, "handover_lease_s: .* got nan"),
        ({"handover_lease_s": float("inf")}, "handover_lease_s: .* got inf"),
    ],
)
def test_a_bad_prefill_names_the_field_and_the_rule(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequestError, match=told):
        prefill_job(prefill(**changes), CONFIG, BLOCK, 0.0)


def test_the_longest_prompt_that_fits_is_taken() -> None:
    """One token less than what is refused above."""
    job = decode_job(decode(max_output_tokens=216), CONFIG, BLOCK, 0.0)
    assert len(job.sequence.tokens) == 40


def test_defaults_are_what_the_protocol_says() -> None:
    """An absent top_p is off, an absent lease is the worker's own, no source is none."""
    assert sampling_of(common_pb2.Sampling()).top_p == 1.0
    job = prefill_job(prefill(), CONFIG, BLOCK, 0.0)
    assert job.handover_lease_s == job.HANDOVER_LEASE_S
    assert job.handover_blocks == range(2)
    assert source_of([]) is None
