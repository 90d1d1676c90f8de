"""One request to be placed, with all that is known at that moment: what every policy is asked.

A question answers in worker states, held blocks and seconds; it changes nothing.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate, takewhile
from operator import or_

from .fleet import Fleet, Pool, WorkerState
from .prefix_index import Level, PrefixIndex
from .preparation import Source
from .price import Pricer
from .types import ModelName, ModelProfile, Plan, PlanKind, Request, Site, Tier, Trust

FEW_LEVELS = 8
"""Up to so many levels are looked through one by one."""


class Question:
    """Where shall this request go?

    `levels` are the index's answer for the request's keys, `excluded` a bit set of workers that failed it before,
    `group` the models whose KV is interchangeable with the request's.
    """

    def __init__(
        self,
        request: Request,
        profile: ModelProfile,
        fleet: Fleet,
        levels: list[Level],
        pricer: Pricer,
        *,
        excluded: int = 0,
        group: tuple[ModelName, ...] = (),
        tiers: Mapping[Tier, PrefixIndex] | None = None,
        hypothetical: bool = False,
    ) -> None:
        self.request = request
        self.profile = profile
        self.fleet = fleet
        self.levels = levels
        self.pricer = pricer
        self.excluded = excluded
        self.hypothetical = hypothetical
        """Whether nothing follows from the answer, so that nobody is to learn from the question."""
        self._held: dict[int, int] = {}
        self._holders_down_to: list[int] | None = None
        self._group = group or (request.model,)
        self._tiers = tiers or {}
        self.blocks = -(-(request.prompt_tokens + request.max_output_tokens) // profile.block_tokens)

    def held(self, worker: WorkerState) -> int:
        """How many leading blocks of the prompt a worker has, of those that can be reused; none of a blind one."""
        bit = worker.bit
        held = self._held.get(bit)
        if held is None:
            held = 0
            levels = [] if worker.trust is Trust.BLIND else self.levels
            for level in levels if len(levels) <= FEW_LEVELS else self._from(bit):
                if level.holders >> bit & 1:
                    held = min(self.pricer.reusable, level.depth)
                    break
            self._held[bit] = held
        return held

    def _from(self, bit: int) -> list[Level]:
        """The level of a holder, by binary search: many may stand before it."""
        if self._holders_down_to is None:
            self._holders_down_to = list(accumulate((level.holders for level in self.levels), or_))
        found = bisect_left(self._holders_down_to, True, key=lambda holders: bool(holders >> bit & 1))
        return self.levels[found : found + 1]

    def held_on(self, worker: WorkerState, tier: Tier, first: int) -> int:
        """How many blocks from `first` on, without a gap, a worker has in one of its lower tiers."""
        index = self._tiers.get(tier)
        if index is None or not index.blocks_of(worker.bit):
            return 0
        wanted = self.request.block_keys[first : self.pricer.reusable]
        return sum(1 for _ in takewhile(lambda key: index.holds(worker.bit, key), wanted))

    def pools(self) -> dict[Site, Pool]:
        """The pools that serve the request's model, by site."""
        return self.fleet.pools(self.request.model)

    def source_pools(self) -> Iterator[Pool]:
        """The pools whose caches can be read: of every model in the request's KV group."""
        for model in self._group:
            for _, pool in sorted(self.fleet.pools(model).items()):
                yield pool

    def may_take(self, worker: WorkerState) -> bool:
        """Whether a worker may be given this request: it has room and did not fail it before."""
        return not self.excluded >> worker.bit & 1 and self.fleet.has_room(worker, self.blocks)

    def may_move(self, kind: PlanKind, source: WorkerState, target: WorkerState) -> bool:
        """Whether a plan of this kind may move KV from one worker to another: both must move it in the same way, and
        what the source is believed to hold must be sure.
        """
        if not self.fleet.is_limited:
            return True
        transport = target.worker.transport
        return (
            bool(transport)
            and kind in target.worker.plans
            and source.worker.transport == transport
            and (kind is PlanKind.REMOTE or source.trust is Trust.EXACT)
        )

    def prefillers(self) -> Iterator[WorkerState]:
        """All workers that may compute this prompt, in a fixed order."""
        for _, pool in sorted(self.pools().items()):
            for _, worker in sorted(pool.by_bit.items()):
                if worker.worker.role.can_prefill and self.may_take(worker):
                    yield worker

    def decoders(self) -> Iterator[WorkerState]:
        """All workers that may decode this answer, in a fixed order."""
        for _, pool in sorted(self.pools().items()):
            for _, worker in sorted(pool.by_bit.items()):
                if worker.worker.role.can_decode and self.may_take(worker):
                    yield worker

    def local(self, worker: WorkerState) -> Plan:
        """The plan in which one worker does everything."""
        prepared = self.pricer.compute(worker, self.held(worker), self.request.prompt_tokens)
        return self.pricer.plan(prepared)

    def handed_over(self, prefill: WorkerState, decode: WorkerState) -> Plan | None:
        """The plan in which `prefill` computes and `decode` decodes; None with nothing, or no way, to hand over."""
        held = self.held(decode)
        if held >= self.pricer.reusable or not self.may_move(PlanKind.REMOTE, prefill, decode):
            return None
        if self.held(prefill) >= self.pricer.reusable and self.may_move(PlanKind.DIRECT, prefill, decode):
            return self.direct(decode, Source(prefill, self.held(prefill)))
        end_tokens = self.pricer.reusable * self.profile.block_tokens
        prepared = self.pricer.compute(prefill, self.held(prefill), end_tokens)
        return self.pricer.remote(prepared, decode, held)

    def direct(self, decode: WorkerState, source: Source) -> Plan:
        """The plan in which everything cached goes straight into `decode`, which computes the last block only."""
        prepared = self.pricer.fetch(decode, self.held(decode), source, self.request.prompt_tokens)
        return self.pricer.plan(prepared, PlanKind.DIRECT)

    def needs_no_prefill(self, worker: WorkerState) -> bool:
        """Whether a worker has all that can be reused, so that even a decode worker may do the rest."""
        return self.held(worker) >= self.pricer.reusable
