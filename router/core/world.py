"""What the router believes of the world: who is there, who holds what, how fast everything is.

Rule 1: facts go in as events, and every belief can be asked for; nothing here decides anything about a request.
Rule 2: a measurement of something that is gone teaches nothing and is no error.
"""

from collections.abc import Iterable

from .errors import EventError
from .events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    DecodeMeasured,
    LinkMeasured,
    PrefillMeasured,
    TransferFinished,
)
from .fleet import Fleet
from .ledger import Charge, Flow
from .prefix_index import PrefixIndex
from .price import Pricer
from .question import Question
from .rates import LearnedScale
from .tolls import Tolls
from .topology import Topology
from .types import Decision, ModelName, ModelProfile, Plan, PlanKind, Request, Site, Tier, WorkerId

OVERHEAD_PRIOR_S = 0.005
"""What a dispatch costs beside all that has a term of its own: calls, wake-ups, sampling."""

Measured = TransferFinished | PrefillMeasured | DecodeMeasured | LinkMeasured
CacheChange = BlocksStored | BlocksRemoved | CacheCleared


class World:
    """Models, workers, caches, links and speeds as one router at `site` knows them."""

    def __init__(self, *, models: Iterable[ModelProfile], topology: Topology, tolls: Tolls, site: Site) -> None:
        self.models: dict[ModelName, ModelProfile] = {profile.name: profile for profile in models}
        self.topology = topology
        self.tolls = tolls
        self.site = site
        self.fleet = Fleet()
        self.index = {tier: PrefixIndex() for tier in Tier}
        self.overhead_s = LearnedScale(OVERHEAD_PRIOR_S)

    def question(self, request: Request, now: float, *, excluded: int = 0, hypothetical: bool = False) -> Question:
        """All that is known at this moment about where a request could go; asking changes nothing."""
        profile = self.models[request.model]
        group = (profile.name,) if len(self.models) == 1 else self._group(profile.group)
        among = 0
        for name in group:
            for pool in self.fleet.pools(name).values():
                among |= pool.mask
        pricer = Pricer(
            request,
            profile,
            self.fleet,
            self.topology,
            self.tolls,
            entry=self.site,
            overhead_s=self.overhead_s.value,
            now=now,
        )
        levels = self.index[Tier.DEVICE].match(request.block_keys, among)
        return Question(
            request,
            profile,
            self.fleet,
            levels,
            pricer,
            excluded=excluded,
            group=group,
            tiers=self.index,
            hypothetical=hypothetical,
        )

    def _group(self, group: str) -> tuple[ModelName, ...]:
        return tuple(name for name, profile in self.models.items() if profile.group == group)

    def blocks_needed(self, request: Request) -> int:
        """KV blocks of a request's prompt and its longest answer."""
        total_tokens = request.prompt_tokens + request.max_output_tokens
        return -(-total_tokens // self.models[request.model].block_tokens)

    def charge_of(self, decision: Decision) -> Charge:
        """What a decision takes: compute and memory of its workers, flows on its links."""
        plan, request = decision.plan, decision.request
        compute = [(plan.prefill, plan.prefill_compute_s, plan.estimate.computed_tokens)]
        if plan.decode != plan.prefill:
            compute.append((plan.decode, plan.decode_compute_s, self.models[request.model].block_tokens))
        blocks = self.blocks_needed(request)
        flows = [
            Flow(source=move.source, target=move.target, link=link, bytes=move.bytes)
            for move in plan.moves
            if (link := self._link(move.source, move.target)) is not None
        ]
        memory = tuple((worker, blocks) for worker in plan.workers)
        return Charge(compute=tuple(compute), memory=memory, flows=tuple(flows))

    def cache_changed(self, change: CacheChange) -> str:
        """Take in what a worker told of its cache; after a contradiction all is forgotten, and its reason told."""
        state = self.fleet.get(change.worker_id)
        if state is None:
            return ""
        try:
            match change:
                case BlocksStored():
                    self.index[change.tier].stored(state.bit, change.keys, change.parent)
                case BlocksRemoved():
                    self.index[change.tier].removed(state.bit, change.keys)
                case CacheCleared():
                    self._forget_cache(state.bit)
        except EventError as error:
            self._forget_cache(state.bit)
            return str(error)
        return ""

    def lose(self, worker: WorkerId) -> bool:
        """A worker is gone, and with it its cache; False if it was not here."""
        state = self.fleet.lose(worker)
        if state is not None:
            self._forget_cache(state.bit)
        return state is not None

    def learn(self, measured: Measured, now: float) -> None:
        """Let a measurement correct what is believed."""
        match measured:
            case TransferFinished():
                self._learn_transfer(measured, now)
            case PrefillMeasured():
                state = self.fleet.get(measured.worker_id)
                if state is not None:
                    state.rate.learn(measured.cached_tokens, measured.end_tokens, measured.seconds)
                    self.fleet.rerank(measured.worker_id)
            case DecodeMeasured():
                state = self.fleet.get(measured.worker_id)
                if state is not None and measured.tokens > 0:
                    state.decode_step_s.learn(measured.seconds / measured.tokens)
            case LinkMeasured():
                rate = self.topology.rate(measured.source, measured.target)
                if measured.rtt_s is not None:
                    rate.learn_rtt_s(measured.rtt_s)
                if measured.bytes_per_s is not None:
                    rate.learn_bytes_per_s(measured.bytes_per_s, 1.0, now)

    def learn_overhead(self, plan: Plan, ttft_s: float) -> None:
        """Learn from a first token what no other term explains: only plans that neither moved nor waited tell it."""
        if plan.kind is PlanKind.LOCAL and plan.estimate.queue_s == 0:
            explained_s = plan.estimate.ttft_s - self.overhead_s.value
            self.overhead_s.learn(max(ttft_s - explained_s, OVERHEAD_PRIOR_S / 10))

    def check(self) -> None:
        """Assert the invariants of all parts."""
        self.fleet.check()
        for index in self.index.values():
            index.check()

    def _learn_transfer(self, done: TransferFinished, now: float) -> None:
        ledger = self.fleet.ledger
        age_s = None if done.complete else ledger.flow_age_s(done.request_id, done.source, done.target, now)
        flows = ledger.release_flow(done.request_id, done.source, done.target, now)
        link = self._link(done.source, done.target)
        if link is None:
            return
        rate = self.topology.rate(*link)
        if done.rtt_s is not None:
            rate.learn_rtt_s(done.rtt_s)
        if done.complete:
            rate.worked(now)
        elif age_s is not None:
            rate.broke(age_s, now)
        if done.seconds is not None and done.seconds > 0 and done.bytes > 0:
            rate.learn_bytes_per_s(done.bytes / done.seconds, flows or 1.0, now)

    def _forget_cache(self, bit: int) -> None:
        for index in self.index.values():
            index.cleared(bit)

    def _link(self, source: WorkerId, target: WorkerId) -> tuple[Site, Site] | None:
        one, other = self.fleet.get(source), self.fleet.get(target)
        return None if one is None or other is None else (one.worker.site, other.worker.site)
