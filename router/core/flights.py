"""Requests that were dispatched and have not ended: what was decided for each, on which workers, and until when that is
believed.

Rule: all leases are equally long, so who was dispatched first has the first lease.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .types import Decision, RequestId, WorkerId


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that was dispatched and has not ended."""

    decision: Decision
    lease_until_s: float


class Flights:
    """In the order of their dispatch. Runtime complexity: all methods O(1), but for `of_worker`."""

    def __init__(self) -> None:
        self._flights: dict[RequestId, InFlight] = {}
        self._of_worker: dict[WorkerId, set[RequestId]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, request: object) -> bool:
        return request in self._flights

    def __iter__(self) -> Iterator[RequestId]:
        return iter(self._flights)

    def __getitem__(self, request: RequestId) -> InFlight:
        return self._flights[request]

    def get(self, request: RequestId) -> InFlight | None:
        """What was decided for a request; None if it is not out."""
        return self._flights.get(request)

    def add(self, decision: Decision, lease_until_s: float) -> None:
        """A request goes out."""
        request = decision.request.id
        self._flights[request] = InFlight(decision, lease_until_s)
        for worker in decision.plan.workers:
            self._of_worker.setdefault(worker, set()).add(request)

    def remove(self, request: RequestId) -> InFlight | None:
        """It ended; None if it was not out."""
        flight = self._flights.pop(request, None)
        if flight is None:
            return None
        for worker in flight.decision.plan.workers:
            self._of_worker[worker].discard(request)
            if not self._of_worker[worker]:
                del self._of_worker[worker]
        return flight

    def of_worker(self, worker: WorkerId) -> list[RequestId]:
        """The requests that a worker has a part in, sorted."""
        return sorted(self._of_worker.get(worker, ()))

    def first_lease_s(self) -> float | None:
        """When the first lease ends; None when nothing is out."""
        return next(iter(self._flights.values())).lease_until_s if self._flights else None

    def overdue(self, now: float) -> list[RequestId]:
        """Requests whose lease is over."""
        found = []
        for request, flight in self._flights.items():
            if flight.lease_until_s > now:
                break
            found.append(request)
        return found

    def check(self) -> None:
        """Assert that the order is that of the leases, and that both maps tell the same."""
        leases = [flight.lease_until_s for flight in self._flights.values()]
        assert leases == sorted(leases), "who was dispatched first has the first lease"
        assert {r for out in self._of_worker.values() for r in out} == set(self._flights)
