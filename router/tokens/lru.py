"""Caches that hold so many bytes and no more: what was used least recently goes first.

Sizes are those of the payload plus a flat charge an entry for Python's own objects, so that a bound in bytes is close
to the memory that the process grows by.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from xxhash import xxh3_64_intdigest

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ENTRY_BYTES = 250
"""What an entry costs beside its payload: a slot in the dictionary, a key, a tuple, headers of objects."""


class BoundedCache(Generic[K, V]):
    """A dictionary of at most `bytes_max` bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """What is stored under a key, which counts as use."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, value_bytes: int) -> None:
        """Store a value of this size; one that would fill more than an eighth of the cache is not worth its room."""
        size_bytes = value_bytes + ENTRY_BYTES
        if size_bytes > self.bytes_max // 8:
            return
        if (old := self._entries.pop(key, None)) is not None:
            self.used_bytes -= old[1]
        self._entries[key] = (value, size_bytes)
        self.used_bytes += size_bytes
        while self.used_bytes > self.bytes_max:
            _, (_, gone_bytes) = self._entries.popitem(last=False)
            self.used_bytes -= gone_bytes

    def check(self) -> None:
        """Its account is right and within the bound."""
        assert self.used_bytes == sum(size for _, size in self._entries.values())
        assert self.used_bytes <= self.bytes_max


class ExactCache:
    """Bytes to bytes, found by XXH3-64 and compared in full: no collision, chance or made, gives a wrong answer."""

    def __init__(self, bytes_max: int) -> None:
        self._cache: BoundedCache[int, tuple[bytes, bytes]] = BoundedCache(bytes_max)

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def used_bytes(self) -> int:
        """What it holds, questions and answers."""
        return self._cache.used_bytes

    def get(self, question: bytes, *, kind: int = 0) -> bytes | None:
        """The answer that was stored for exactly these bytes; questions of another `kind` have answers of their own."""
        found = self._cache.get(xxh3_64_intdigest(question, kind))
        return found[1] if found is not None and found[0] == question else None

    def put(self, question: bytes, answer: bytes, *, kind: int = 0) -> None:
        """Store an answer, in the place of whatever has the same hash."""
        self._cache.put(xxh3_64_intdigest(question, kind), (question, answer), len(question) + len(answer))

    def check(self) -> None:
        """Its account is right and within the bound."""
        self._cache.check()
