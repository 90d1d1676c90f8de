"""The store between two threads: the engine's, which keeps and loads blocks, and the loop's, which moves them.

Rule 1: every look at the store holds the lock, and nothing waits while holding it; bytes are copied outside of it, into
and out of slots that are reserved or pinned.
Rule 2: who follows a prompt is told on the loop.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from enum import Enum, auto

from homing.router.core.types import BlockKey

from .store import BlockStore


class Claim(Enum):
    """The answer to "may I fill this block?"."""

    MINE = auto()
    THERE = auto()
    """It is held, or somebody else is filling it."""
    FULL = auto()
    """Every slot is in use."""


class _Follower:
    """Someone who gets the blocks of a prompt as they become whole."""

    def __init__(self, on_ready: Callable[[int], None]) -> None:
        self.on_ready = on_ready
        self.pinned: list[BlockKey] = []
        self.is_over = False


class Shelf:
    """A `BlockStore` for two threads. Methods that say so belong to the loop's thread; all others are safe anywhere."""

    def __init__(self, store: BlockStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._lock = threading.Lock()
        self._followed: dict[BlockKey, list[tuple[_Follower, int]]] = {}

    def claim(self, key: BlockKey) -> Claim:
        """Reserve a slot for `key`; MINE must be followed by `commit` or `abort`."""
        with self._lock:
            if self._store.reserve(key) is not None:
                return Claim.MINE
            there = key in self._store or self._store.is_filling(key)
            return Claim.THERE if there else Claim.FULL

    def slots(self, keys: Sequence[BlockKey]) -> list[int]:
        """Where reserved or held blocks lie."""
        with self._lock:
            return [self._store.slot(key) for key in keys]

    def commit(self, keys: Sequence[BlockKey], *, pinned: bool = False) -> None:
        """Reserved blocks are whole. Those who follow them get them."""
        ready: list[tuple[_Follower, int, BlockKey]] = []
        with self._lock:
            for key in keys:
                self._store.commit(key, pinned=pinned)
                for follower, position in self._followed.pop(key, ()):
                    # Pinned here and not on the loop: by then the block may have given way.
                    self._store.pin((key,))
                    ready.append((follower, position, key))
        if ready:
            self._loop.call_soon_threadsafe(self._tell, ready)

    def abort(self, keys: Sequence[BlockKey]) -> None:
        """Reserved blocks will not be filled."""
        with self._lock:
            for key in keys:
                self._store.abort(key)

    def pin_leading(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """Pin the leading keys that are held, and return them."""
        with self._lock:
            leading = list(keys[: self._store.match(keys)])
            self._store.pin(leading)
        return leading

    def unpin(self, keys: Sequence[BlockKey]) -> None:
        """Undo a pin."""
        with self._lock:
            self._store.unpin(keys)

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """A prompt's blocks are used now."""
        with self._lock:
            self._store.touch(keys)

    def lease(self, keys: Sequence[BlockKey], seconds: float) -> int:
        """Keep the leading held keys for `seconds`, and return how many; none while half of the slots are pinned."""
        with self._lock:
            room = self._store.blocks // 2 - self._store.pinned
            leading = list(keys[: min(self._store.match(keys), max(0, room))])
            self._store.pin(leading)
        if leading:
            self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self.unpin, leading)
        return len(leading)

    def clear(self) -> None:
        """Let go of all that nobody uses."""
        with self._lock:
            self._store.clear()

    def take_changes(self) -> tuple[tuple[BlockKey, ...], tuple[BlockKey, ...]]:
        """See `BlockStore.take_changes`."""
        with self._lock:
            return self._store.take_changes()

    def check(self) -> None:
        """See `BlockStore.check`."""
        with self._lock:
            self._store.check()

    def follow(self, keys: Sequence[BlockKey], on_ready: Callable[[int], None]) -> Callable[[], None]:
        """Call `on_ready(position)` on the loop for each of `keys` that is held or will be; each stays pinned until the
        returned function is called once. Belongs to the loop's thread.
        """
        follower = _Follower(on_ready)
        with self._lock:
            for position, key in enumerate(keys):
                if key in self._store:
                    self._store.pin((key,))
                    self._loop.call_soon(self._tell, [(follower, position, key)])
                else:
                    self._followed.setdefault(key, []).append((follower, position))

        def stop() -> None:
            follower.is_over = True
            self._unfollow(follower, keys)
            self.unpin(follower.pinned)

        return stop

    def _tell(self, ready: list[tuple[_Follower, int, BlockKey]]) -> None:
        for follower, position, key in ready:
            if follower.is_over:
                self.unpin((key,))
            else:
                follower.pinned.append(key)
                follower.on_ready(position)

    def _unfollow(self, follower: _Follower, keys: Sequence[BlockKey]) -> None:
        with self._lock:
            for key in keys:
                left = [entry for entry in self._followed.get(key, ()) if entry[0] is not follower]
                if left:
                    self._followed[key] = left
                else:
                    self._followed.pop(key, None)
