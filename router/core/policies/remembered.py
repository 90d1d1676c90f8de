"""What a router sent to whom: the approximate prefix knowledge of routers that hear no cache events.

Rule 1: it knows what was sent, not what is cached: an answer's blocks are missing, an evicted block is still here.
Rule 2: each holder's blocks are bounded, and the least recently sent go first, leaves before what they hang on. So a
holder of a block holds every block before it, and the depth is found by binary search.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

from ..prefix_index import iter_bits
from ..types import BlockKey

TREE_BLOCKS_MAX = 2**20
"""2^26 characters, the default of sglang-router's and smg's `--max-tree-size`, at 4 characters per token and 16 tokens
per block."""


class Remembered:
    """A prefix tree per holder (a worker, or a site behind a balancer), each of at most `blocks_max` blocks."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._recent: dict[str, OrderedDict[BlockKey, None]] = {}
        self._slots: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._holders: dict[BlockKey, int] = {}

    def __len__(self) -> int:
        """How many pairs of a holder and a block are remembered."""
        return sum(len(recent) for recent in self._recent.values())

    def sent(self, holder: str, keys: Sequence[BlockKey]) -> None:
        """A prompt of these blocks was sent to a holder."""
        if not keys:
            return
        recent = self._recent.setdefault(holder, OrderedDict())
        mask = 1 << self._slot(holder)
        for key in reversed(keys):
            if key in recent:
                recent.move_to_end(key)
            else:
                recent[key] = None
                self._holders[key] = self._holders.get(key, 0) | mask
        while len(recent) > self._blocks_max:
            self._drop(recent.popitem(last=False)[0], mask)

    def match(self, keys: Sequence[BlockKey]) -> dict[str, int]:
        """How many leading blocks each holder was sent; holders of none are left out."""
        found: dict[str, int] = {}
        depth = bisect_left(keys, True, key=lambda key: key not in self._holders)
        everybody = self._holders[keys[0]] if depth else 0
        seen = 0
        while seen != everybody:
            fresh = self._holders[keys[depth - 1]] & ~seen
            found.update((self._names[slot], depth) for slot in iter_bits(fresh))
            seen |= fresh
            depth -= 1
        return found

    def size(self, holder: str) -> int:
        """How many blocks are remembered of a holder."""
        return len(self._recent.get(holder, ()))

    def forget(self, holder: str) -> None:
        """A holder is gone; unknown ones are ignored."""
        slot = self._slots.pop(holder, None)
        if slot is not None:
            for key in self._recent.pop(holder):
                self._drop(key, 1 << slot)
            del self._names[slot]

    def check(self) -> None:
        """Assert that the trees and the sets of holders agree, and that no tree outgrew its bound."""
        held: dict[BlockKey, int] = {}
        for holder, recent in self._recent.items():
            assert 0 < len(recent) <= self._blocks_max
            for key in recent:
                held[key] = held.get(key, 0) | 1 << self._slots[holder]
        assert held == self._holders
        assert {name: slot for slot, name in self._names.items()} == self._slots
        assert self._slots.keys() == self._recent.keys()

    def _slot(self, holder: str) -> int:
        slot = self._slots.get(holder)
        if slot is None:
            slot = next(free for free in range(len(self._names) + 1) if free not in self._names)
            self._slots[holder], self._names[slot] = slot, holder
        return slot

    def _drop(self, key: BlockKey, mask: int) -> None:
        left = self._holders[key] & ~mask
        if left:
            self._holders[key] = left
        else:
            del self._holders[key]
