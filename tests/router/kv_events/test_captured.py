"""Everything that real vLLM engines published, into a real index, against a replay that knows no book."""

import pytest

from homing.router.core.blocks import block_keys, group_seed
from homing.router.core.types import WorkerId
from homing.router.kv_events.book import CacheBook
from homing.router.kv_events.decode import decode_batch
from homing.router.kv_events.events import EngineCleared, EngineRemoved
from homing.router.kv_events.stream import Apply, EventStream

from .engines import EXCERPT, FIXTURE, Mirror, captured

BLOCK = 32


def messages():
    if not FIXTURE.is_file():
        pytest.skip(f"the captured messages are not here: {FIXTURE}")
    return captured(FIXTURE)


def naive_replay(batches):
    """The keys of what is stored and not removed, each made from all tokens of its prompt, and those prompts."""
    prompts, salts, counts = {}, {}, {}
    for batch in batches:
        for event in batch.events:
            if isinstance(event, EngineCleared):
                counts.clear()
            elif isinstance(event, EngineRemoved):
                for name in event.hashes:
                    counts[name] = counts.get(name, 0) - 1
            else:
                above, salt = prompts.get(event.parent, b""), salts.get(event.parent, event.salt)
                for index, name in enumerate(event.hashes):
                    prompts[name] = above + event.packed_tokens[: (index + 1) * BLOCK * 4]
                    salts[name] = salt
                    counts[name] = max(0, counts.get(name, 0)) + 1
    chains = [
        block_keys(prompts[name], BLOCK, seed=group_seed(tenant_salt=salts[name]))
        for name, count in counts.items()
        if count > 0
    ]
    return {chain[-1] for chain in chains}, chains


def test_the_whole_capture():
    """I10, for three publishers: 95 stores, 153 removals, a clear and a salted prompt."""
    by_topic = {}
    for topic, seq, payload in messages():
        by_topic.setdefault(topic, []).append((seq, decode_batch(payload)))
    assert sum(map(len, by_topic.values())) == 60
    for topic, told in by_topic.items():
        stream, book, mirror = EventStream(has_replay=False), CacheBook(WorkerId(topic), BLOCK), Mirror()
        for count, (seq, batch) in enumerate(told, 1):
            (action,) = stream.received(seq, batch)
            assert action == Apply(batch=batch)
            mirror.hear(book.apply(batch))
            book.check()
            keys, chains = naive_replay([batch for _, batch in told[:count]])
            assert mirror.held() == keys
        assert (stream.trust, book.orphans) == ("exact", 0)
        assert all(mirror.depth(chain) == len(chain) for chain in chains), "engines evict the last block first"
        left_out = {name: getattr(book.counts, name) for name in book.counts.__slots__}
        assert not any(left_out.values()), left_out


def test_a_salted_prompt_is_held_for_its_tenant_alone():
    (payload,) = (payload for topic, seq, payload in captured(EXCERPT) if (topic, seq) == ("kv@p@smol", 8))
    batch, book, mirror = decode_batch(payload), CacheBook(WorkerId("p"), BLOCK), Mirror()
    mirror.hear(book.apply(batch))
    (stored,) = (event for event in batch.events if not isinstance(event, EngineRemoved))
    assert mirror.depth(block_keys(stored.packed_tokens, BLOCK, seed=group_seed(tenant_salt="tenant-a"))) == 3
    assert mirror.depth(block_keys(stored.packed_tokens, BLOCK)) == 0
    assert book.counts.unknown_removed == 3, "they were stored before this excerpt begins"
