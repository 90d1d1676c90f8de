"""What each plan would cost, term by term, in seconds. The formulas are derived in docs/cost-model.md.

Rule 1: every term is in seconds, and only what is exposed counts.
Rule 2: nothing here remembers anything or chooses anything; a `Pricer` lives for one question.
"""

from math import sqrt

from .blocks import reusable_blocks
from .fleet import Fleet, WorkerState
from .preparation import Preparation, Source, Way
from .rates import PrefillRate
from .tolls import Tolls
from .topology import Topology
from .types import Estimate, ModelProfile, Move, MoveKind, Plan, PlanKind, Request, Site

SETUP_ROUND_TRIPS = 3.0
"""Asking the source for an offer, connecting to its data plane, presenting the ticket until the first byte comes."""


PASS_TOKENS = 8192
"""Prompt tokens that an engine computes in one pass: prompts at a queue's end share one, and end together."""


SPLIT_TOKENS_MIN = 128
"""A split must let each side contribute this much: with less, what is won is lost again to the passes that it needs."""


class Pricer:
    """Prices plans for one request at one moment.

    `entry` is the site where the request came in: the way from there to the decode worker and back is paid once.
    """

    def __init__(
        self,
        request: Request,
        profile: ModelProfile,
        fleet: Fleet,
        topology: Topology,
        tolls: Tolls,
        *,
        entry: Site,
        overhead_s: float,
        now: float,
    ) -> None:
        self.request = request
        self.profile = profile
        self.fleet = fleet
        self.topology = topology
        self.tolls = tolls
        self.now = now
        self._entry = request.origin or entry
        self._overhead_s = overhead_s
        self.reusable = min(len(request.block_keys), reusable_blocks(request.prompt_tokens, profile.block_tokens))
        self._ways: dict[tuple[Site, Site], Way] = {}
        self._rtts_s: dict[Site, float] = {}
        self._queues_s: dict[int, float] = {}
        self.priced = 0
        """Preparations and handovers that were priced."""

    def network_s(self, worker: WorkerState) -> float:
        """From the door to a worker and back with the first token, and the overhead of any dispatch."""
        return self._rtt_s(worker.worker.site) + self._overhead_s

    def _rtt_s(self, site: Site) -> float:
        """From the door to a site and back."""
        known = self._rtts_s.get(site)
        if known is None:
            known = self._rtts_s[site] = self.topology.rate(self._entry, site).rtt_s
        return known

    def _round_s(self, there: WorkerState, back: WorkerState) -> float:
        """Half a round trip to `there`, half a one from `back`; what travels between the two is priced apart."""
        return (self._rtt_s(there.worker.site) + self._rtt_s(back.worker.site)) / 2 + self._overhead_s

    def queue_s(self, worker: WorkerState) -> float:
        """Seconds until a worker could begin this prompt; looked up once per question."""
        known = self._queues_s.get(worker.bit)
        if known is None:
            known = self._queues_s[worker.bit] = self.fleet.queue_s(worker, self.now)
        return known

    def way(self, source: Site, target: Site) -> Way:
        """What is believed of a link; looked up once per question."""
        known = self._ways.get((source, target))
        if known is None:
            rate = self.topology.rate(source, target)
            flows = 1 + self.fleet.ledger.flows((source, target))
            risk_s, speed = rate.risk_s(self.now), rate.hoped_bytes_per_s(self.now)
            known = Way(rate.rtt_s, SETUP_ROUND_TRIPS * rate.rtt_s + risk_s, flows / speed, risk_s)
            self._ways[source, target] = known
        return known

    def transfer_s(self, source: Site, target: Site, moved_bytes: int) -> float:
        """`setup + bytes/share`: the share is what the link gives one more flow beside those in flight."""
        way = self.way(source, target)
        return way.latency_s + moved_bytes * way.byte_s

    def least_score_s(
        self, worker: WorkerState, held: int, source_blocks: int, first_byte_s: float, end_tokens: int
    ) -> float:
        """What no preparation of `worker` can score less than: alone, or helped by a source of at most so many blocks
        whose first byte takes at least so long.
        """
        queue_s, block_tokens = self.queue_s(worker), self.profile.block_tokens
        place_toll_s = self._place_toll_s(worker, held, end_tokens)
        alone_s = worker.rate.prefill_s(held * block_tokens, end_tokens)
        least_s = queue_s + alone_s + self._compute_toll_s(worker, alone_s)
        if source_blocks > held:
            rest_s = worker.rate.prefill_s(source_blocks * block_tokens, end_tokens)
            begin_s = max(first_byte_s, queue_s)
            least_s = min(least_s, begin_s + rest_s + self._compute_toll_s(worker, rest_s))
        return least_s + place_toll_s

    def compute(self, worker: WorkerState, held: int, end_tokens: int, load_s: float = 0.0) -> Preparation:
        """`worker` computes everything after the `held` blocks that it has, up to token `end_tokens`.

        `load_s`: how long it takes to bring the last of them up from a lower tier.
        """
        self.priced += 1
        cached = min(held, self.reusable) * self.profile.block_tokens
        seconds = worker.rate.prefill_s(cached, end_tokens)
        return Preparation(
            PlanKind.LOCAL,
            worker,
            self.queue_s(worker),
            load_s,
            seconds,
            seconds,
            cached,
            end_tokens - cached if end_tokens > cached else 0,
            self._compute_toll_s(worker, seconds) + self._place_toll_s(worker, held, end_tokens),
        )

    def fetch(self, worker: WorkerState, held: int, source: Source, end_tokens: int) -> Preparation:
        """Blocks `[held, source.blocks)` come from `source` first; `worker` computes the rest."""
        self.priced += 1
        have = min(source.blocks, self.reusable)
        moved = self._moved_bytes(have - held)
        cached = have * self.profile.block_tokens
        seconds = worker.rate.prefill_s(cached, end_tokens)
        return Preparation(
            PlanKind.FETCH,
            worker,
            self.queue_s(worker),
            self.transfer_s(source.state.worker.site, worker.worker.site, moved),
            seconds,
            seconds,
            cached,
            end_tokens - cached if end_tokens > cached else 0,
            self._compute_toll_s(worker, seconds)
            + self._place_toll_s(worker, held, end_tokens)
            + self._link_toll_s(source.state, worker, moved),
            source.state,
            held,
            have,
            moved,
        )

    def split(self, worker: WorkerState, held: int, source: Source, end_tokens: int) -> Preparation | None:
        """`worker` computes from the front while blocks arrive from the back of what `source` has, until they meet.

        None where one side would contribute less than SPLIT_TOKENS_MIN: then it is a fetch, or not worth one.
        """
        have = min(source.blocks, self.reusable)
        block_tokens = self.profile.block_tokens
        if self.profile.state_bytes or (have - held) * block_tokens < 2 * SPLIT_TOKENS_MIN:
            return None
        queue_s = self.queue_s(worker)
        way = self.way(source.state.worker.site, worker.worker.site)
        meet_tokens = meeting_point(
            worker.rate,
            held * block_tokens,
            have * block_tokens,
            head_start_s=way.latency_s - queue_s,
            seconds_per_token=self.profile.bytes_per_token * way.byte_s,
        )
        meet = round(meet_tokens / block_tokens)
        if min(meet - held, have - meet) * block_tokens < SPLIT_TOKENS_MIN:
            return None
        self.priced += 1
        moved = self._moved_bytes(have - meet)
        head_s = worker.rate.prefill_s(held * block_tokens, meet * block_tokens)
        tail_s = worker.rate.prefill_s(have * block_tokens, end_tokens)
        meets_s = max(queue_s + head_s, way.latency_s + moved * way.byte_s)
        hit_tokens = min(held + have - meet, self.reusable) * block_tokens
        return Preparation(
            PlanKind.SPLIT,
            worker,
            queue_s,
            0.0,
            meets_s - queue_s + tail_s,
            head_s + tail_s,
            hit_tokens,
            max(0, end_tokens - hit_tokens),
            self._compute_toll_s(worker, head_s + tail_s)
            + self._place_toll_s(worker, held, end_tokens)
            + self._link_toll_s(source.state, worker, moved),
            source.state,
            meet,
            have,
            moved,
        )

    def plan(self, prepared: Preparation, kind: PlanKind | None = None) -> Plan:
        """A preparation on the worker that decodes too: `local`, `fetch`, `split`, or `direct` if named so."""
        estimate = Estimate(
            network_s=self.network_s(prepared.worker),
            queue_s=prepared.queue_s,
            fetch_s=prepared.fetch_s,
            prefill_s=prepared.prefill_s,
            toll_s=prepared.toll_s + self.decode_toll_s(prepared.worker),
            hit_tokens=prepared.hit_tokens,
            computed_tokens=prepared.computed_tokens,
            moved_bytes=prepared.moved_bytes,
        )
        worker = prepared.worker.worker.id
        return Plan(
            kind=kind or prepared.kind,
            prefill=worker,
            decode=worker,
            moves=prepared.moves,
            estimate=estimate,
            prefill_compute_s=prepared.compute_s,
        )

    def remote(self, prepared: Preparation, decode: WorkerState, held: int) -> Plan:
        """`prepared.worker` makes the full blocks; those that `decode` lacks are shipped layer by layer, then it
        decodes.

        Of the handover only what the prefill does not hide is exposed: at least the last layer's share, and all by
        which the link is slower than the compute, or the decode worker is busy; all of it where blocks are shipped when
        the prefill is over. The decode worker computes the last, incomplete block itself.
        """
        shipped, ship_s, tail_s, toll_s = self._handed_over(prepared, decode, held)
        move = Move(
            kind=MoveKind.SHIP,
            source=prepared.worker.worker.id,
            target=decode.worker.id,
            block_first=min(held, self.reusable),
            block_end=self.reusable,
            bytes=shipped,
        )
        estimate = Estimate(
            network_s=self._round_s(prepared.worker, decode),
            queue_s=prepared.queue_s,
            fetch_s=prepared.fetch_s,
            prefill_s=prepared.prefill_s + tail_s,
            ship_s=ship_s,
            toll_s=prepared.toll_s + toll_s,
            hit_tokens=prepared.hit_tokens,
            computed_tokens=prepared.computed_tokens + self._tail_tokens(),
            moved_bytes=prepared.moved_bytes + shipped,
        )
        return Plan(
            kind=PlanKind.REMOTE,
            prefill=prepared.worker.worker.id,
            decode=decode.worker.id,
            moves=(*prepared.moves, move),
            estimate=estimate,
            prefill_compute_s=prepared.compute_s,
            decode_compute_s=tail_s,
        )

    def remote_score_s(self, prepared: Preparation, decode: WorkerState, held: int) -> float:
        """The score of the same plan, without making it."""
        _, ship_s, tail_s, toll_s = self._handed_over(prepared, decode, held)
        return self._round_s(prepared.worker, decode) + prepared.score_s + tail_s + ship_s + toll_s

    def _handed_over(self, prepared: Preparation, decode: WorkerState, held: int) -> tuple[int, float, float, float]:
        """Of a handover: bytes, seconds that nothing hides, the tail on the decode worker, and its tolls."""
        self.priced += 1
        way = self.way(prepared.worker.worker.site, decode.worker.site)
        shipped = self._moved_bytes(self.reusable - min(held, self.reusable))
        sending_s = shipped * way.byte_s
        ready_s = prepared.ready_s
        if decode.worker.ships_whole:
            arrives_s = way.latency_s + sending_s
        else:
            overlap_s = (prepared.fetch_s + prepared.prefill_s) * (1 - 1 / self.profile.layers)
            late_s = max(way.risk_s, way.latency_s - ready_s)
            arrives_s = late_s + way.rtt_s / 2 + max(sending_s / self.profile.layers, sending_s - overlap_s)
        ship_s = max(arrives_s, self.queue_s(decode) - ready_s)
        tail_s = self.tail_s(decode)
        toll_s = self._link_toll_s(prepared.worker, decode, shipped) + self._compute_toll_s(decode, tail_s)
        toll_s += self._place_toll_s(decode, held, self.request.prompt_tokens)
        return shipped, ship_s, tail_s, toll_s + self.decode_toll_s(decode)

    def tail_s(self, decode: WorkerState) -> float:
        """What the decode worker of a remote plan computes itself: the last, incomplete block."""
        return decode.rate.prefill_s(self.reusable * self.profile.block_tokens, self.request.prompt_tokens)

    def _tail_tokens(self) -> int:
        return self.request.prompt_tokens - self.reusable * self.profile.block_tokens

    def _moved_bytes(self, blocks: int) -> int:
        return self.profile.moved_bytes(blocks * self.profile.block_tokens)

    def least_after_s(self, decode: WorkerState, held: int) -> float:
        """What no handover to `decode`, which holds so many blocks, can score less than, and the way back."""
        tail_s = self.tail_s(decode)
        toll_s = self._compute_toll_s(decode, tail_s) + self._place_toll_s(decode, held, self.request.prompt_tokens)
        return self.network_s(decode) / 2 + tail_s + toll_s + self.decode_toll_s(decode)

    def decode_toll_s(self, worker: WorkerState) -> float:
        """What one more answer costs those that the worker decodes already."""
        return self.tolls.decode_s(self.fleet.running(worker))

    def _compute_toll_s(self, worker: WorkerState, seconds: float) -> float:
        account = worker.account
        toll_s = self.tolls.compute_s(worker.worker.id, seconds, account.running + worker.foreign_requests)
        if account.jobs and self.tolls.together:
            beside = len(account.jobs) * min(1.0, PASS_TOKENS / max(1, account.queued_tokens))
            toll_s += self.tolls.together_s(min(seconds, worker.rate.prefill_s(0, PASS_TOKENS)), beside)
        return toll_s

    def _place_toll_s(self, worker: WorkerState, held: int, end_tokens: int) -> float:
        """Whatever a worker does not hold yet takes a place in its cache, computed or moved."""
        return self.tolls.place_s(worker.worker.id, end_tokens - held * self.profile.block_tokens)

    def _link_toll_s(self, source: WorkerState, target: WorkerState, moved_bytes: int) -> float:
        return self.tolls.link_s(self.topology, source.worker.site, target.worker.site, moved_bytes)


def meeting_point(rate: PrefillRate, held: int, have: int, *, head_start_s: float, seconds_per_token: float) -> float:
    """Where a computation from `held` upwards meets a transfer from `have` downwards, in tokens.

    Solves `a + b*(x-held) + q*(x^2-held^2) = head_start_s + seconds_per_token*(have-x)` for x; `head_start_s` is by how
    much the computation may begin before the first byte arrives (negative: after). Clipped to `[held, have]`.
    """
    a, b, q = rate.coefficients
    linear = b + seconds_per_token
    constant = a - b * held - q * held * held - head_start_s - seconds_per_token * have
    root = sqrt(max(0.0, linear * linear - 4 * q * constant))
    x = (root - linear) / (2 * q) if q > 0 else -constant / linear
    return min(max(x, float(held)), float(have))
