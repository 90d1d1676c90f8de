"""How a worker tells of changes of its cache: chains of stored blocks together, in order, as live workers do."""

from collections.abc import Callable, Iterable

from homing.router.core.events import BlocksRemoved, BlocksStored, Event
from homing.router.core.types import BlockKey, Tier, WorkerId
from homing.workers.engine.kvcache import KvEvent, Stored


def told(worker: WorkerId, changes: Iterable[KvEvent], tier: Tier) -> list[Event]:
    """Events for changes, as few as their order allows."""
    events: list[Event] = []
    keys: list[BlockKey] = []
    parent: BlockKey | None = None
    kind: Callable[..., Event] | None = None

    def flush() -> None:
        if kind is BlocksStored:
            events.append(BlocksStored(worker_id=worker, keys=tuple(keys), parent=parent, tier=tier))
        elif kind is BlocksRemoved:
            events.append(BlocksRemoved(worker_id=worker, keys=tuple(keys), tier=tier))

    for change in changes:
        if isinstance(change, Stored):
            if kind is not BlocksStored or change.parent != keys[-1]:
                flush()
                kind, keys, parent = BlocksStored, [], change.parent
        elif kind is not BlocksRemoved:
            flush()
            kind, keys = BlocksRemoved, []
        keys.append(change.key)
    flush()
    return events
