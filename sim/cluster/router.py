"""The router's own core on virtual time: the only place of the simulator that calls `handle`."""

from collections.abc import Callable, Iterable

from homing.router.core.commands import Command
from homing.router.core.events import Event, TimerFired
from homing.router.core.scheduler import Scheduler

from ..kernel import Handle, Kernel

Observer = Callable[[Event, list[Command], float], None]
"""Called with each event, its commands and the time."""


class SimulatedRouter:
    """Feeds one scheduler and passes its commands on. `check_every` events all its invariants are asserted."""

    def __init__(
        self, kernel: Kernel, scheduler: Scheduler, carry_out: Callable[[Command], None], *, check_every: int = 0
    ) -> None:
        self.scheduler = scheduler
        self.site: str = scheduler.world.site
        self.observers: list[Observer] = []
        self.handled = 0
        self._kernel = kernel
        self._carry_out = carry_out
        self._check_every = check_every
        self._timer: Handle | None = None
        self._stopped = False

    def tell(self, events: Iterable[Event]) -> None:
        """Facts, in order; their commands are carried out behind each."""
        now = self._kernel.now
        handle = self.scheduler.handle
        for event in events:
            commands = handle(event, now)
            self.handled += 1
            if self.observers:
                for observe in self.observers:
                    observe(event, commands, now)
            if self._check_every and self.handled % self._check_every == 0:
                self.scheduler.check()
            for command in commands:
                self._carry_out(command)
        self._arm()

    def stop(self) -> None:
        """Fire no more timers; what is still on its way is heard."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._stopped:
            return
        due_s = self.scheduler.next_timer()
        timer = self._timer
        if timer is not None and timer.is_pending:
            if timer.due_s == due_s:
                return
            timer.cancel()
        self._timer = None if due_s is None else self._kernel.at(max(due_s, self._kernel.now), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.tell((TimerFired(),))
