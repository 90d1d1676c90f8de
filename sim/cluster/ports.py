"""Whom a simulated worker talks to, as seen from the worker."""

from typing import TYPE_CHECKING, Protocol

from homing.router.core.events import Event
from homing.router.core.types import WorkerId
from homing.workers.engine.kvcache import KvEvent

if TYPE_CHECKING:
    from .job import Job
    from .worker import SimulatedWorker


class Transfer(Protocol):
    """Blocks on their way."""

    def broke(self) -> None:
        """One of its ends is gone, or nobody waits any more."""


class About(Protocol):
    """Whom an event is about, who may not want it told any more by the time it is heard."""

    is_over: bool


Told = tuple[Event, About | None]


class Tiers(Protocol):
    """What a worker keeps below its device memory."""

    def clear(self) -> None:
        """Everything is gone."""

    def take_in(self, worker: WorkerId, changes: list[KvEvent]) -> list[Event]:
        """Keep what the device evicted; returns what there is to tell of it."""

    def load(self, worker: "SimulatedWorker", job: "Job") -> None:
        """Bring up what follows on what the device holds of a prompt."""

    def everything(self, worker: WorkerId) -> list[Event]:
        """All that is kept, as events."""

    def check(self) -> None:
        """Assert its invariants."""


class Listener(Protocol):
    """Where a worker's events go."""

    def hear(self, worker: "SimulatedWorker", events: list[Told], kv_events: list[Event]) -> None:
        """What happened on a worker at this moment; changes of its cache apart, since they may take another way."""
