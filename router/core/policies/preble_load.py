"""Preble's account of prefixes: which were asked for in the last minutes, where they are, and what that costs each GPU.

Rule 1: a prefix is kept while a request of the window, or a prefix below it, hangs on it; so the window bounds all.
Rule 2: the load of a worker is a running sum: what a prefix adds is taken back before it is added anew.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from ..rates import PrefillRate
from ..types import BlockKey, RequestId, WorkerId

TPOT_FIRST_S = 0.15
"""Before any was measured (WukLab/preble, `GlobalSchedulerWithTime`)."""
TPOT_SAMPLES = 200
OUTPUT_SAMPLES = 64


@dataclass(slots=True, eq=False)
class Prefix:
    """What one request added to the tree below `parent`: blocks of `tokens`, the last of `context_tokens`."""

    parent: "Prefix | None"
    keys: tuple[BlockKey, ...]
    tokens: int
    context_tokens: int
    children: dict["Prefix", None] = field(default_factory=dict)
    workers: dict[WorkerId, None] = field(default_factory=dict)
    references: int = 0
    requests: int = 0
    hit_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: deque[int] = field(default_factory=lambda: deque(maxlen=OUTPUT_SAMPLES))
    ttft_s: dict[WorkerId, deque[tuple[float, float]]] = field(default_factory=dict)
    rate: PrefillRate | None = None
    charged: tuple[tuple[WorkerId, ...], float] = ((), 0.0)

    @property
    def is_large(self) -> bool:
        """Whether it is more than all before it."""
        return self.tokens > self.context_tokens - self.tokens

    def important(self) -> "Prefix":
        """The nearest large prefix upwards: what requests are counted by."""
        found = self
        while not found.is_large and found.parent is not None:
            found = found.parent
        return found

    def allocated(self) -> dict[WorkerId, None]:
        """The workers of the nearest prefix upwards that has any."""
        found: Prefix | None = self
        while found is not None:
            if found.workers:
                return found.workers
            found = found.parent
        return {}

    def prefill_s(self) -> float:
        """`missrate * count * T_prefill`: what its requests of the window cost all its workers together."""
        if self.rate is None or not self.prompt_tokens:
            return 0.0
        miss_rate = 1 - self.hit_tokens / self.prompt_tokens
        return miss_rate * self.requests * self.rate.prefill_s(self.context_tokens - self.tokens, self.context_tokens)


@dataclass(frozen=True, slots=True)
class _Visit:
    at_s: float
    important: Prefix
    leaf: Prefix
    hit_tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class _InFlight:
    worker: WorkerId
    important: Prefix
    decode_tokens: float


class Histogram:
    """Prefixes of the last `window_s`, at most `requests_max` requests, and the load of each worker in seconds."""

    def __init__(self, window_s: float, requests_max: int) -> None:
        self._window_s = window_s
        self._requests_max = requests_max
        self._owner: dict[BlockKey, Prefix] = {}
        self._visits: deque[_Visit] = deque()
        self._hot: dict[Prefix, None] = {}
        self._in_flight: dict[RequestId, _InFlight] = {}
        self._prefill_s: dict[WorkerId, float] = {}
        self._decode_tokens: dict[WorkerId, float] = {}
        self._tpots: dict[WorkerId, deque[float]] = {}
        self._tpot_s: dict[WorkerId, float] = {}

    def __len__(self) -> int:
        """How many requests of the window and in flight are remembered."""
        return len(self._visits) + len(self._in_flight)

    def find(self, keys: Sequence[BlockKey]) -> tuple[int, Prefix | None]:
        """How many leading blocks are in the tree, and whose the last of them is."""
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if keys[middle] in self._owner else (low, middle)
        return low, self._owner[keys[low - 1]] if low else None

    def load_s(self, worker: WorkerId) -> float:
        """`sum over prefixes of missrate*count*T_prefill/workers + active*output*TPOT` of one worker."""
        tpot_s = self._tpot_s.get(worker, TPOT_FIRST_S)
        return self._prefill_s.get(worker, 0.0) + self._decode_tokens.get(worker, 0.0) * tpot_s

    def visit(
        self,
        request: RequestId,
        keys: tuple[BlockKey, ...],
        worker: WorkerId,
        *,
        prompt_tokens: int,
        block_tokens: int,
        output_tokens: int,
        rate: PrefillRate,
        now: float,
    ) -> Prefix | None:
        """A request was sent to a worker: its blocks join the tree, its prefix counts there; None without blocks."""
        self.end(request)
        self.expire(now)
        if not keys:
            return None
        depth, above = self.find(keys)
        leaf = self._leaf(keys, depth, above, block_tokens) if above is None or depth < len(keys) else above
        important = leaf.important()
        known = median(important.output_tokens) if important.output_tokens else output_tokens
        self._in_flight[request] = _InFlight(worker, important, known)
        self._decode_tokens[worker] = self._decode_tokens.get(worker, 0.0) + known
        hit_tokens = depth * block_tokens
        self._visits.append(_Visit(now, important, leaf, hit_tokens, prompt_tokens))
        leaf.references += 1
        important.requests += 1
        important.references += 1
        important.hit_tokens += hit_tokens
        important.prompt_tokens += prompt_tokens
        important.rate = rate
        if important.requests > 1:
            self._hot[important] = None
        self.allocate(leaf, worker)
        self._charge(important)
        return important

    def allocate(self, prefix: Prefix, worker: WorkerId) -> None:
        """A worker has a prefix from now on, and everything before it."""
        found: Prefix | None = prefix
        while found is not None:
            if worker not in found.workers:
                found.workers[worker] = None
                self._charge(found)
            found = found.parent

    def move(self, prefix: Prefix, worker: WorkerId) -> None:
        """A prefix and all below it are one worker's from now on."""
        waiting = [prefix]
        while waiting:
            moved = waiting.pop()
            moved.workers = {worker: None}
            self._charge(moved)
            waiting += moved.children

    def end(self, request: RequestId, output_tokens: int | None = None) -> None:
        """A request ended, with an answer of so many tokens or with none; unknown ones are ignored."""
        record = self._in_flight.pop(request, None)
        if record is None:
            return
        if output_tokens is not None and output_tokens > 1:
            record.important.output_tokens.append(output_tokens)
        self._decode_tokens[record.worker] -= record.decode_tokens

    def first_token(self, request: RequestId, ttft_s: float, now: float) -> None:
        """Note the TTFT of a prefix on its worker."""
        record = self._in_flight.get(request)
        if record is not None and record.important.references:
            times = record.important.ttft_s.setdefault(record.worker, deque())
            times.append((now, ttft_s))
            while times[0][0] < now - self._window_s:
                times.popleft()

    def decoded(self, worker: WorkerId, tpot_s: float) -> None:
        """A worker took so long per token of an answer."""
        times = self._tpots.setdefault(worker, deque(maxlen=TPOT_SAMPLES))
        times.append(tpot_s)
        self._tpot_s[worker] = median(times)

    def is_overloaded(self, prefix: Prefix, worker: WorkerId, now: float) -> bool:
        """Whether the mean TTFT of a prefix in the later half of the window is twice that in the earlier half."""
        halves: tuple[list[float], list[float]] = ([], [])
        for at_s, ttft_s in prefix.ttft_s.get(worker, ()):
            halves[at_s >= now - self._window_s / 2].append(ttft_s)
        earlier, later = halves
        return bool(earlier and later) and sum(later) / len(later) >= 2 * sum(earlier) / len(earlier)

    def hot(self, worker: WorkerId) -> list[Prefix]:
        """The prefixes of a worker that more than one request of the window asked for, the first seen first."""
        return [prefix for prefix in self._hot if worker in prefix.workers]

    def expire(self, now: float) -> None:
        """Forget what is older than the window, and the oldest beyond the bound."""
        while self._visits and (self._visits[0].at_s < now - self._window_s or len(self._visits) > self._requests_max):
            visit = self._visits.popleft()
            prefix = visit.important
            prefix.requests -= 1
            if prefix.requests == 1:
                del self._hot[prefix]
            prefix.hit_tokens -= visit.hit_tokens
            prefix.prompt_tokens -= visit.prompt_tokens
            if not prefix.requests:
                prefix.workers.clear()
                prefix.ttft_s.clear()
            self._charge(prefix)
            prefix.references -= 1
            visit.leaf.references -= 1
            self._prune(visit.leaf)
            self._prune(prefix)

    def lose(self, worker: WorkerId) -> None:
        """A worker is gone with all that it had."""
        for prefix in dict.fromkeys(self._owner.values()):
            prefix.ttft_s.pop(worker, None)
            if worker in prefix.workers:
                del prefix.workers[worker]
                self._charge(prefix)
        self._in_flight = {request: record for request, record in self._in_flight.items() if record.worker != worker}
        self._prefill_s.pop(worker, None)
        self._decode_tokens.pop(worker, None)
        self._tpots.pop(worker, None)
        self._tpot_s.pop(worker, None)

    def check(self) -> None:
        """Assert that sums equal their parts and nothing outlived the window."""
        prefixes = list(dict.fromkeys(self._owner.values()))
        assert all(prefix.references or prefix.children for prefix in prefixes)
        assert all(self._owner[key] is prefix for prefix in prefixes for key in prefix.keys)
        total_s = sum(prefix.charged[1] * len(prefix.charged[0]) for prefix in prefixes)
        assert abs(total_s - sum(self._prefill_s.values())) < 1e-6
        assert min(self._prefill_s.values(), default=0.0) > -1e-6
        assert len(self._visits) <= self._requests_max + 1, "one visit may wait for the next expiry"
        assert all(prefix.requests > 1 for prefix in self._hot)

    def _leaf(self, keys: tuple[BlockKey, ...], depth: int, above: Prefix | None, block_tokens: int) -> Prefix:
        own = keys[depth:]
        leaf = Prefix(parent=above, keys=own, tokens=len(own) * block_tokens, context_tokens=len(keys) * block_tokens)
        if above is not None:
            above.children[leaf] = None
        self._owner.update((key, leaf) for key in own)
        return leaf

    def _charge(self, prefix: Prefix) -> None:
        workers, each_s = prefix.charged
        for worker in workers:
            if worker in self._prefill_s:
                self._prefill_s[worker] -= each_s
        workers = tuple(prefix.workers) if prefix.requests else ()
        each_s = prefix.prefill_s() / len(workers) if workers else 0.0
        for worker in workers:
            self._prefill_s[worker] = self._prefill_s.get(worker, 0.0) + each_s
        prefix.charged = workers, each_s

    def _prune(self, prefix: Prefix) -> None:
        """Drop what nothing hangs on any more, upwards."""
        found: Prefix | None = prefix
        while found is not None and not found.references and not found.children:
            found.workers.clear()
            self._charge(found)
            for key in found.keys:
                self._owner.pop(key, None)
            if found.parent is not None:
                found.parent.children.pop(found, None)
            found.keys, found = (), found.parent
