"""What each plan would cost, term by term, in seconds. The formulas are derived in docs/cost-model.md.

Rule 1: every term is in seconds, and only what is exposed counts.
Rule 2: nothing here remembers anything or chooses anything; a `Pricer` lives for one question.
"""

from dataclasses import dataclass
from math import sqrt

from .blocks import reusable_blocks
from .fleet import Fleet, WorkerState
from .rates import PrefillRate
from .tolls import Tolls
from .topology import Topology
from .types import Estimate, ModelProfile, Move, MoveKind, Plan, PlanKind, Request, Site

SETUP_ROUND_TRIPS = 3.0
"""Asking the source for an offer, connecting to its data plane, presenting the ticket until the first byte comes."""


SPLIT_TOKENS_MIN = 128
"""A split must let each side contribute this much: with less, what is won is lost again to the passes that it needs."""


@dataclass(frozen=True, slots=True)
class Source:
    """A worker that holds the first `blocks` blocks of the prompt."""

    state: WorkerState
    blocks: int


@dataclass(frozen=True, slots=True)
class Way:
    """One direction between two sites, at the moment of the question, for one more flow beside those in flight."""

    rtt_s: float
    latency_s: float
    """From asking for blocks until the first byte arrives."""
    byte_s: float
    """Seconds per byte of this flow's share."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """A way for a worker to have blocks `[0, end)` of the prompt: what it computes, and what it gets from where.

    `ready_s = max(queue_s, fetch_s) + prefill_s`, counted from the moment when the worker hears of the request.
    """

    kind: PlanKind
    worker: WorkerState
    moves: tuple[Move, ...]
    queue_s: float
    fetch_s: float
    prefill_s: float
    compute_s: float
    hit_tokens: int
    computed_tokens: int
    moved_bytes: int
    toll_s: float

    @property
    def ready_s(self) -> float:
        """When the blocks are there."""
        return max(self.queue_s, self.fetch_s) + self.prefill_s

    @property
    def score_s(self) -> float:
        """What preparations are compared by."""
        return self.ready_s + self.toll_s


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
        self.priced = 0

    def network_s(self, worker: WorkerState) -> float:
        """From the door to a worker and back with the first token, and the overhead of any dispatch."""
        return self._round_s(worker, worker)

    def _round_s(self, there: WorkerState, back: WorkerState) -> float:
        """Half a round trip to `there`, half a one from `back`; what travels between the two is priced apart."""
        rtt_there_s = self.way(self._entry, there.worker.site).rtt_s
        rtt_back_s = self.way(self._entry, back.worker.site).rtt_s
        return (rtt_there_s + rtt_back_s) / 2 + self._overhead_s

    def way(self, source: Site, target: Site) -> Way:
        """What is believed of a link; looked up once per question."""
        known = self._ways.get((source, target))
        if known is None:
            rate = self.topology.rate(source, target)
            flows = 1 + self.fleet.ledger.flows((source, target))
            known = Way(rate.rtt_s, SETUP_ROUND_TRIPS * rate.rtt_s, flows / rate.bytes_per_s)
            self._ways[source, target] = known
        return known

    def transfer_s(self, source: Site, target: Site, moved_bytes: int) -> float:
        """`setup + bytes/share`: the share is what the link gives one more flow beside those in flight."""
        way = self.way(source, target)
        return way.latency_s + moved_bytes * way.byte_s

    def least_ready_s(
        self, worker: WorkerState, held: int, source_blocks: int, first_byte_s: float, end_tokens: int
    ) -> float:
        """What no preparation of `worker` can be quicker than: alone, or helped by a source of at most so many blocks
        whose first byte takes at least so long.
        """
        queue_s = self.fleet.queue_s(worker, self.now)
        alone_s = queue_s + worker.rate.prefill_s(held * self.profile.block_tokens, end_tokens)
        if source_blocks <= held:
            return alone_s
        rest_s = worker.rate.prefill_s(source_blocks * self.profile.block_tokens, end_tokens)
        return min(alone_s, max(queue_s, first_byte_s) + rest_s)

    def compute(self, worker: WorkerState, held: int, end_tokens: int) -> Preparation:
        """`worker` computes everything after the `held` blocks that it has, up to token `end_tokens`."""
        cached = min(held, self.reusable) * self.profile.block_tokens
        seconds = worker.rate.prefill_s(cached, end_tokens)
        return self._prepared(PlanKind.LOCAL, worker, held, end_tokens, prefill_s=seconds, compute_s=seconds)

    def fetch(self, worker: WorkerState, held: int, source: Source, end_tokens: int) -> Preparation:
        """Blocks `[held, source.blocks)` come from `source` first; `worker` computes the rest."""
        have = min(source.blocks, self.reusable)
        moved = self._moved_bytes(have - held)
        arrives_s = self.transfer_s(source.state.worker.site, worker.worker.site, moved)
        seconds = worker.rate.prefill_s(have * self.profile.block_tokens, end_tokens)
        move = self._move(MoveKind.FETCH, source.state, worker, held, have, moved)
        return self._prepared(
            PlanKind.FETCH,
            worker,
            have,
            end_tokens,
            fetch_s=arrives_s,
            prefill_s=seconds,
            compute_s=seconds,
            move=move,
        )

    def split(self, worker: WorkerState, held: int, source: Source, end_tokens: int) -> Preparation | None:
        """`worker` computes from the front while blocks arrive from the back of what `source` has, until they meet.

        None where one side would contribute less than SPLIT_TOKENS_MIN: then it is a fetch, or not worth one.
        """
        have = min(source.blocks, self.reusable)
        if self.profile.state_bytes:
            return None
        queue_s = self.fleet.queue_s(worker, self.now)
        way = self.way(source.state.worker.site, worker.worker.site)
        block_tokens = self.profile.block_tokens
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
        moved = self._moved_bytes(have - meet)
        head_s = worker.rate.prefill_s(held * block_tokens, meet * block_tokens)
        tail_s = worker.rate.prefill_s(have * block_tokens, end_tokens)
        meets_s = max(queue_s + head_s, way.latency_s + moved * way.byte_s)
        return self._prepared(
            PlanKind.SPLIT,
            worker,
            held + have - meet,
            end_tokens,
            prefill_s=meets_s - queue_s + tail_s,
            compute_s=head_s + tail_s,
            move=self._move(MoveKind.MEET, source.state, worker, meet, have, moved),
        )

    def plan(self, prepared: Preparation, kind: PlanKind | None = None) -> Plan:
        """A preparation on the worker that decodes too: `local`, `fetch`, `split`, or `direct` if named so."""
        self.priced += 1
        estimate = Estimate(
            network_s=self.network_s(prepared.worker),
            queue_s=prepared.queue_s,
            fetch_s=prepared.fetch_s,
            prefill_s=prepared.prefill_s,
            toll_s=prepared.toll_s,
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
        which the link is slower than the compute, or the decode worker is busy. That worker computes the last,
        incomplete block itself.
        """
        self.priced += 1
        sites = (prepared.worker.worker.site, decode.worker.site)
        held = min(held, self.reusable)
        shipped = self._moved_bytes(self.reusable - held)
        way = self.way(*sites)
        sending_s = shipped * way.byte_s
        overlap_s = (prepared.fetch_s + prepared.prefill_s) * (1 - 1 / self.profile.layers)
        late_s = max(0.0, way.latency_s - prepared.ready_s)
        arrives_s = late_s + way.rtt_s / 2 + max(sending_s / self.profile.layers, sending_s - overlap_s)
        ship_s = max(arrives_s, self.fleet.queue_s(decode, self.now) - prepared.ready_s)
        tail_s = self.tail_s(decode)
        toll_s = self.tolls.link_s(self.topology, *sites, shipped) + self.tolls.compute_s(decode.worker.id, tail_s)
        move = self._move(MoveKind.SHIP, prepared.worker, decode, held, self.reusable, shipped)
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

    def tail_s(self, decode: WorkerState) -> float:
        """What the decode worker of a remote plan computes itself: the last, incomplete block."""
        return decode.rate.prefill_s(self.reusable * self.profile.block_tokens, self.request.prompt_tokens)

    def _tail_tokens(self) -> int:
        return self.request.prompt_tokens - self.reusable * self.profile.block_tokens

    def _moved_bytes(self, blocks: int) -> int:
        return self.profile.moved_bytes(blocks * self.profile.block_tokens)

    def _move(self, kind: MoveKind, source: WorkerState, target: WorkerState, first: int, end: int, moved: int) -> Move:
        return Move(
            kind=kind,
            source=source.worker.id,
            target=target.worker.id,
            block_first=first,
            block_end=end,
            bytes=moved,
        )

    def _prepared(
        self,
        kind: PlanKind,
        worker: WorkerState,
        blocks_not_computed: int,
        end_tokens: int,
        *,
        prefill_s: float,
        compute_s: float,
        fetch_s: float = 0.0,
        move: Move | None = None,
    ) -> Preparation:
        hit_tokens = min(blocks_not_computed, self.reusable) * self.profile.block_tokens
        toll_s = self.tolls.compute_s(worker.worker.id, compute_s)
        if move is not None:
            source = self.fleet.get(move.source)
            assert source is not None, "sources are taken from the fleet"
            toll_s += self.tolls.link_s(self.topology, source.worker.site, worker.worker.site, move.bytes)
        return Preparation(
            kind=kind,
            worker=worker,
            moves=() if move is None else (move,),
            queue_s=self.fleet.queue_s(worker, self.now),
            fetch_s=fetch_s,
            prefill_s=prefill_s,
            compute_s=compute_s,
            hit_tokens=hit_tokens,
            computed_tokens=max(0, end_tokens - hit_tokens),
            moved_bytes=0 if move is None else move.bytes,
            toll_s=toll_s,
        )


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
