"""Congestion prices, learned from what is asked of pools and links: what a second of theirs takes from others.

A pool that is asked for `load` of its time (1: all of it) makes each further second of work delay, on average,
`load / (1 - load)` seconds of others' (the waiting in an M/M/1 queue per second of service). That is the price, up to
`PRICE_MAX`: beyond it, a pool is simply full. Below `FREE_LOAD` time is free, so that an idle fleet is greedy on TTFT.

Rule 1: the load is what was promised, smoothed over `memory_s`; a price moves only when the load has moved by more than
`HYSTERESIS`, so that decisions do not chase their own echo.
Rule 2: workers of one site, model and role are one pool with one price: within it, queues tell them apart.
"""

from math import exp, inf
from typing import Final

from .tolls import Tolls
from .types import Decision, Site, Worker, WorkerId

FREE_LOAD: Final = 0.4
PRICE_MAX: Final = 16.0
HYSTERESIS: Final = 0.03
LinkId = tuple[Site, Site]


class _Load:
    """Seconds asked for, per second, smoothed exponentially."""

    __slots__ = ("asked_s", "capacity", "priced_at", "value")

    def __init__(self) -> None:
        self.asked_s = 0.0
        self.capacity = 0
        self.value = 0.0
        self.priced_at = 0.0

    def advance(self, lasted_s: float, memory_s: float) -> None:
        keep = exp(-lasted_s / memory_s)
        rate = self.asked_s / lasted_s / max(1, self.capacity)
        self.value = keep * self.value + (1 - keep) * rate
        self.asked_s = 0.0

    def has_moved(self) -> bool:
        if abs(self.value - self.priced_at) <= HYSTERESIS:
            return False
        self.priced_at = self.value
        return True


def price_of(load: float) -> float:
    """Seconds of others that one second takes at a load.

    >>> price_of(0.2), price_of(0.8) > price_of(0.6) > 0, price_of(1.5)
    (0.0, True, 16.0)
    """
    if load <= FREE_LOAD:
        return 0.0
    if load >= 1.0:
        return PRICE_MAX
    return min(PRICE_MAX, load / (1 - load) - FREE_LOAD / (1 - FREE_LOAD))


class Congestion:
    """Learns the loads of pools and links from decisions, and puts their prices into tolls."""

    def __init__(self, *, memory_s: float = 60.0, period_s: float = 1.0) -> None:
        self._memory_s = memory_s
        self._period_s = period_s
        self._pool_of: dict[WorkerId, tuple[str, Site, str]] = {}
        self._pools: dict[tuple[str, Site, str], _Load] = {}
        self._links: dict[LinkId, _Load] = {}
        self._updated_s: float | None = None

    def joined(self, worker: Worker) -> None:
        """A worker adds to the capacity of its pool."""
        self.left(worker.id)
        pool = (worker.model, worker.site, worker.role.value)
        self._pool_of[worker.id] = pool
        load = self._pools.setdefault(pool, _Load())
        load.capacity += 1
        load.priced_at = -inf  # Whoever is new has its pool's price from the next update on.

    def left(self, worker: WorkerId) -> None:
        """A worker is gone; unknown ones are no error."""
        pool = self._pool_of.pop(worker, None)
        if pool is not None:
            self._pools[pool].capacity -= 1

    def dispatched(self, decision: Decision, link_s: dict[LinkId, float]) -> None:
        """A decision asks for compute, and for so many seconds of the whole capacity of links."""
        plan = decision.plan
        self._ask(plan.prefill, plan.prefill_compute_s)
        if plan.decode_compute_s:
            self._ask(plan.decode, plan.decode_compute_s)
        for link, seconds in link_s.items():
            load = self._links.get(link)
            if load is None:
                load = self._links[link] = _Load()
                load.capacity = 1
            load.asked_s += seconds

    def update(self, tolls: Tolls | None, now: float) -> None:
        """Bring the loads up to date, at most once in `period_s`, and put new prices where they have moved."""
        if self._updated_s is None:
            self._updated_s = now
        lasted_s = now - self._updated_s
        if lasted_s < self._period_s:
            return
        self._updated_s = now
        for load in (*self._pools.values(), *self._links.values()):
            load.advance(lasted_s, self._memory_s)
        if tolls is not None:
            self._put_prices(tolls)

    def _put_prices(self, tolls: Tolls) -> None:
        moved = {pool for pool, load in self._pools.items() if load.has_moved()}
        for worker, pool in self._pool_of.items():
            if pool in moved:
                tolls.set_worker(worker, price_of(self._pools[pool].value))
        for (source, target), load in self._links.items():
            if load.has_moved():
                tolls.set_link(source, target, price_of(load.value))

    def loads(self) -> dict[str, float]:
        """How much is asked of each pool and link, by a readable name."""
        named = {f"{model} {site}/{role}": load.value for (model, site, role), load in self._pools.items()}
        return named | {f"{source} -> {target}": load.value for (source, target), load in self._links.items()}

    def _ask(self, worker: WorkerId, seconds: float) -> None:
        pool = self._pool_of.get(worker)
        if pool is not None:
            self._pools[pool].asked_s += seconds
