"""Block keys for workloads: what a trace calls a block, and what a generator makes up.

Rule 1: equal keys, equal prefixes; keys of different namespaces do not meet, so that two workloads may share a run.
Rule 2: a key depends on the namespace and the trace's id alone: not on the process, the order or the hash seed (I5).
Rule 3: equal blocks share one int object as long as a bounded table remembers them. Forgetting costs memory, no truth.
"""

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, cast

from xxhash import xxh3_64_intdigest

from homing.router.core.types import BlockKey

MASK_64 = (1 << 64) - 1
KEPT_MAX = 1 << 20
_ID = struct.Struct("<Q")
_PAIR = struct.Struct("<QQ")


def name_seed(name: str) -> int:
    """64 bits that stand for a name."""
    return xxh3_64_intdigest(name.encode())


def _row_of_keys(first: int, end: int) -> tuple[BlockKey, ...]:
    """Neighbouring keys; a cast, because calling BlockKey on each costs three times as much as making them."""
    return cast("tuple[BlockKey, ...]", tuple(range(first, end)))


class _Recent(dict[int, Any]):
    """The younger of two generations: what it lacks it takes from the elder, or makes."""

    __slots__ = ("elder", "make")

    def __init__(self, make: Callable[[int], Any], elder: dict[int, Any]) -> None:
        super().__init__()
        self.make = make
        self.elder = elder

    def __missing__(self, block_id: int) -> Any:
        found = self.elder.get(block_id)
        if found is None:
            found = self.make(block_id)
        self[block_id] = found
        return found


class KeyTable:
    """Turns the prefix-chained block ids of one trace into keys of blocks that are `pieces` times smaller.

    XXH3-64 maps equally long inputs of eight bytes one to one, so ids of one namespace never collide. Without a
    namespace, the id of a block in one piece is its key. `kept_max` bounds how many keys each of the two generations
    remembers.

    >>> table = KeyTable("a")
    >>> table.keys([7, 8], 2)[0] == table.keys([7, 9], 1)[0]
    True
    >>> KeyTable("b").keys([7], 1) == table.keys([7], 1)
    False
    >>> KeyTable(None).keys([7, 8], 2)
    (7, 8)
    >>> len(KeyTable(None, pieces=4).keys([7, 8], 6))
    6
    """

    def __init__(self, namespace: str | None, *, pieces: int = 1, kept_max: int = KEPT_MAX) -> None:
        assert pieces > 0 and kept_max > 0
        self.pieces = pieces
        self._seed = None if namespace is None else name_seed(namespace)
        self._kept_max = max(1, kept_max // pieces)
        self._make: Callable[[int], Any] = self._key if pieces == 1 else self._row
        self._recent = _Recent(self._make, {})

    def keys(self, block_ids: Sequence[int], count: int) -> tuple[BlockKey, ...]:
        """The first `count` keys under these ids, or all there are. Runtime complexity: O(ids x pieces)."""
        if len(self._recent) > self._kept_max:
            self._recent = _Recent(self._make, dict(self._recent))
        found = map(self._recent.__getitem__, block_ids[: -(-count // self.pieces)])
        return tuple(found) if self.pieces == 1 else tuple(chain.from_iterable(found))[:count]

    def _key(self, block_id: int) -> BlockKey:
        block_id &= MASK_64
        return BlockKey(block_id if self._seed is None else xxh3_64_intdigest(_ID.pack(block_id), self._seed))

    def _row(self, block_id: int) -> tuple[BlockKey, ...]:
        """Keys of the pieces: a row of neighbours that begins at a number as good as random, which is quick to make."""
        first = min(xxh3_64_intdigest(_ID.pack(block_id & MASK_64), self._seed or 0), MASK_64 - self.pieces)
        return _row_of_keys(first, first + self.pieces)


class ChainTable:
    """Chains block ids that name a block's own content, and perhaps not what came before it.

    Chaining ids that are chained already changes which numbers are used and not which of them are equal.
    """

    def __init__(self, namespace: str, *, pieces: int = 1, kept_max: int = KEPT_MAX) -> None:
        self._parent = name_seed(namespace)
        self._table = KeyTable(None, pieces=pieces, kept_max=kept_max)

    def keys(self, block_ids: Sequence[int], count: int) -> tuple[BlockKey, ...]:
        """The first `count` keys under these ids, or all there are. Runtime complexity: O(ids x pieces)."""
        parent, chained = self._parent, []
        for block_id in block_ids[: -(-count // self._table.pieces)]:
            parent = xxh3_64_intdigest(_PAIR.pack(parent, block_id & MASK_64))
            chained.append(parent)
        return self._table.keys(chained, count)


class KeySpace:
    """Keys for made-up text: each call takes fresh ones, in a row that begins where the namespace says.

    Within one space nothing can collide; rows of two spaces would have to overlap by chance, among 2^63 starts.

    >>> keys = KeySpace("a")
    >>> first, second = keys.take(3), keys.take(2)
    >>> len({*first, *second})
    5
    """

    def __init__(self, namespace: str) -> None:
        self._next = name_seed(namespace) >> 1

    def take(self, blocks: int) -> tuple[BlockKey, ...]:
        """Keys of so many blocks of text that nobody has seen before."""
        first, self._next = self._next, self._next + max(0, blocks)
        return _row_of_keys(first, self._next)
