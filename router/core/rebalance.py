"""Which worker should change its role, when prefill starves while decode idles, or the other way round.

Rule 1: within one site and model only: a worker stays where its weights and its network are.
Rule 2: an imbalance must last, a change must settle, and the last worker of a role keeps it: roles do not swing.
Rule 3: nothing is changed here. A wish is told once; what came of it is seen from who joins.
"""

from dataclasses import dataclass, field
from typing import Final

from .types import LoadReport, Role, Worker, WorkerId

STARVED: Final = 0.9
"""A pool that is asked for this much of what it can do is short of workers."""
IDLE: Final = 0.6
"""One that is asked for no more than this can spare one."""
LASTS_S: Final = 30.0
SETTLES_S: Final = 120.0

Pool = tuple[str, str]
"""(model, site)."""


@dataclass(slots=True)
class _Watch:
    """How long one pool has been out of balance, in which direction."""

    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    running: dict[WorkerId, int] = field(default_factory=dict)
    short_of: Role | None = None
    since_s: float = 0.0
    changed_s: float = float("-inf")

    def of(self, role: Role) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.role is role]


class RoleBalance:
    """Watches prefill and decode workers that stand in one site."""

    def __init__(self) -> None:
        self._pools: dict[Pool, _Watch] = {}
        self._pool_of: dict[WorkerId, Pool] = {}

    def joined(self, worker: Worker) -> None:
        """A worker is there, perhaps with another role than before."""
        self.left(worker.id)
        pool = (worker.model, worker.site)
        self._pool_of[worker.id] = pool
        self._pools.setdefault(pool, _Watch()).workers[worker.id] = worker

    def left(self, worker: WorkerId) -> None:
        """A worker is gone; unknown ones are no error."""
        pool = self._pool_of.pop(worker, None)
        if pool is not None:
            self._pools[pool].workers.pop(worker, None)
            self._pools[pool].running.pop(worker, None)

    def reported(self, report: LoadReport) -> None:
        """How many requests a worker has."""
        pool = self._pool_of.get(report.worker)
        if pool is not None:
            self._pools[pool].running[report.worker] = report.running_requests

    def wishes(self, loads: dict[str, float], now: float) -> list[tuple[WorkerId, Role, str]]:
        """Which worker should take which role, and why. `loads` are the pools', by `model site/role`."""
        found = []
        for (model, site), watch in self._pools.items():
            wish = self._wish(watch, f"{model} {site}", loads, now)
            if wish is not None:
                found.append(wish)
        return found

    def _wish(self, watch: _Watch, pool: str, loads: dict[str, float], now: float) -> tuple[WorkerId, Role, str] | None:
        prefill, decode = watch.of(Role.PREFILL), watch.of(Role.DECODE)
        if not prefill or not decode or now - watch.changed_s < SETTLES_S:
            watch.short_of = None
            return None
        prefill_load = loads.get(f"{pool}/{Role.PREFILL.value}", 0.0)
        decode_load = sum(watch.running.get(w.id, 0) / w.requests_max for w in decode) / len(decode)
        short_of = None
        if prefill_load > STARVED and decode_load < IDLE and len(decode) > 1:
            short_of = Role.PREFILL
        elif decode_load > STARVED and prefill_load < IDLE and len(prefill) > 1:
            short_of = Role.DECODE
        if short_of is not watch.short_of:
            watch.short_of, watch.since_s = short_of, now
        if short_of is None or now - watch.since_s < LASTS_S:
            return None
        watch.short_of, watch.changed_s = None, now
        spare = min(decode if short_of is Role.PREFILL else prefill, key=lambda w: (watch.running.get(w.id, 0), w.id))
        why = f"prefill is asked for {prefill_load:.0%} of its time, decode has {decode_load:.0%} of its requests"
        return spare.id, short_of, why
