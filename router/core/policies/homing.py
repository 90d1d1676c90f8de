"""Homing's own policy: the plan of least seconds among all five kinds, counting the seconds that it takes from others.

On top of the search it remembers three things: which prefixes are being computed, so that siblings wait for one
computation instead of making several; how much is asked of pools and links, whose congestion prices make long prompts
leave for a remote pool exactly as far as that helps; and how busy prefill and decode workers are, so that roles can be
changed when one starves. Each has a switch.
"""

from collections.abc import Callable, Sequence
from math import inf
from random import Random
from typing import Any

from ..blocks import reusable_blocks
from ..commands import Cancel, Command, Dispatch
from ..congestion import Congestion, LinkId
from ..events import (
    BlocksRemoved,
    DispatchFailed,
    Event,
    FirstToken,
    LoadReported,
    PrefillFinished,
    RequestCancelled,
    RequestFinished,
    WorkerDraining,
    WorkerJoined,
)
from ..pending import PendingPrefixes
from ..planner import Breadth, search
from ..question import Question
from ..rates import REFERENCE_TOKENS
from ..rebalance import RoleBalance
from ..space import CacheSpace
from ..tolls import Tolls
from ..topology import Topology
from ..types import Decision, ModelName, MoveKind, Plan, PlanKind, Role, Site, Tier, WorkerId
from .options import NotNegative
from .watching import gone


class Homing:
    """Choose the plan of least seconds among all five kinds.

    `explains`: the best plan of each losing kind is shown beside the winner. `siblings`: a prompt may wait for a prefix
    that is being computed. `tolls`: congestion prices of pools and links are learned. `rebalance`: role changes are
    wished for. `stall`, `crowd_s` and `together`: what answers and prompts on a worker suffer from one more of each
    (`tolls.Tolls`). `place`: what a regretted token costs, in the seconds that it takes to compute one. `breadth`: how
    widely the search looks. With every switch off and every number 0 the choice is greedy on TTFT.
    """

    name = "homing"
    foresees = True

    def __init__(
        self,
        *,
        explains: bool = True,
        siblings: bool = True,
        tolls: bool = True,
        rebalance: bool = True,
        stall: NotNegative = 0.02,
        crowd_s: NotNegative = 0.005,
        place: NotNegative = 3.0,
        together: NotNegative = 0.5,
        breadth: Breadth | None = None,
    ) -> None:
        self._explains = explains
        self._siblings = siblings
        self._stall = stall
        self._crowd_s = crowd_s
        self._breadth = breadth or Breadth()
        self._place = place
        self._together = together
        self._space = CacheSpace()
        self._places_s = -inf
        self._pending = PendingPrefixes()
        self._congestion = Congestion()
        self._tolls = tolls
        self._balance = RoleBalance() if rebalance else None
        self._sites: dict[WorkerId, Site] = {}
        self._block_tokens: dict[ModelName, int] = {}
        self._now = 0.0
        self._topology: Topology | None = None
        self._prices: Tolls | None = None
        self._handle: dict[type, Callable[[Any], None]] = {
            FirstToken: lambda event: self._pending.end(event.request_id),
            PrefillFinished: lambda event: self._pending.end(event.request_id),
            RequestFinished: lambda event: self._pending.end(event.request_id),
            RequestCancelled: lambda event: self._pending.end(event.request_id),
            DispatchFailed: lambda event: self._pending.end(event.request_id),
            BlocksRemoved: self._removed,
            LoadReported: self._reported,
            WorkerJoined: self._joined,
            WorkerDraining: lambda event: self._takes_nothing_new(event.worker_id),
        }

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The best plan first, then the best priced of each other kind; empty when no worker may take the request."""
        pricer = question.pricer
        self._block_tokens[question.request.model] = question.profile.block_tokens
        pricer.tolls.stall, pricer.tolls.crowd_s = self._stall, self._crowd_s
        pricer.tolls.together = self._together
        self._topology, self._prices = pricer.topology, pricer.tolls
        if not question.hypothetical:
            self._learn(question)
        coming: dict[WorkerId, int] = {}
        if self._siblings and len(self._pending):
            for worker, blocks in self._pending.coming(question.request.block_keys):
                coming[worker] = max(coming.get(worker, 0), min(blocks, pricer.reusable))
        return search(question, breadth=self._breadth, coming=coming, explains=self._explains)

    def _learn(self, question: Question) -> None:
        """Let prices follow from what is asked."""
        pricer = question.pricer
        self._congestion.update(pricer.tolls if self._tolls else None, pricer.now)
        if self._place:
            deepest = question.levels[0].depth if question.levels else 0
            self._space.wanted(question.request.block_keys[deepest:])
        if self._place and pricer.now - self._places_s > 1.0:
            self._price_places(question)

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Remember who computes what, and what was asked of whom."""
        self._now = now
        handle = self._handle.get(type(event))
        if handle is not None:
            handle(event)
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatched(command.decision)
            elif isinstance(command, Cancel):
                self._pending.end(command.request_id)
        for worker in gone(event, commands):
            self._lost(worker)

    def loads(self) -> dict[str, float]:
        """How much is asked of each pool and link, 1 being all that it has."""
        return self._congestion.loads()

    def wishes(self, now: float) -> list[tuple[WorkerId, Role, str]]:
        """Which worker should change its role, and why; each wish is told once."""
        return [] if self._balance is None else self._balance.wishes(self.loads(), now)

    def pending(self) -> int:
        """How many prompts are being computed."""
        return len(self._pending)

    def _price_places(self, question: Question) -> None:
        self._places_s = now = question.pricer.now
        for state in question.fleet:
            uses = self._space.uses_per_token(state.worker.id, now)
            token_s = state.rate.reference_s / REFERENCE_TOKENS
            question.pricer.tolls.set_place(state.worker.id, self._place * uses * token_s)

    def _removed(self, event: BlocksRemoved) -> None:
        if event.tier is Tier.DEVICE and event.worker_id in self._sites:
            self._space.evicted(event.worker_id, event.keys, self._now)

    def _joined(self, event: WorkerJoined) -> None:
        self._sites[event.worker.id] = event.worker.site
        self._congestion.joined(event.worker)
        if self._balance is not None:
            self._balance.joined(event.worker)

    def _lost(self, worker: WorkerId) -> None:
        self._sites.pop(worker, None)
        self._space.left(worker)
        self._takes_nothing_new(worker)
        if self._prices is not None:
            self._prices.forget_worker(worker)

    def _takes_nothing_new(self, worker: WorkerId) -> None:
        """It is no capacity any more, whatever it still has to do; its cache may be read for a while."""
        self._congestion.left(worker)
        if self._balance is not None:
            self._balance.left(worker)

    def _reported(self, event: LoadReported) -> None:
        if self._balance is not None:
            self._balance.reported(event.report)

    def _dispatched(self, decision: Decision) -> None:
        request, plan = decision.request, decision.plan
        if self._siblings and all(move.kind is MoveKind.SHIP for move in plan.moves):
            # Who waits for blocks from elsewhere is overtaken by those behind it: they cannot count on its prefix.
            block_tokens = self._block_tokens[request.model]
            held, end = plan.estimate.hit_tokens // block_tokens, len(request.block_keys)
            if plan.kind is PlanKind.REMOTE:
                end = min(end, reusable_blocks(request.prompt_tokens, block_tokens))
            self._pending.begin(request.id, plan.prefill, request.block_keys, held, end)
        self._congestion.dispatched(decision, self._link_s(plan))

    def _link_s(self, plan: Plan) -> dict[LinkId, float]:
        """Seconds of whole links that the plan's moves take."""
        asked: dict[LinkId, float] = {}
        for move in plan.moves:
            source, target = self._sites.get(move.source), self._sites.get(move.target)
            if source is not None and target is not None and self._topology is not None:
                seconds = move.bytes / self._topology.rate(source, target).bytes_per_s
                asked[source, target] = asked.get((source, target), 0.0) + seconds
        return asked
