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


class Account:
    """What one worker was promised: prefill work in the order of promising, of which the first is believed to run,
    and the requests that hold memory.
    """

    __slots__ = ("blocks", "head_since_s", "jobs", "queued_s", "queued_tokens", "running")

    def __init__(self) -> None:
        self.jobs: dict[RequestId, tuple[float, int]] = {}
        """Seconds and tokens of each prefill."""
        self.queued_s = 0.0
        self.queued_tokens = 0
        self.head_since_s = 0.0
        self.blocks = 0
        self.running = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is promised."""
        return not self.jobs and not self.running

    def free_at_s(self) -> float:
        """When all of it would be done if the head does not overrun; 0 without work. Grows only by new promises."""
        return self.head_since_s + self.queued_s if self.jobs else 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until the promised work is done; a head that overruns is about to end."""
        if not self.jobs:
            return 0.0
        head_s = next(iter(self.jobs.values()))[0]
        head_left_s = head_s - (now - self.head_since_s)
        behind_s = self.queued_s - head_s
        return (max(0.0, head_left_s)) + (max(0.0, behind_s))

    def add(self, request: RequestId, seconds: float, tokens: int, now: float) -> None:
        """Promise a prefill."""
        if not self.jobs:
            self.head_since_s = now
        self.jobs[request] = (seconds, tokens)
        self.queued_s += seconds
        self.queued_tokens += tokens

    def remove(self, request: RequestId, now: float) -> None:
        """A promised prefill ended."""
        if next(iter(self.jobs)) == request:
            self.head_since_s = now
        seconds, tokens = self.jobs.pop(request)
        self.queued_s = self.queued_s - seconds if self.jobs else 0.0
        self.queued_tokens -= tokens


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


_NOTHING = Account()


class Ledger:
    """Reservations per request, and their sums per worker and link."""

    def __init__(self) -> None:
        self._accounts: dict[WorkerId, Account] = {}
        self._kept: set[WorkerId] = set()
        self._links: dict[LinkId, _LinkUse] = {}
        self._memory: dict[RequestId, tuple[tuple[WorkerId, int], ...]] = {}
        self._flows: dict[RequestId, list[_OpenFlow]] = {}
        self._compute: dict[RequestId, list[WorkerId]] = {}

    def __len__(self) -> int:
        """How many requests hold anything."""
        return len(self._memory.keys() | self._flows.keys() | self._compute.keys())

    def keep(self, worker: WorkerId) -> Account:
        """The account of a worker that is here: the same object as long as it is, whatever is booked on it."""
        self._kept.add(worker)
        return self._account(worker)

    def let_go(self, worker: WorkerId) -> None:
        """The worker is gone; its account goes when the last promise ends."""
        self._kept.discard(worker)
        self._tidy(worker)

    def charge(self, request: RequestId, charge: Charge, now: float) -> None:
        """Book a decision. A request that holds something already must be released first."""
        assert not self.holds(request), f"{request} is charged twice"
        for worker, seconds, tokens in charge.compute:
            self._account(worker).add(request, seconds, tokens, now)
        if charge.compute:
            self._compute[request] = [worker for worker, _, _ in charge.compute]
        for worker, blocks in charge.memory:
            account = self._account(worker)
            account.blocks += blocks
            account.running += 1
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
        """Give everything of a request back; returns the workers whose load changed, each once."""
        touched = self.release_compute(request, now)
        for worker, blocks in self._memory.pop(request, ()):
            account = self._accounts[worker]
            account.blocks -= blocks
            account.running -= 1
            self._tidy(worker)
            if worker not in touched:
                touched.append(worker)
        for opened in self._flows.pop(request, ()):
            self._end(opened, now)
        return touched

    def release_compute(self, request: RequestId, now: float, worker: WorkerId | None = None) -> list[WorkerId]:
        """Give the compute of a request back, on one worker or on all; its memory stays booked."""
        booked = self._compute.get(request)
        if booked is None:
            return []
        ended = booked if worker is None else [worker] if worker in booked else []
        for name in ended:
            self._accounts[name].remove(request, now)
            self._tidy(name)
        left = [name for name in booked if name not in ended]
        if left:
            self._compute[request] = left
        else:
            del self._compute[request]
        return ended

    def flow_age_s(self, request: RequestId, source: WorkerId, target: WorkerId, now: float) -> float | None:
        """How long ago a move was booked; None if it was not."""
        for opened in self._flows.get(request, []):
            if (opened.flow.source, opened.flow.target) == (source, target):
                return max(0.0, now - opened.began_s)
        return None

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
        return self._accounts.get(worker, _NOTHING).wait_s(now)

    def free_at_s(self, worker: WorkerId) -> float:
        """When a worker's promised work would be done; 0 when it has none. Grows only by new promises."""
        return self._accounts.get(worker, _NOTHING).free_at_s()

    def queued_tokens(self, worker: WorkerId) -> int:
        """Prefill tokens promised to a worker."""
        return self._accounts.get(worker, _NOTHING).queued_tokens

    def queued_requests(self, worker: WorkerId) -> int:
        """Prefills promised to a worker."""
        return len(self._accounts.get(worker, _NOTHING).jobs)

    def running(self, worker: WorkerId) -> int:
        """Requests that hold memory on a worker."""
        return self._accounts.get(worker, _NOTHING).running

    def blocks(self, worker: WorkerId) -> int:
        """KV blocks promised on a worker."""
        return self._accounts.get(worker, _NOTHING).blocks

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
        assert blocks == {w: a.blocks for w, a in self._accounts.items() if a.running}, "blocks"
        assert running == {w: a.running for w, a in self._accounts.items() if a.running}, "running requests"
        flows: dict[LinkId, int] = {}
        for opened in self._flows.values():
            for one in opened:
                flows[one.flow.link] = flows.get(one.flow.link, 0) + 1
        assert flows == {link: use.flows for link, use in self._links.items() if use.flows}, "flows"
        for worker, account in self._accounts.items():
            assert worker in self._kept or not account.is_empty, f"{worker} is gone and has an empty account"
            assert account.queued_tokens == sum(tokens for _, tokens in account.jobs.values())
            assert abs(account.queued_s - sum(seconds for seconds, _ in account.jobs.values())) < 1e-6
            assert all(worker in self._compute[request] for request in account.jobs)
        assert sum(len(a.jobs) for a in self._accounts.values()) == sum(map(len, self._compute.values()))

    def _account(self, worker: WorkerId) -> Account:
        account = self._accounts.get(worker)
        if account is None:
            account = self._accounts[worker] = Account()
        return account

    def _tidy(self, worker: WorkerId) -> None:
        if worker not in self._kept and self._accounts[worker].is_empty:
            del self._accounts[worker]

    def _end(self, opened: _OpenFlow, now: float) -> float:
        use = self._links[opened.flow.link]
        use.advance(now)
        use.flows -= 1
        assert use.flows >= 0, f"link {opened.flow.link} has fewer flows than none"
        share_s = use.shared_s - opened.shared_at_start_s
        lasted_s = now - opened.began_s
        return lasted_s / share_s if share_s > 0 and lasted_s > 0 else 1.0
