"""The paged KV cache of one worker: which block holds what, who uses it, what may be evicted.

Blocks are rows of a tensor that lies elsewhere; this is the book about them. A block is *free*, *used* (some sequence
or handover pins it) or *cached* (nobody pins it, but its content is known by a key and may be used again until
evicted).

Rule 1: used + cached + free = total (I3).
Rule 2: a block gets a key only when every token of it is computed or has arrived checked, so what is found by key is
whole.
Rule 3: eviction takes what was used longest ago, and of one sequence its last block first, so that prefixes stay whole.
Rule 4: every change of what is findable is told as an event, in order.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from homing.router.core.types import BlockKey


class Stored(NamedTuple):
    """`key` can be found now; it follows `parent` (None: a prompt's first block)."""

    key: BlockKey
    parent: BlockKey | None


class Removed(NamedTuple):
    """`key` can be found no more."""

    key: BlockKey


KvEvent = Stored | Removed


@dataclass(slots=True)
class _Block:
    pins: int = 0
    key: BlockKey | None = None
    parent: BlockKey | None = None


class KvCache:
    """The book of `total` blocks.

    * using: `match`, `allocate`, `pin`, `unpin`, `commit`
    * asking: `used`, `cached`, `free`, `available`, `entries`
    * telling: `take_events`
    * truth: `check`
    """

    def __init__(self, total: int) -> None:
        assert total > 0, total
        self.total = total
        self._blocks = [_Block() for _ in range(total)]
        self._free = list(range(total - 1, -1, -1))
        self._by_key: dict[BlockKey, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._events: list[KvEvent] = []

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that nobody uses but that can still be found."""
        return len(self._evictable)

    @property
    def used(self) -> int:
        """Blocks that somebody pins."""
        return self.total - self.free - self.cached

    @property
    def available(self) -> int:
        """Blocks that `allocate` could give out."""
        return self.free + self.cached

    def match(self, keys: Sequence[BlockKey]) -> list[int]:
        """The blocks of the longest leading run of keys that can be found. Runtime complexity: O(length of the run)."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def pin(self, blocks: Iterable[int]) -> None:
        """Use blocks: they are not evicted until unpinned as often."""
        for number in blocks:
            block = self._blocks[number]
            if block.pins == 0:
                self._evictable.pop(number, None)
            block.pins += 1

    def unpin(self, blocks: Sequence[int]) -> None:
        """Stop using blocks, given in prompt order. What has a key stays findable, the rest is free at once."""
        books = self._blocks
        for number in reversed(blocks):
            block = books[number]
            pins = block.pins = block.pins - 1
            if not pins:
                if block.key is None:
                    self._free.append(number)
                else:
                    self._evictable[number] = None
            else:
                assert pins > 0, f"block {number} is unpinned more often than pinned"

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks without content, pinned once; None (and nothing changed) when there are not that many."""
        if count > self.available:
            return None
        if len(self._free) < count:
            self._evict(count - len(self._free))
        first = len(self._free) - count
        taken = self._free[first:]
        taken.reverse()
        del self._free[first:]
        blocks = self._blocks
        for number in taken:
            blocks[number].pins = 1
        return taken

    def commit(self, number: int, key: BlockKey, parent: BlockKey | None) -> None:
        """A pinned block's content is whole and checked: let it be found.

        A second copy of a known key stays its sequence's own and is freed with it.
        """
        block = self._blocks[number]
        assert block.pins > 0, f"block {number} is committed but not in use"
        assert block.key in {None, key}, f"block {number} already holds another key"
        if block.key is None and key not in self._by_key:
            block.key, block.parent = key, parent
            self._by_key[key] = number
            self._events.append(Stored(key, parent))

    def clear(self) -> None:
        """Let nothing be found any more; blocks in use go on being used."""
        for number in list(self._evictable):
            self._forget(number)
            self._free.append(number)
        self._evictable.clear()
        for number in list(self._by_key.values()):
            self._forget(number)

    def take_events(self) -> list[KvEvent]:
        """What changed since the last call, in order."""
        events, self._events = self._events, []
        return events

    def entries(self) -> list[Stored]:
        """Everything that can be found, parents before children: what a listener who missed events needs.

        Runtime complexity: O(blocks).
        """
        told: dict[BlockKey, Stored] = {}
        for number in self._by_key.values():
            path: list[Stored] = []
            at: int | None = number
            while at is not None:
                block = self._blocks[at]
                assert block.key is not None
                if block.key in told:
                    break
                path.append(Stored(key=block.key, parent=block.parent))
                at = None if block.parent is None else self._by_key.get(block.parent)
            told.update((entry.key, entry) for entry in reversed(path))
        return list(told.values())

    def check(self) -> None:
        """Assert I3 and that the maps agree. Runtime complexity: O(blocks)."""
        free, evictable = set(self._free), set(self._evictable)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & evictable
        assert self.used + self.cached + self.free == self.total
        for number, block in enumerate(self._blocks):
            assert block.pins >= 0
            if number in free:
                assert block.pins == 0
                assert block.key is None
            elif number in evictable:
                assert block.pins == 0
                assert block.key is not None
            else:
                assert block.pins > 0, f"block {number} is lost"
            if block.key is not None:
                assert self._by_key[block.key] == number
        assert all(self._blocks[number].key == key for key, number in self._by_key.items())

    def _evict(self, count: int) -> None:
        for _ in range(count):
            number, _ = self._evictable.popitem(last=False)
            self._forget(number)
            self._free.append(number)

    def _forget(self, number: int) -> None:
        block = self._blocks[number]
        assert block.key is not None
        del self._by_key[block.key]
        self._events.append(Removed(block.key))
        block.key = block.parent = None
