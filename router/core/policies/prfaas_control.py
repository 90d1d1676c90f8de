"""What the two loops of prefill as a service look at and turn: stages, egress, the threshold, the roles."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..commands import Command
from ..events import Event, WorkerJoined
from ..fleet import WorkerState
from ..question import Question
from ..types import Decision, Role, Site, WorkerId
from .prfaas_clusters import is_prfaas
from .watching import gone

LENGTHS_MAX = 1024
LENGTHS_MIN = 64
"""Fewer recent requests than this say nothing of a distribution."""
RANGE = 16.0
"""How far the threshold may be moved from its base, as a factor."""
MEMORY = 0.8
"""Weight that past samples of a stage keep when the next one comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The three stages at one moment: prefill far and near, in seconds of mean queue, and the use of decode slots."""

    prfaas: tuple[WorkerState, ...]
    local: tuple[WorkerState, ...]
    decoders: tuple[WorkerState, ...]
    prfaas_queue_s: float
    local_queue_s: float
    decode_use: float
    idlest_prefill: WorkerId | None
    """Of those that only prefill, in the local cluster."""
    idlest_decode: WorkerId | None
    sites: tuple[tuple[Site, Site], ...]
    """The ways from prefill clusters to the local ones."""

    @classmethod
    def of(cls, question: Question, prefill_site: str) -> "Stages":
        """Look at all workers of the request's model, with or without room."""
        far = [pool for _, pool in sorted(question.pools().items()) if is_prfaas(pool, prefill_site)]
        near = [pool for _, pool in sorted(question.pools().items()) if not is_prfaas(pool, prefill_site)]
        states = [s for pool in near for _, s in sorted(pool.by_bit.items()) if not s.draining]
        prfaas = tuple(s for pool in far for _, s in sorted(pool.by_bit.items()) if not s.draining)
        local = tuple(s for s in states if s.worker.role.can_prefill)
        decoders = tuple(s for s in states if s.worker.role.can_decode)
        fleet, now = question.fleet, question.pricer.now
        only_prefill = [s for s in local if s.worker.role is Role.PREFILL]
        only_decode = [s for s in decoders if s.worker.role is Role.DECODE]
        return cls(
            prfaas=prfaas,
            local=local,
            decoders=decoders,
            prfaas_queue_s=_mean(fleet.queue_s(s, now) for s in prfaas),
            local_queue_s=_mean(fleet.queue_s(s, now) for s in local),
            decode_use=_mean(fleet.running(s) / s.worker.requests_max for s in decoders),
            idlest_prefill=_spare(only_prefill, lambda s: fleet.queue_s(s, now)),
            idlest_decode=_spare(only_decode, lambda s: float(fleet.running(s))),
            sites=tuple((source.site, target.site) for source in far for target in near if target.by_bit),
        )


class Egress:
    """Bytes that were sent out over each way between sites within the last `window_s`."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._sites: dict[WorkerId, Site] = {}
        self._sent: deque[tuple[float, tuple[Site, Site], int]] = deque()
        self._bytes: dict[tuple[Site, Site], int] = {}

    def note(self, event: Event, commands: Sequence[Command]) -> None:
        """Learn where workers stand."""
        if isinstance(event, WorkerJoined):
            self._sites[event.worker.id] = event.worker.site
        for worker in gone(event, commands):
            self._sites.pop(worker, None)

    def sent(self, decision: Decision, now: float) -> None:
        """A decision moves blocks."""
        self._expire(now)
        for move in decision.plan.moves:
            source, target = self._sites.get(move.source), self._sites.get(move.target)
            if source is not None and target is not None and source != target:
                self._sent.append((now, (source, target), move.bytes))
                self._bytes[source, target] = self._bytes.get((source, target), 0) + move.bytes

    def utilisation(self, question: Question, ways: Iterable[tuple[Site, Site]], now: float) -> float:
        """The part of its capacity that was sent over the busiest of these ways; above 1 when more than it carries."""
        self._expire(now)
        topology = question.pricer.topology
        used = (self._bytes.get(way, 0) / (self._window_s * topology.rate(*way).bytes_per_s) for way in ways)
        return max(used, default=0.0)

    def bytes_per_s(self, question: Question, ways: Iterable[tuple[Site, Site]]) -> float:
        """What these ways carry together."""
        return sum(question.pricer.topology.rate(*way).bytes_per_s for way in ways)

    def __len__(self) -> int:
        """How many moves of the window are remembered."""
        return len(self._sent)

    def _expire(self, now: float) -> None:
        while self._sent and self._sent[0][0] < now - self._window_s:
            _, way, moved = self._sent.popleft()
            self._bytes[way] -= moved
            if not self._bytes[way]:
                del self._bytes[way]


class Threshold:
    """t in tokens: a base that is searched now and then, and a factor that traffic moves around it."""

    def __init__(self, tokens: float, step: float) -> None:
        self.base_tokens = tokens
        self.tokens = tokens
        self._step = step
        self._lengths: deque[int] = deque(maxlen=LENGTHS_MAX)

    def note(self, incremental_tokens: int) -> None:
        """One more request computes so many tokens."""
        self._lengths.append(incremental_tokens)

    def raise_(self) -> None:
        """Fewer prompts shall leave."""
        self.tokens = min(self.tokens * self._step, self.base_tokens * RANGE)

    def lower(self) -> None:
        """More prompts shall leave."""
        self.tokens = max(self.tokens / self._step, self.base_tokens / RANGE)

    def relax(self) -> None:
        """One step back towards the base."""
        if self.tokens > self.base_tokens:
            self.tokens = max(self.base_tokens, self.tokens / self._step)
        else:
            self.tokens = min(self.base_tokens, self.tokens * self._step)

    def search(self, question: Question, stages: Stages, bytes_per_s: float) -> None:
        """Set the base where the busiest of far prefill, near prefill and egress is least busy, over the recent
        incremental lengths: far and near then finish their shares at once (equation 7).
        """
        if len(self._lengths) < LENGTHS_MIN or not stages.prfaas or not stages.local or not bytes_per_s:
            return
        lengths = sorted(self._lengths)
        near_s = _sums(stages.local[0].rate.prefill_s(0, n) / len(stages.local) for n in lengths)
        far_s = _sums(stages.prfaas[0].rate.prefill_s(0, n) / len(stages.prfaas) for n in lengths)
        egress_s = _sums(question.profile.moved_bytes(n) / bytes_per_s for n in lengths)

        def busiest_s(tokens: int) -> float:
            short = bisect_right(lengths, tokens)
            return max(near_s[short], far_s[-1] - far_s[short], egress_s[-1] - egress_s[short])

        self.base_tokens = float(max(1, min(sorted({0, *lengths}), key=busiest_s)))


class Converter:
    """Wishes one local node at a time into the role that is short of nodes."""

    def __init__(self, every_s: float, surge_s: float, decode_full: float, decode_idle: float) -> None:
        self._every_s = every_s
        self._surge_s = surge_s
        self._full, self._idle = decode_full, decode_idle
        self._queue_s = self._use = 0.0
        self._latest: Stages | None = None
        self._next_s = every_s

    def sample(self, stages: Stages, now: float) -> None:
        """Look at the stages; what counts is their recent mean."""
        weight = MEMORY if self._latest is not None else 0.0
        self._queue_s = weight * self._queue_s + (1 - weight) * stages.local_queue_s
        self._use = weight * self._use + (1 - weight) * stages.decode_use
        self._latest = stages

    def wishes(self, now: float) -> list[tuple[WorkerId, Role, str]]:
        """At most one wish per period: prefill to decode or back, never the last node of a role."""
        if now < self._next_s or self._latest is None:
            return []
        self._next_s = now + self._every_s
        stages = self._latest
        told = f"decode slots {self._use:.0%} used, prefill queue {self._queue_s:.2f} s"
        if self._use > self._full and self._queue_s < self._surge_s / 4 and stages.idlest_prefill is not None:
            return [(stages.idlest_prefill, Role.DECODE, told)]
        if self._use < self._idle and self._queue_s > self._surge_s and stages.idlest_decode is not None:
            return [(stages.idlest_decode, Role.PREFILL, told)]
        return []


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _sums(values: Iterable[float]) -> Sequence[float]:
    return list(accumulate(values, initial=0.0))


def _spare(states: Sequence[WorkerState], load: Callable[[WorkerState], float]) -> WorkerId | None:
    """The least loaded, if it is not the last of its role."""
    if len(states) < 2:
        return None
    return min(states, key=lambda s: (load(s), s.bit)).worker.id
