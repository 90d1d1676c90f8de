"""A little world on virtual time: real scheduler, real kernel, workers that take fixed times and sometimes die.

Run as a program it prints a digest of all commands of one run: two processes must print the same (I5).
"""

import sys
from collections import Counter
from itertools import accumulate

from xxhash import xxh3_64_hexdigest

from homing.router.core.commands import Abandon, Cancel, Dispatch, Reject
from homing.router.core.events import (
    BlocksStored,
    DispatchFailed,
    FirstToken,
    PrefillFinished,
    PrefillMeasured,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TimerFired,
    TransferFinished,
    WorkerJoined,
    WorkerLost,
)
from homing.router.core.limits import Limits
from homing.router.core.policies import make_policy
from homing.router.core.types import Outcome, PlanKind, Role
from homing.sim.kernel import Kernel
from homing.sim.rng import Streams

from .fleets import BLOCK, HERE, THERE, both_ways, chain, link, load, request, scheduler, worker

TOKEN_S = 0.0005
"""Twice as quick as the workers' prior says: there is something to learn."""
TRANSFER_S = 0.02
DECODE_S = 0.6
REPORT_EVERY_S = 0.5
CHECK_EVERY = 50
"""Checking everything takes a hundred times as long as a decision."""


class LittleFleet:
    """Arrivals, fixed service times, crashes; counts how every request ends, by itself."""

    def __init__(self, seed: int, policy: str = "homing", *, requests: int = 200, every_s: float = 0.025) -> None:
        streams = Streams(seed)
        self.kernel = Kernel()
        self.log: list[str] = []
        self.ends: Counter[str] = Counter()
        self.kinds: Counter[PlanKind] = Counter()
        self.on: dict[str, set[str]] = {}
        self.most_on: Counter[str] = Counter()
        self.free_s: dict[str, float] = {}
        self.workers = {w.id: w for w in self._make_workers()}
        self.scheduler = scheduler(
            links=both_ways(link(HERE, THERE, 0.02, 5e7)),
            policy=make_policy(policy),
            limits=Limits(queue_max=20, lost_after_s=3.0, lease_s=60.0),
            seed=seed,
        )
        self._attempts: dict[str, int] = {}
        self._timer = None
        self._sequence = self._told = 0
        for one in self.workers.values():
            self._join(one)
        self._schedule_arrivals(streams.stream("arrivals"), requests, every_s)
        self._schedule_crashes(streams.stream("crashes"), requests * every_s)

    @staticmethod
    def _make_workers():
        for site in (HERE, THERE):
            for number in range(3):
                yield worker(f"{site}-{number}", site, requests_max=4, kv_blocks_max=400)
            yield worker(f"{site}-d", site, Role.DECODE, requests_max=4, kv_blocks_max=400)

    def run(self) -> "LittleFleet":
        self.kernel.run_until(200.0)
        self.scheduler.check()
        return self

    def tell(self, event) -> None:
        """One fact to the scheduler, its commands carried out, its invariants checked."""
        now = self.kernel.now
        commands = self.scheduler.handle(event, now)
        self._told += 1
        if self._told % CHECK_EVERY == 0:
            self.scheduler.check()
        for command in commands:
            self.log.append(f"{now!r} {command!r}")
            self._carry_out(command)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_s = self.scheduler.next_timer()
        quiet = self.kernel.now > 30.0 and not self.scheduler.in_flight
        self._timer = None if due_s is None or quiet else self.kernel.at(max(due_s, self.kernel.now), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.tell(TimerFired())

    def _join(self, one) -> None:
        self.on[one.id] = set()
        self.free_s[one.id] = 0.0
        self.tell(WorkerJoined(worker=one))
        self._report(one.id, self.on[one.id])

    def _report(self, name, life) -> None:
        """As long as this life of the worker lasts."""
        if self.on.get(name) is life and self.kernel.now < 20.0:
            self._sequence += 1
            self.tell(load(name, self._sequence, running=len(life), at=self.kernel.now))
            self.kernel.after(REPORT_EVERY_S, lambda: self._report(name, life))

    def _schedule_arrivals(self, random, requests, every_s) -> None:
        times = accumulate(random.expovariate(1 / every_s) for _ in range(requests))
        for number, due_s in enumerate(times):
            keys = chain(
                (f"doc {random.randrange(6)}", random.randrange(4, 40)), (f"own {number}", random.randrange(8))
            )
            facts = {
                "tokens": len(keys) * BLOCK + random.randrange(1, BLOCK),
                "arrived_s": due_s,
                "priority": random.randrange(2),
                "ttft_deadline_s": due_s + random.uniform(0.5, 3.0) if random.random() < 0.5 else None,
                "origin": random.choice([None, THERE]),
            }
            one = request(f"r{number}", keys, **facts)
            self.kernel.at(due_s, lambda one=one: self.tell(RequestArrived(request=one)))
            if random.random() < 0.1:
                self.kernel.at(due_s + random.uniform(0, 1), lambda one=one: self._cancel(one.id))

    def _cancel(self, name) -> None:
        if name in self.scheduler.admission:
            self.ends["cancelled"] += 1
        self.tell(RequestCancelled(request_id=name))

    def _schedule_crashes(self, random, until_s) -> None:
        for _ in range(5):
            name = random.choice(sorted(self.workers))
            due_s = random.uniform(0, until_s)
            self.kernel.at(due_s, lambda name=name: self._crash(name))

    def _crash(self, name) -> None:
        if name in self.on:
            del self.on[name]
            self.tell(WorkerLost(worker_id=name, reason="crashed"))
            self.kernel.after(2.0, lambda: self._join(self.workers[name]))

    def _carry_out(self, command) -> None:
        match command:
            case Dispatch(decision=decision):
                self._start(decision)
            case Reject():
                self.ends["rejected"] += 1
            case Cancel(request_id=name):
                self.ends["cancelled"] += 1
                self._leave(name)
            case Abandon(request_id=name, worker_id=lost):
                self._leave(name)
                resumed = self.scheduler.in_flight[name].decision.request
                broken = DispatchFailed(request_id=name, worker_id=lost, reason="abandoned", resume_as=resumed)
                self.kernel.after(0.01, lambda: self.tell(broken))

    def _leave(self, name) -> None:
        self._attempts.pop(name, None)
        for running in self.on.values():
            running.discard(name)

    def _start(self, decision) -> None:
        """Fetch, queue, compute, hand over, decode: each step holds for this attempt alone."""
        name, plan, began_s = decision.request.id, decision.plan, self.kernel.now
        self._attempts[name] = decision.attempt
        self.kinds[plan.kind] += 1
        for one in plan.workers:
            self.on[one].add(name)
            self.most_on[one] = max(self.most_on[one], len(self.on[one]))
        for move in plan.moves:
            self._later(TRANSFER_S, decision, lambda move=move: self.tell(_moved(name, move)))
        seconds = 0.001 + TOKEN_S * plan.estimate.computed_tokens
        ready_s = max(self.free_s[plan.prefill], began_s + TRANSFER_S * bool(plan.moves)) + seconds
        self.free_s[plan.prefill] = ready_s
        self._later(ready_s - began_s, decision, lambda: self._prefilled(decision, seconds))
        answered_s = ready_s - began_s + (TRANSFER_S if plan.prefill != plan.decode else 0.0)
        self._later(answered_s, decision, lambda: self.tell(FirstToken(request_id=name, ttft_s=answered_s)))
        self._later(answered_s + DECODE_S, decision, lambda: self._finish(decision))

    def _later(self, delay_s, decision, step) -> None:
        def when_due() -> None:
            if self._attempts.get(decision.request.id) == decision.attempt:
                step()

        self.kernel.after(delay_s, when_due)

    def _prefilled(self, decision, seconds) -> None:
        plan, estimate = decision.plan, decision.plan.estimate
        end_tokens = estimate.hit_tokens + estimate.computed_tokens
        measured = {"cached_tokens": estimate.hit_tokens, "end_tokens": end_tokens, "seconds": seconds}
        self.tell(PrefillMeasured(worker_id=plan.prefill, **measured))
        if plan.prefill != plan.decode:
            self.tell(PrefillFinished(request_id=decision.request.id))

    def _finish(self, decision) -> None:
        name = decision.request.id
        self._leave(name)
        self.ends["finished"] += 1
        for one in decision.plan.workers:
            self.tell(BlocksStored(worker_id=one, keys=decision.request.block_keys))
        self.tell(RequestFinished(request_id=name, outcome=Outcome.FINISHED, output_tokens=5))


def _moved(name, move) -> TransferFinished:
    facts = {"bytes": move.bytes, "seconds": TRANSFER_S, "complete": True}
    return TransferFinished(request_id=name, source=move.source, target=move.target, **facts)


if __name__ == "__main__":
    world = LittleFleet(int(sys.argv[1]), sys.argv[2]).run()
    print(xxh3_64_hexdigest("\n".join(world.log).encode()), len(world.log))
