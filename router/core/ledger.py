"""What was promised and has not been seen to end: compute on workers, memory on workers, flows on links.

Rule 1: charged on choice, in the same step; otherwise a burst between two load reports all goes to one worker.
Rule 2: released once, on every path. Releasing what is not there is no error and changes nothing (I4).
Rule 3: empty when idle, never negative (I4); `check()` says so.
"""

from dataclasses import dataclass

from .types import RequestId, Site, WorkerId

LinkId = tuple[Site, Site]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One move of one request over one link."""

    source: WorkerId
    target: WorkerId
    link: LinkId
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Everything that one decision takes: seconds and tokens of compute, KV blocks, bytes on links."""

    compute: tuple[tuple[WorkerId, float, int], ...] = ()
    """(worker, seconds, tokens) of prefill."""
    memory: tuple[tuple[WorkerId, int], ...] = ()
    """(worker, KV blocks) until the request ends."""
    flows: tuple[Flow, ...] = ()


@dataclass(slots=True)
class _Job:
    seconds: float
    tokens: int


class _Queue:
    """The prefill work promised to one worker, in the order of promising; the first is believed to run."""

    __slots__ = ("head_since_s", "jobs", "seconds", "tokens")

    def __init__(self) -> None:
        self.jobs: dict[RequestId, _Job] = {}
        self.seconds = 0.0
        self.tokens = 0
        self.head_since_s = 0.0

    def add(self, request: RequestId, job: _Job, now: float) -> None:
        if not self.jobs:
            self.head_since_s = now
        self.jobs[request] = job
        self.seconds += job.seconds
        self.tokens += job.tokens

    def remove(self, request: RequestId, now: float) -> bool:
        job = self.jobs.get(request)
        if job is None:
            return False
        if next(iter(self.jobs)) == request:
            self.head_since_s = now
        del self.jobs[request]
        self.seconds = self.seconds - job.seconds if self.jobs else 0.0
        self.tokens -= job.tokens
        return True

    def free_at_s(self) -> float:
        """When all of it would be done if the head does not overrun."""
        return self.head_since_s + self.seconds if self.jobs else 0.0

    def wait_s(self, now: float) -> float:
        if not self.jobs:
            return 0.0
        head_s = next(iter(self.jobs.values())).seconds
        head_left_s = max(0.0, head_s - (now - self.head_since_s))
        return head_left_s + max(0.0, self.seconds - head_s)


class _LinkUse:
    """The flows on one link, and the integral of dt/flows since the start: a flow's share of time (processor
    sharing).
    """

    __slots__ = ("flows", "shared_s", "updated_s")

    def __init__(self, now: float) -> None:
        self.flows = 0
        self.shared_s = 0.0
        self.updated_s = now

    def advance(self, now: float) -> None:
        if self.flows:
            self.shared_s += max(0.0, now - self.updated_s) / self.flows
        self.updated_s = max(now, self.updated_s)


@dataclass(slots=True)
class _OpenFlow:
    flow: Flow
    began_s: float
    shared_at_start_s: float


class Ledger:
    """Reservations per request, and their sums per worker and link."""

    def __init__(self) -> None:
        self._queues: dict[WorkerId, _Queue] = {}
        self._blocks: dict[WorkerId, int] = {}
        self._running: dict[WorkerId, int] = {}
        self._links: dict[LinkId, _LinkUse] = {}
        self._memory: dict[RequestId, tuple[tuple[WorkerId, int], ...]] = {}
        self._flows: dict[RequestId, list[_OpenFlow]] = {}
        self._compute: dict[RequestId, set[WorkerId]] = {}

    def __len__(self) -> int:
        """How many requests hold anything."""
        return len(self._memory.keys() | self._flows.keys() | self._compute.keys())

    def charge(self, request: RequestId, charge: Charge, now: float) -> None:
        """Book a decision. A request that holds something already must be released first."""
        assert not self.holds(request), f"{request} is charged twice"
        for worker, seconds, tokens in charge.compute:
            self._queues.setdefault(worker, _Queue()).add(request, _Job(seconds, tokens), now)
        if charge.compute:
            self._compute[request] = {worker for worker, _, _ in charge.compute}
        for worker, blocks in charge.memory:
            self._blocks[worker] = self._blocks.get(worker, 0) + blocks
            self._running[worker] = self._running.get(worker, 0) + 1
        if charge.memory:
            self._memory[request] = charge.memory
        for flow in charge.flows:
            use = self._links.setdefault(flow.link, _LinkUse(now))
            use.advance(now)
            use.flows += 1
            self._flows.setdefault(request, []).append(_OpenFlow(flow, now, use.shared_s))

    def holds(self, request: RequestId) -> bool:
        """Whether anything is booked for this request."""
        return request in self._memory or request in self._flows or request in self._compute

    def release(self, request: RequestId, now: float) -> list[WorkerId]:
        """Give everything of a request back; returns the workers whose load changed."""
        touched = self.release_compute(request, now)
        for worker, blocks in self._memory.pop(request, ()):
            self._blocks[worker] -= blocks
            self._running[worker] -= 1
            if not self._running[worker]:
                del self._blocks[worker], self._running[worker]
            touched.append(worker)
        for opened in self._flows.pop(request, ()):
            self._end(opened, now)
        return touched

    def release_compute(self, request: RequestId, now: float, worker: WorkerId | None = None) -> list[WorkerId]:
        """Give the compute of a request back, on one worker or on all; its memory stays booked."""
        booked = self._compute.get(request)
        if booked is None:
            return []
        ended = sorted(booked) if worker is None else [worker] if worker in booked else []
        for name in ended:
            queue = self._queues[name]
            queue.remove(request, now)
            if not queue.jobs:
                del self._queues[name]
            booked.discard(name)
        if not booked:
            del self._compute[request]
        return ended

    def release_flow(self, request: RequestId, source: WorkerId, target: WorkerId, now: float) -> float | None:
        """End one move; returns how many flows shared its link on average, or None if it was not booked."""
        opened = self._flows.get(request, [])
        for position, candidate in enumerate(opened):
            if (candidate.flow.source, candidate.flow.target) == (source, target):
                del opened[position]
                if not opened:
                    del self._flows[request]
                return self._end(candidate, now)
        return None

    def queue_s(self, worker: WorkerId, now: float) -> float:
        """Seconds until the promised prefill work of a worker is done."""
        queue = self._queues.get(worker)
        return 0.0 if queue is None else queue.wait_s(now)

    def free_at_s(self, worker: WorkerId) -> float:
        """When a worker's promised work would be done; 0 when it has none. Grows only by new promises."""
        queue = self._queues.get(worker)
        return 0.0 if queue is None else queue.free_at_s()

    def queued_tokens(self, worker: WorkerId) -> int:
        """Prefill tokens promised to a worker."""
        queue = self._queues.get(worker)
        return 0 if queue is None else queue.tokens

    def queued_requests(self, worker: WorkerId) -> int:
        """Prefills promised to a worker."""
        queue = self._queues.get(worker)
        return 0 if queue is None else len(queue.jobs)

    def running(self, worker: WorkerId) -> int:
        """Requests that hold memory on a worker."""
        return self._running.get(worker, 0)

    def blocks(self, worker: WorkerId) -> int:
        """KV blocks promised on a worker."""
        return self._blocks.get(worker, 0)

    def flows(self, link: LinkId) -> int:
        """Moves in flight on a link."""
        use = self._links.get(link)
        return 0 if use is None else use.flows

    def check(self) -> None:
        """Assert I4: sums equal their parts, none is negative, and an empty ledger has empty sums."""
        blocks: dict[WorkerId, int] = {}
        running: dict[WorkerId, int] = {}
        for memory in self._memory.values():
            for worker, count in memory:
                blocks[worker] = blocks.get(worker, 0) + count
                running[worker] = running.get(worker, 0) + 1
        assert blocks == self._blocks, "blocks"
        assert running == self._running, "running requests"
        flows: dict[LinkId, int] = {}
        for opened in self._flows.values():
            for one in opened:
                flows[one.flow.link] = flows.get(one.flow.link, 0) + 1
        assert flows == {link: use.flows for link, use in self._links.items() if use.flows}, "flows"
        for worker, queue in self._queues.items():
            assert queue.jobs, f"{worker} has an empty queue"
            assert queue.tokens == sum(job.tokens for job in queue.jobs.values())
            assert abs(queue.seconds - sum(job.seconds for job in queue.jobs.values())) < 1e-6
            assert all(worker in self._compute[request] for request in queue.jobs)
        assert sum(len(q.jobs) for q in self._queues.values()) == sum(map(len, self._compute.values()))

    def _end(self, opened: _OpenFlow, now: float) -> float:
        use = self._links[opened.flow.link]
        use.advance(now)
        use.flows -= 1
        assert use.flows >= 0, f"link {opened.flow.link} has fewer flows than none"
        share_s = use.shared_s - opened.shared_at_start_s
        lasted_s = now - opened.began_s
        return lasted_s / share_s if share_s > 0 and lasted_s > 0 else 1.0
