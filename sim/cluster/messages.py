"""The way of a worker's cache events to the router: late, and now and then lost or overtaken.

Messages are numbered. The receiving end sees a gap, throws away what it believed of that worker and asks for everything
anew, as live routers do when a sequence number is missing.
"""

from random import Random
from typing import TYPE_CHECKING

from homing.router.core.events import CacheCleared, Event

from .worker import SimulatedWorker

if TYPE_CHECKING:
    from .world import World

OVERTAKEN_S = 0.05
"""By how much a message that is overtaken comes later."""


class KvChannel:
    """One worker's cache events, in order unless the network says otherwise."""

    def __init__(self, world: "World", worker: SimulatedWorker, random: Random) -> None:
        self._world = world
        self._worker = worker
        self._random = random
        self._spec = world.scenario.router.kv_events
        self._sent = 0
        self._expected = 0
        self._asked = False

    def send(self, events: list[Event]) -> None:
        """One message on its way."""
        number, self._sent = self._sent, self._sent + 1
        spec, world = self._spec, self._world
        if spec.loss and self._random.random() < spec.loss:
            return
        delay_s = world.one_way_s(self._worker.facts.site, world.router.site) + spec.lag_s
        if spec.reorder and self._random.random() < spec.reorder:
            delay_s += OVERTAKEN_S
        world.kernel.after(delay_s, lambda: self._receive(number, events))

    def resync(self) -> None:
        """Everything anew, numbered from here; older messages that are still on their way are not believed."""
        self.begin_anew()
        self.send([CacheCleared(worker_id=self._worker.facts.id), *self._worker.everything_cached()])

    def begin_anew(self) -> None:
        """What is on its way is not believed: the worker is gone, or about to tell everything."""
        self._asked = False
        self._expected = self._sent

    def _receive(self, number: int, events: list[Event]) -> None:
        if self._asked or number < self._expected:
            return
        if number == self._expected:
            self._expected += 1
            self._world.router.tell(events)
            return
        self._asked = True
        world = self._world
        world.commands["kv event gap"] += 1
        world.router.tell((CacheCleared(worker_id=self._worker.facts.id),))
        lives = self._worker.lives
        back_s = world.one_way_s(world.router.site, self._worker.facts.site)
        world.kernel.after(back_s, lambda: self._ask(lives))

    def _ask(self, lives: int) -> None:
        """The worker is asked for everything, if it is still the one that the question was for."""
        if self._asked and self._worker.is_up and self._worker.lives == lives:
            self.resync()
