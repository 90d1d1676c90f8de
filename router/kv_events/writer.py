"""Gathers single changes into the router's events: one event per run of blocks that go together."""

from ..core.events import BlocksRemoved, BlocksStored, CacheCleared
from ..core.types import BlockKey, Tier, WorkerId

CacheEvent = BlocksStored | BlocksRemoved | CacheCleared


class EventWriter:
    """The events of one worker, in the order in which the changes were written.

    >>> writer = EventWriter(WorkerId("w"))
    >>> for key, parent in [(1, None), (2, 1), (3, 2)]:
    ...     writer.stored(Tier.DEVICE, key, parent)
    >>> [event.keys for event in writer.take()]
    [(1, 2, 3)]
    """

    def __init__(self, worker: WorkerId) -> None:
        self._worker = worker
        self._events: list[CacheEvent] = []
        self._tier = Tier.DEVICE
        self._stored: list[BlockKey] = []
        self._parent: BlockKey | None = None
        self._removed: list[BlockKey] = []

    def stored(self, tier: Tier, key: BlockKey, parent: BlockKey | None) -> None:
        """A block is held now, below `parent` (None: it is a prompt's first)."""
        if self._removed or tier is not self._tier or not self._stored or self._stored[-1] != parent:
            self._flush()
            self._tier, self._parent = tier, parent
        self._stored.append(key)

    def removed(self, tier: Tier, key: BlockKey) -> None:
        """A block is held no more."""
        if self._stored or tier is not self._tier:
            self._flush()
            self._tier = tier
        self._removed.append(key)

    def cleared(self) -> None:
        """Nothing is held; what was written before would be undone by it, and is dropped."""
        self._stored, self._removed = [], []
        self._events = [CacheCleared(worker_id=self._worker)]

    def take(self) -> list[CacheEvent]:
        """All events that were written, once."""
        self._flush()
        events, self._events = self._events, []
        return events

    def _flush(self) -> None:
        if self._stored:
            keys = tuple(self._stored)
            stored = BlocksStored(worker_id=self._worker, keys=keys, parent=self._parent, tier=self._tier)
            self._events.append(stored)
        if self._removed:
            removed = BlocksRemoved(worker_id=self._worker, keys=tuple(self._removed), tier=self._tier)
            self._events.append(removed)
        self._stored, self._removed = [], []
