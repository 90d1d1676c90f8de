"""Which blocks a bounded host memory holds, in which slots, and which of them gives way.

Rule 1: a slot is free, being filled, or held under one key. Only a held, unpinned block gives way, the least recently
used first.
Rule 2: of a prompt's blocks the last gives way first: without the ones before it, it is of no use.
Rule 3: no bytes, no locks, no clock here: whoever has a `slot` does the copying.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from homing.router.core.types import BlockKey


class BlockStore:
    """The index of `blocks` slots. All operations are O(1) for each key."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"a store of {blocks} blocks holds nothing; give it room for at least one")
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._filling: dict[BlockKey, int] = {}
        self._held: OrderedDict[BlockKey, int] = OrderedDict()
        self._pins: dict[BlockKey, int] = {}
        self._idle: OrderedDict[BlockKey, None] = OrderedDict()
        self._changes: dict[BlockKey, bool] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._held

    def is_filling(self, key: BlockKey) -> bool:
        """Whether somebody reserved the key and has neither committed nor aborted."""
        return key in self._filling

    def slot(self, key: BlockKey) -> int:
        """Where a held or filling block lies; KeyError for any other."""
        found = self._held.get(key)
        return self._filling[key] if found is None else found

    def reserve(self, key: BlockKey) -> int | None:
        """A slot to fill with the block of `key`, or None: it is here, is being filled, or every slot is in use."""
        if key in self._held or key in self._filling:
            return None
        if not self._free and not self._evict():
            return None
        slot = self._free.pop()
        self._filling[key] = slot
        return slot

    def commit(self, key: BlockKey, *, pinned: bool = False) -> None:
        """The reserved slot is filled: the block can be found."""
        self._held[key] = self._filling.pop(key)
        self._note(key, is_held=True)
        if pinned:
            self._pins[key] = 1
        else:
            self._idle[key] = None

    def abort(self, key: BlockKey) -> None:
        """The reserved slot will not be filled."""
        self._free.append(self._filling.pop(key))

    def match(self, keys: Sequence[BlockKey]) -> int:
        """How many leading keys are held."""
        return next((i for i, key in enumerate(keys) if key not in self._held), len(keys))

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Keep held blocks until they are unpinned as often; KeyError for one that is not held."""
        for key in keys:
            if key not in self._held:
                raise KeyError(f"block {key} is not held; only held blocks can be pinned")
            self._pins[key] = self._pins.get(key, 0) + 1
            self._idle.pop(key, None)

    def unpin(self, keys: Sequence[BlockKey]) -> None:
        """Undo `pin`; the blocks count as used now, in the order of a prompt."""
        for key in reversed(keys):
            left = self._pins[key] - 1
            if left:
                self._pins[key] = left
            else:
                del self._pins[key]
                self._idle[key] = None

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """These blocks of a prompt, in its order, are used now; keys that are not held are passed over."""
        for key in reversed(keys):
            if key in self._idle:
                self._idle.move_to_end(key)

    @property
    def pinned(self) -> int:
        """Blocks that cannot give way."""
        return len(self._pins)

    def clear(self) -> None:
        """Let go of everything that is not pinned or being filled."""
        while self._idle:
            self._evict()

    def take_changes(self) -> tuple[tuple[BlockKey, ...], tuple[BlockKey, ...]]:
        """Keys that came and keys that went since the last call; what came and went again is in neither."""
        changes, self._changes = self._changes, {}
        came = tuple(key for key, is_held in changes.items() if is_held)
        went = tuple(key for key, is_held in changes.items() if not is_held)
        return came, went

    def check(self) -> None:
        """Assert the module's rules. O(blocks)."""
        slots = [*self._free, *self._filling.values(), *self._held.values()]
        assert sorted(slots) == list(range(self.blocks)), "every slot is free, filling or held, once"
        assert not self._held.keys() & self._filling.keys(), "a key is held or filling"
        assert all(count > 0 for count in self._pins.values()), "pins are positive"
        assert self._pins.keys() | self._idle.keys() == self._held.keys(), "held is pinned or idle"
        assert not self._pins.keys() & self._idle.keys(), "pinned is not idle"
        assert all((key in self._held) == is_held for key, is_held in self._changes.items()), "changes are true"

    def _evict(self) -> bool:
        if not self._idle:
            return False
        key, _ = self._idle.popitem(last=False)
        self._free.append(self._held.pop(key))
        self._note(key, is_held=False)
        return True

    def _note(self, key: BlockKey, *, is_held: bool) -> None:
        # Two changes of one key undo each other: whoever reads them knows the state before.
        if key in self._changes:
            del self._changes[key]
        else:
            self._changes[key] = is_held
