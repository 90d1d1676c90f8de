"""What a policy that remembers reads out of events and commands: who was sent, what ended, who is gone.

A request is followed from its `Dispatch` to its end, and every end is one of these, so that what is remembered of a
request is released once: finished, cancelled by its sender, failed (it may be dispatched anew), given up by its lease.
"""

from collections.abc import Iterator, Sequence

from ..commands import Cancel, Command, Dispatch, Forget
from ..events import DispatchFailed, Event, RequestCancelled, RequestFinished, WorkerLost
from ..types import Decision, RequestId, WorkerId


def ended(event: Event, commands: Sequence[Command]) -> Iterator[RequestId]:
    """Requests whose dispatch is over, as the event and then the commands tell; some were never dispatched."""
    if isinstance(event, RequestFinished | RequestCancelled | DispatchFailed):
        yield event.request_id
    for command in commands:
        if isinstance(command, Cancel):
            yield command.request_id


def sent(commands: Sequence[Command]) -> Iterator[Decision]:
    """Decisions that are being carried out from now on."""
    for command in commands:
        if isinstance(command, Dispatch):
            yield command.decision


def gone(event: Event, commands: Sequence[Command]) -> Iterator[WorkerId]:
    """Workers that are here no more."""
    if isinstance(event, WorkerLost):
        yield event.worker_id
    for command in commands:
        if isinstance(command, Forget):
            yield command.worker_id
