"""Recent decisions, for whoever asks why."""

from collections import OrderedDict

from homing.router.core.commands import Command, Dispatch
from homing.router.core.events import Event
from homing.router.core.types import Decision, RequestId


class DecisionJournal:
    """The decisions of the last `kept_max` requests, all attempts of each. An observer of the driver."""

    def __init__(self, kept_max: int) -> None:
        self._kept_max = kept_max
        self._decisions: OrderedDict[RequestId, list[tuple[Decision, float]]] = OrderedDict()

    def __call__(self, event: Event, commands: list[Command], now: float, took_s: float) -> None:
        """Keep what was dispatched."""
        for command in commands:
            if isinstance(command, Dispatch):
                request = command.decision.request.id
                if command.decision.attempt == 1:
                    # An id may be used again once its request has ended: what it was before is forgotten.
                    self._decisions.pop(request, None)
                self._decisions.setdefault(request, []).append((command.decision, took_s))
                self._decisions.move_to_end(request)
        while len(self._decisions) > self._kept_max:
            self._decisions.popitem(last=False)

    def decisions(self, request: RequestId) -> list[tuple[Decision, float]]:
        """The decisions for a request, oldest first, each with the seconds that it took; empty if it is not known."""
        return self._decisions.get(request, [])
