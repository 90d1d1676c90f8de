"""The block book against a naive one: what is findable, what is free, who is evicted first, what listeners are told."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from homing.router.core.types import BlockKey
from homing.workers.engine.kvcache import KvCache, KvEvent, Removed, Stored

Path = tuple[int, ...]


def key_of(path: Path) -> BlockKey:
    """A block's key names its whole prefix, as a chained hash does."""
    key = 1
    for step in path:
        key = key * 5 + step + 1
    return BlockKey(key)


def keys_of(path: Path) -> list[BlockKey]:
    return [key_of(path[: i + 1]) for i in range(len(path))]


paths = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


class Replay:
    """What a listener believes who applies every event."""

    def __init__(self) -> None:
        self.parents: dict[BlockKey, BlockKey | None] = {}

    def apply(self, events: list[KvEvent]) -> None:
        for event in events:
            match event:
                case Stored():
                    assert event.key not in self.parents, "stored twice"
                    self.parents[event.key] = event.parent
                case Removed():
                    del self.parents[event.key]


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, commit block by block, share, are cancelled half way; pins of handovers outlive them."""

    @initialize(total=st.integers(1, 14))
    def begin(self, total: int) -> None:
        self.cache = KvCache(total)
        self.replay = Replay()
        self.pins: Counter[int] = Counter()
        self.key: dict[int, BlockKey] = {}
        self.lru: list[int] = []
        self.running: list[tuple[Path, list[int], int]] = []
        self.handovers: list[list[int]] = []

    # -- the naive model -------------------------------------------------------------------------------------------

    def pin(self, blocks: list[int]) -> None:
        self.cache.pin(blocks)
        for block in blocks:
            self.pins[block] += 1
            if block in self.lru:
                self.lru.remove(block)

    def unpin(self, blocks: list[int]) -> None:
        self.cache.unpin(blocks)
        for block in reversed(blocks):
            self.pins[block] -= 1
            if self.pins[block] == 0 and block in self.key:
                self.lru.append(block)

    def used(self) -> int:
        return sum(count > 0 for count in self.pins.values())

    def findable(self) -> dict[BlockKey, int]:
        return {key: block for block, key in self.key.items()}

    def allocated(self, count: int) -> list[int] | None:
        """Allocate, and predict who had to go for it."""
        free = self.cache.total - self.used() - len(self.lru)
        blocks = self.cache.allocate(count)
        if count > free + len(self.lru):
            assert blocks is None
            return None
        assert blocks is not None and len(set(blocks)) == count
        for _ in range(count - free):
            del self.key[self.lru.pop(0)]
        for block in blocks:
            assert self.pins[block] == 0 and block not in self.key
            self.pins[block] = 1
        return blocks

    # -- what may happen -------------------------------------------------------------------------------------------

    @rule(path=paths, extra=st.integers(0, 2))
    def start(self, path: Path, extra: int) -> None:
        found = self.cache.match(keys_of(path))
        expected = []
        for key in keys_of(path):
            if key not in self.findable():
                break
            expected.append(self.findable()[key])
        assert found == expected
        self.pin(found)
        fresh = self.allocated(len(path) - len(found) + extra)
        if fresh is None:
            self.unpin(found)
        else:
            self.running.append((path, found + fresh, len(found)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 3))
    def commit(self, data: st.DataObject, count: int) -> None:
        at = data.draw(st.integers(0, len(self.running) - 1))
        path, blocks, done = self.running[at]
        keys = keys_of(path)
        for position in range(done, min(done + count, len(path))):
            duplicate = keys[position] in self.findable()
            self.cache.commit(blocks[position], keys[position], keys[position - 1] if position else None)
            if not duplicate:
                self.key[blocks[position]] = keys[position]
        self.running[at] = (path, blocks, min(done + count, len(path)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        _, blocks, _ = data.draw(st.sampled_from(self.running))
        first = data.draw(st.integers(0, len(blocks) - 1))
        self.handovers.append(blocks[first:])
        self.pin(blocks[first:])

    @precondition(lambda self: self.handovers)
    @rule(data=st.data())
    def handed_over(self, data: st.DataObject) -> None:
        self.unpin(self.handovers.pop(data.draw(st.integers(0, len(self.handovers) - 1))))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        _, blocks, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.unpin(blocks)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.key.clear()
        self.lru.clear()

    # -- what must always be true ----------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        assert (self.cache.used, self.cache.cached) == (self.used(), len(self.lru))
        assert self.cache.used + self.cache.cached + self.cache.free == self.cache.total
        self.replay.apply(self.cache.take_events())
        assert set(self.replay.parents) == set(self.findable())
        # A snapshot tells the same as all events did, parents before children.
        seen: set[BlockKey] = set()
        for entry in self.cache.entries():
            assert self.replay.parents[entry.key] == entry.parent
            if entry.parent in self.replay.parents:
                assert entry.parent in seen, "a child is told before its parent"
            seen.add(entry.key)
        assert seen == set(self.replay.parents)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            for _, blocks, _ in self.running:
                self.unpin(blocks)
            for blocks in self.handovers:
                self.unpin(blocks)
            assert self.cache.used == 0
            self.cache.check()


CacheMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
test_cache_agrees_with_a_naive_book = CacheMachine.TestCase


@settings(max_examples=200, deadline=None)
@given(total=st.integers(4, 20), uses=st.lists(st.tuples(paths, st.integers(0, 3)), min_size=1, max_size=30))
def test_eviction_never_tears_a_prefix(total: int, uses: list[tuple[Path, int]]) -> None:
    """Where no block was computed twice at once, whatever is findable has its whole prefix findable (Rule 3)."""
    cache, replay = KvCache(total), Replay()
    held: list[list[int]] = []
    for path, hold in uses:
        found = cache.match(keys_of(path))
        cache.pin(found)
        fresh = cache.allocate(len(path) - len(found))
        if fresh is None:
            cache.unpin(found)
        else:
            blocks, keys = found + fresh, keys_of(path)
            for position in range(len(found), len(path)):
                cache.commit(blocks[position], keys[position], keys[position - 1] if position else None)
            held.append(blocks)
        while len(held) > hold:
            cache.unpin(held.pop(0))
        replay.apply(cache.take_events())
        assert all(parent is None or parent in replay.parents for parent in replay.parents.values())


def test_a_full_cache_gives_nothing_and_changes_nothing() -> None:
    cache = KvCache(3)
    taken = cache.allocate(2)
    assert taken is not None
    assert cache.allocate(2) is None
    assert (cache.used, cache.free) == (2, 1)
    assert cache.take_events() == []


def test_a_second_copy_stays_private_and_is_free_at_once() -> None:
    cache = KvCache(2)
    first, second = cache.allocate(2) or [0, 0]
    cache.commit(first, BlockKey(7), None)
    cache.commit(second, BlockKey(7), None)
    assert cache.take_events() == [Stored(key=BlockKey(7), parent=None)]
    cache.unpin([second])
    assert (cache.used, cache.cached, cache.free) == (1, 0, 1)
    assert cache.match([BlockKey(7)]) == [first]


def test_misuse_is_caught() -> None:
    cache = KvCache(2)
    [block] = cache.allocate(1) or [0]
    cache.commit(block, BlockKey(7), None)
    with pytest.raises(AssertionError, match="another key"):
        cache.commit(block, BlockKey(8), None)
    cache.unpin([block])
    with pytest.raises(AssertionError, match="more often than pinned"):
        cache.unpin([block])
    with pytest.raises(AssertionError, match="not in use"):
        cache.commit(block, BlockKey(9), None)
