"""Every worker: what it said last, what it was promised since, and how they rank within their site.

A worker's load is what the ledger promised it, and beside it what the worker reported beyond that when it reported:
work that others sent there. A report is older than the latest promises and endings, so by itself it is never believed.

Rule 1: bit numbers are handed out here; the index and the masks speak in them.
Rule 2: ranks are kept up to date with every change, so that a decision looks only at the head of each rank.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from .ledger import Account, Charge, Ledger
from .rates import LearnedScale, PrefillRate
from .types import HOMING_TRANSPORT, LoadReport, ModelName, PlanKind, RequestId, Role, Site, Trust, Worker, WorkerId

DECODE_STEP_PRIOR_S = 0.05

_Rank = tuple[float, int, int]


@dataclass(slots=True, eq=False)
class WorkerState:
    """One worker as the router sees it; `bit` is its position in masks and its number in the index."""

    worker: Worker
    bit: int
    mask: int
    """The worker as a bit set of one."""
    rate: PrefillRate
    account: Account
    """What it was promised."""
    last_seen_s: float
    decode_step_s: LearnedScale = field(default_factory=lambda: LearnedScale(DECODE_STEP_PRIOR_S))
    report: LoadReport | None = None
    draining: bool = False
    trust: Trust = Trust.EXACT
    foreign_tokens: int = 0
    foreign_requests: int = 0
    foreign_blocks: int = 0
    prefill_rank: "tuple[SortedList[_Rank], _Rank] | None" = None
    """Which rank it stands in, and where."""
    decode_rank: _Rank | None = None


class Pool:
    """The workers of one model in one site, ranked: who could begin a prompt soonest, who decodes least.

    A worker with as many requests as it takes is in no rank: the heads of ranks can take something.
    """

    __slots__ = ("busy", "by_bit", "decoders", "idle", "mask", "roles", "site")

    def __init__(self, site: Site) -> None:
        self.site = site
        self.mask = 0
        self.by_bit: dict[int, WorkerState] = {}
        self.roles: Counter[Role] = Counter()
        self.idle: SortedList[_Rank] = SortedList()
        self.busy: SortedList[_Rank] = SortedList()
        self.decoders: SortedList[_Rank] = SortedList()

    @property
    def does_both(self) -> bool:
        """Whether every worker here prefills and decodes."""
        return self.roles[Role.BOTH] == len(self.by_bit)

    def prefillers(self) -> Iterator[WorkerState]:
        """Idle workers by speed, then busy ones by when they would be done with a reference prompt."""
        for *_, bit in self.idle:
            yield self.by_bit[bit]
        for *_, bit in self.busy:
            yield self.by_bit[bit]

    def least_decoding(self) -> Iterator[WorkerState]:
        """Workers that decode, those with the fewest requests first."""
        for *_, bit in self.decoders:
            yield self.by_bit[bit]


class Fleet:
    """All workers, with the ledger of what they were promised."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._states: dict[WorkerId, WorkerState] = {}
        self._by_bit: dict[int, WorkerState] = {}
        self._pools: dict[ModelName, dict[Site, Pool]] = {}
        self._free_bits: list[int] = []
        self._limited: set[WorkerId] = set()
        self._movers: set[WorkerId] = set()
        self._largest: dict[ModelName, int] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(self._states.values())

    def get(self, worker: WorkerId) -> WorkerState | None:
        """The state of a worker, if it is here."""
        return self._states.get(worker)

    def pools(self, model: ModelName) -> dict[Site, Pool]:
        """The pools that serve a model, by site."""
        return self._pools.get(model, {})

    def serves(self, model: ModelName, among: frozenset[WorkerId]) -> bool:
        """Whether any of these workers serves a model and takes new requests."""
        states = (self._states.get(name) for name in among)
        return any(state is not None and state.worker.model == model and not state.draining for state in states)

    def mask_outside(self, among: frozenset[WorkerId] | None) -> int:
        """All workers but these, as a bit set; none when there is no such limit."""
        if among is None:
            return 0
        return sum(state.mask for name, state in self._states.items() if name not in among)

    def models(self) -> list[ModelName]:
        """Models that some worker serves."""
        return sorted(model for model, pools in self._pools.items() if any(p.by_bit for p in pools.values()))

    def largest_kv_blocks(self, model: ModelName) -> int | None:
        """The KV blocks that a request may need at most: those of the largest worker that computes or of the largest
        that decodes, whichever is smaller, since it needs room on both. None when no worker serves the model.
        """
        return self._largest.get(model)

    def join(self, worker: Worker, now: float) -> WorkerState:
        """Add a worker; one that is here already must be lost first."""
        assert worker.id not in self._states, f"{worker.id} joined twice"
        bit = self._free_bits.pop() if self._free_bits else len(self._by_bit)
        state = WorkerState(
            worker=worker,
            bit=bit,
            mask=1 << bit,
            rate=PrefillRate(worker.prior),
            account=self.ledger.keep(worker.id),
            last_seen_s=now,
        )
        self._states[worker.id] = self._by_bit[bit] = state
        pool = self._pools.setdefault(worker.model, {}).setdefault(worker.site, Pool(worker.site))
        pool.by_bit[bit] = state
        pool.mask |= state.mask
        pool.roles[worker.role] += 1
        self._insert(pool, state)
        self._measure_largest(worker.model)
        self._note_limits(state)
        return state

    def lose(self, worker: WorkerId) -> WorkerState | None:
        """Remove a worker; unknown ones are ignored. What it was promised stays booked until each request ends."""
        state = self._states.pop(worker, None)
        if state is None:
            return None
        pool = self._pools[state.worker.model][state.worker.site]
        self._discard(pool, state)
        del pool.by_bit[state.bit], self._by_bit[state.bit]
        pool.mask &= ~state.mask
        pool.roles[state.worker.role] -= 1
        self._free_bits.append(state.bit)
        self.ledger.let_go(worker)
        self._limited.discard(worker)
        self._movers.discard(worker)
        self._measure_largest(state.worker.model)
        return state

    def drain(self, worker: WorkerId) -> None:
        """Give a worker nothing new."""
        state = self._states.get(worker)
        if state is not None:
            self._discard(self._pool(state), state)
            state.draining = True

    @property
    def is_limited(self) -> bool:
        """Whether any worker cannot carry out every plan with every other, or cannot be believed in full."""
        return bool(self._limited)

    @property
    def moves_kv(self) -> bool:
        """Whether there is any worker whose KV can move."""
        return bool(self._movers)

    def trust(self, worker: WorkerId, trust: Trust) -> None:
        """Believe a worker's cache as far as this."""
        state = self._states.get(worker)
        if state is not None:
            state.trust = trust
            self._note_limits(state)

    def report(self, report: LoadReport, now: float) -> bool:
        """Take a load report in; one that is not newer than the last is ignored. Returns whether room appeared."""
        state = self._states.get(report.worker)
        if state is None:
            return False
        state.last_seen_s = max(state.last_seen_s, now)
        if state.report is not None and report.sequence <= state.report.sequence:
            return False
        before = state.foreign_tokens, state.foreign_requests, state.foreign_blocks
        state.report = report
        account = state.account
        state.foreign_tokens = max(0, report.queued_prefill_tokens - account.queued_tokens)
        state.foreign_requests = max(0, report.running_requests - account.running)
        state.foreign_blocks = max(0, report.kv_blocks_used - account.blocks)
        if before[0] or state.foreign_tokens or before[1] != state.foreign_requests:
            self.rerank(report.worker)
        fewer = state.foreign_requests < before[1] or state.foreign_blocks < before[2]
        return fewer and self.has_room(state, 1)

    def charge(self, request: RequestId, charge: Charge, now: float) -> None:
        """Book a decision and re-rank the workers that it touches."""
        self.ledger.charge(request, charge, now)
        touched = [worker for worker, _ in charge.memory]
        touched += [worker for worker, _, _ in charge.compute if worker not in touched]
        for worker in touched:
            self.rerank(worker)

    def release(self, request: RequestId, now: float) -> None:
        """Give back everything of a request; harmless when there is nothing."""
        for worker in self.ledger.release(request, now):
            self.rerank(worker)

    def release_compute(self, request: RequestId, now: float, worker: WorkerId | None = None) -> None:
        """Give back the compute of a request, on one worker or on all."""
        for name in self.ledger.release_compute(request, now, worker):
            self.rerank(name)

    def queue_s(self, state: WorkerState, now: float) -> float:
        """Seconds until a worker could begin another prompt."""
        promised_s = state.account.wait_s(now)
        if not state.foreign_tokens:
            return promised_s
        return promised_s + state.rate.prefill_s(0, state.foreign_tokens)

    def running(self, state: WorkerState) -> int:
        """Requests on a worker, ours and those of others."""
        return state.account.running + state.foreign_requests

    def has_room(self, state: WorkerState, blocks: int) -> bool:
        """Whether a worker can take one more request of so many KV blocks."""
        account, worker = state.account, state.worker
        if state.draining or account.running + state.foreign_requests >= worker.requests_max:
            return False
        return account.blocks + state.foreign_blocks + blocks <= worker.kv_blocks_max

    def can_answer(self, model: ModelName, blocks: int) -> bool:
        """Whether any worker that decodes has room: without one there is no plan, and no need to look for it."""
        for pool in self.pools(model).values():
            for *_, bit in pool.decoders:
                if self.has_room(pool.by_bit[bit], blocks):
                    return True
        return False

    def rerank(self, worker: WorkerId) -> None:
        """Put a worker where its load and speed belong within its pool."""
        state = self._states.get(worker)
        if state is not None and not state.draining:
            self._insert(self._pool(state), state)

    def check(self) -> None:
        """Assert that ranks, masks and maps agree."""
        self.ledger.check()
        assert set(self._by_bit) == {state.bit for state in self._states.values()}
        for model, pools in self._pools.items():
            for site, pool in pools.items():
                assert pool.mask == sum(1 << bit for bit in pool.by_bit)
                assert +pool.roles == Counter(state.worker.role for state in pool.by_bit.values())
                members = [state for state in pool.by_bit.values() if not state.draining and not self._is_full(state)]
                assert all(s.worker.model == model and s.worker.site == site for s in members)
                ranked = [*pool.idle, *pool.busy]
                prefilling = [s.prefill_rank for s in members if s.worker.role.can_prefill]
                assert sorted(ranked) == sorted(rank[1] for rank in prefilling if rank is not None)
                decoding = [s.decode_rank for s in members if s.worker.role.can_decode]
                assert list(pool.decoders) == sorted(rank for rank in decoding if rank is not None)
                assert None not in prefilling and None not in decoding

    def _note_limits(self, state: WorkerState) -> None:
        worker = state.worker
        if worker.transport and worker.plans:
            self._movers.add(worker.id)
        able = worker.transport == HOMING_TRANSPORT and len(worker.plans) == len(PlanKind)
        if able and state.trust is Trust.EXACT:
            self._limited.discard(worker.id)
        else:
            self._limited.add(worker.id)

    def _measure_largest(self, model: ModelName) -> None:
        workers = [state.worker for pool in self.pools(model).values() for state in pool.by_bit.values()]
        sizes = [w.kv_blocks_max for w in workers if w.role.can_decode]
        prefill = [w.kv_blocks_max for w in workers if w.role.can_prefill]
        if workers:
            self._largest[model] = min(max(group) for group in (sizes, prefill) if group)
        else:
            self._largest.pop(model, None)

    def _pool(self, state: WorkerState) -> Pool:
        return self._pools[state.worker.model][state.worker.site]

    def _is_full(self, state: WorkerState) -> bool:
        return state.account.running + state.foreign_requests >= state.worker.requests_max

    def _is_busy(self, state: WorkerState) -> bool:
        return state.foreign_tokens > 0 or bool(state.account.jobs)

    def _free_at_s(self, state: WorkerState) -> float:
        free_at_s = state.account.free_at_s()
        if not state.foreign_tokens or state.report is None:
            return free_at_s
        return max(free_at_s, state.report.measured_s) + state.rate.prefill_s(0, state.foreign_tokens)

    def _insert(self, pool: Pool, state: WorkerState) -> None:
        full = self._is_full(state)
        if state.worker.role.can_prefill:
            self._rerank_prefill(pool, state, full=full)
        if state.worker.role.can_decode:
            self._rerank_decode(pool, state, full=full)

    def _rerank_prefill(self, pool: Pool, state: WorkerState, *, full: bool) -> None:
        """The ranks change only where the worker's place in them does: most events touch one of the two."""
        rank = None
        if not full:
            busy = self._is_busy(state)
            begin_s = self._free_at_s(state) if busy else 0.0
            running = state.account.running + state.foreign_requests
            rank = (pool.busy if busy else pool.idle, (begin_s + state.rate.reference_s, running, state.bit))
        before = state.prefill_rank
        if rank is not None and before is not None and rank[0] is before[0] and rank[1] == before[1]:
            return
        if before is not None:
            before[0].remove(before[1])
        if rank is not None:
            rank[0].add(rank[1])
        state.prefill_rank = rank

    def _rerank_decode(self, pool: Pool, state: WorkerState, *, full: bool) -> None:
        rank = None if full else (float(state.account.running + state.foreign_requests), 0, state.bit)
        if rank != state.decode_rank:
            if state.decode_rank is not None:
                pool.decoders.remove(state.decode_rank)
            if rank is not None:
                pool.decoders.add(rank)
            state.decode_rank = rank

    def _discard(self, pool: Pool, state: WorkerState) -> None:
        if state.prefill_rank is not None:
            state.prefill_rank[0].remove(state.prefill_rank[1])
        if state.decode_rank is not None:
            pool.decoders.remove(state.decode_rank)
        state.prefill_rank = state.decode_rank = None
