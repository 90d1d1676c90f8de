"""Feeds the core: the only place of the router that reads the clock, and the only one that calls `handle`.

Every fact goes through `feed`; the commands that come back are handed to the mailbox of their request, or to whoever
watches workers. Observers see every event and every command, so that metrics and journals need nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from homing.router.core.commands import Abandon, Cancel, ChangeRole, Command, Dispatch, Forget, Reject, Resync
from homing.router.core.events import Event, RequestArrived, RequestCancelled, TimerFired
from homing.router.core.scheduler import Scheduler
from homing.router.core.types import Request, RequestId

log = logging.getLogger(__name__)

RequestCommand = Dispatch | Reject | Cancel | Abandon


class Mailbox(Protocol):
    """Where the commands about one request go."""

    def put_nowait(self, command: RequestCommand, /) -> None:
        """Take one."""
        ...


Observer = Callable[[Event, list[Command], float, float], None]
"""Called with the event, its commands, the time, and how long the core took (seconds)."""


class Driver:
    """The core on a wall clock. All methods belong to one event loop."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.on_worker: Callable[[Forget | Resync | ChangeRole], None] = lambda command: log.warning("%s", command)
        self._mailboxes: dict[RequestId, Mailbox] = {}
        self._observers: list[Observer] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = 0.0
        self._closed = False

    def observe(self, observer: Observer) -> None:
        """Let somebody see all that happens."""
        self._observers.append(observer)

    def now(self) -> float:
        """The router's clock: monotonic seconds."""
        return time.monotonic()

    def feed(self, event: Event) -> list[Command]:
        """Tell the core a fact and pass its commands on; returns them too."""
        now = self.now()
        commands = self.scheduler.handle(event, now)
        took_s = self.now() - now
        for observer in self._observers:
            observer(event, commands, now, took_s)
        for command in commands:
            self._pass_on(command)
        self._arm()
        return commands

    def open(self, request: Request) -> asyncio.Queue[RequestCommand]:
        """Let a request arrive; its commands come into the mailbox that is returned, until `close_request`."""
        mailbox: asyncio.Queue[RequestCommand] = asyncio.Queue()
        self.open_with(request, mailbox)
        return mailbox

    def open_with(self, request: Request, mailbox: Mailbox) -> None:
        """Let a request arrive; its commands go to `mailbox`, until `close_request`."""
        assert request.id not in self._mailboxes, f"{request.id} is open already"
        self._mailboxes[request.id] = mailbox
        self.feed(RequestArrived(request=request))

    def reopen(self, request: RequestId) -> asyncio.Queue[RequestCommand]:
        """A mailbox for a request that is in flight already."""
        mailbox: asyncio.Queue[RequestCommand] = asyncio.Queue()
        self._mailboxes[request] = mailbox
        return mailbox

    def forget(self, request: RequestId) -> None:
        """Nobody reads the mailbox any more, but the request goes on: its sender carries it out and reports."""
        self._mailboxes.pop(request, None)

    def is_open(self, request: RequestId) -> bool:
        """Whether a request of this id is being answered."""
        return request in self._mailboxes or self.scheduler.knows(request)

    def is_read(self, request: RequestId) -> bool:
        """Whether somebody here waits for a request's commands."""
        return request in self._mailboxes

    def close_request(self, request: RequestId) -> None:
        """Nobody reads the mailbox any more; what the core still holds for the request is given back."""
        self._mailboxes.pop(request, None)
        if self.scheduler.knows(request):
            self.feed(RequestCancelled(request_id=request))

    def stop(self) -> None:
        """Fire no more timers."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _pass_on(self, command: Command) -> None:
        if isinstance(command, Forget | Resync | ChangeRole):
            self.on_worker(command)
            return
        request = command.decision.request.id if isinstance(command, Dispatch) else command.request_id
        mailbox = self._mailboxes.get(request)
        if mailbox is not None:
            mailbox.put_nowait(command)

    def _arm(self) -> None:
        """Fire when the core wants it, or earlier: a timer that is set is moved only to the front."""
        due_s = self.scheduler.next_timer()
        if due_s is None or self._closed:
            return
        if self._timer is not None:
            if self._armed_s <= due_s:
                return
            self._timer.cancel()
        self._armed_s = due_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - self.now()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.feed(TimerFired())
