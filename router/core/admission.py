"""Who waits when nobody can take a request, and who is served first.

Rule 1: the queue is bounded; one more is told no at once, with a time to come back, instead of waiting in vain.
Rule 2: higher priority first, then the earlier deadline, then who came first.
Rule 3: a request whose deadline has passed is told no, not served late.
"""

from collections.abc import Iterator

from sortedcontainers import SortedList

from .types import Request, RequestId

_Order = tuple[int, float, float, RequestId]
_NEVER_S = float("inf")


class Admission:
    """Requests that wait for room. All operations are O(log n) in the number that wait."""

    def __init__(self, queue_max: int) -> None:
        self._max = queue_max
        self._order: SortedList[_Order] = SortedList()
        self._deadlines: SortedList[tuple[float, RequestId]] = SortedList()
        self._waiting: dict[RequestId, Request] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._waiting

    def __iter__(self) -> Iterator[Request]:
        """Those who wait, in the order in which they are to be served."""
        return (self._waiting[key[-1]] for key in list(self._order))

    def is_full(self) -> bool:
        """Whether one more would be told no."""
        return len(self._waiting) >= self._max

    def add(self, request: Request) -> None:
        """Let a request wait; the caller has asked `is_full` before."""
        assert not self.is_full() and request.id not in self._waiting, request.id
        self._waiting[request.id] = request
        self._order.add(_order(request))
        if request.ttft_deadline_s is not None:
            self._deadlines.add((request.ttft_deadline_s, request.id))

    def remove(self, request: RequestId) -> Request | None:
        """Take a request out, because it is served or its sender is gone; None if it does not wait."""
        found = self._waiting.pop(request, None)
        if found is not None:
            self._order.remove(_order(found))
            if found.ttft_deadline_s is not None:
                self._deadlines.remove((found.ttft_deadline_s, found.id))
        return found

    def expired(self, now: float) -> list[Request]:
        """Take out everything whose deadline has passed."""
        late: list[Request] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            late.append(self._waiting[self._deadlines[0][1]])
            self.remove(late[-1].id)
        return late

    def next_deadline_s(self) -> float | None:
        """When the next request that waits will be too late."""
        return self._deadlines[0][0] if self._deadlines else None

    def check(self) -> None:
        """Assert that the orders and the map hold the same requests, within the bound."""
        assert len(self._waiting) <= self._max
        assert [key[-1] for key in self._order] == [r.id for r in sorted(self._waiting.values(), key=_order)]
        with_deadline = [r for r in self._waiting.values() if r.ttft_deadline_s is not None]
        assert sorted(r.id for r in with_deadline) == sorted(request for _, request in self._deadlines)


def _order(request: Request) -> _Order:
    deadline_s = _NEVER_S if request.ttft_deadline_s is None else request.ttft_deadline_s
    return (-request.priority, deadline_s, request.arrived_s, request.id)
