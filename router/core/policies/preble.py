"""Preble's E2: exploit a long match, explore with a short one, and even out the load of prefixes."""

from collections.abc import Sequence
from random import Random

from ..commands import Command
from ..events import DecodeMeasured, Event, FirstToken, RequestFinished, WorkerJoined
from ..fleet import WorkerState
from ..question import Question
from ..rates import PrefillRate
from ..types import Decision, Plan, WorkerId
from .baseline import fewest_requests, place
from .options import AtLeastOne, Count, Positive
from .preble_load import Histogram, Prefix
from .watching import ended, gone, sent


class Preble:
    """The global scheduler of Preble (ICLR'25, arXiv 2407.00023; WukLab/preble, `GlobalSchedulerWithTime`).

    Where the prompt's new tokens are fewer than those of the longest known prefix: exploit, the least loaded of the
    workers that the prefix was allocated to. Otherwise explore, the least loaded of all. The load of a worker is `sum
    over prefixes of the window of missrate*count*T_prefill/workers + active*output*TPOT`. When the heaviest carries
    `rebalance_ratio` times the lightest, the cheapest hot prefixes move to the lightest, and a single hot one whose
    TTFT doubled within the window is given to both. Decode workers: the fewest requests.

    Sees what this router sent, TTFT, TPOT, lengths of answers and the prefill time of the worker it asked last. Does
    not see caches, queues, distances or bandwidth, and moves no KV. The cost of evictions is left out, as it is by
    default in its code; a tree node is what one request added, and is not split. The output of an active request counts
    as known when it was sent.
    """

    name = "preble"

    def __init__(
        self,
        *,
        window_s: Positive = 180.0,
        rebalance: bool = True,
        rebalance_ratio: AtLeastOne = 1.5,
        rebalance_after: Count = 50,
        requests_max: Count = 100_000,
    ) -> None:
        self.histogram = Histogram(window_s, requests_max)
        self._rebalance = rebalance
        self._ratio = rebalance_ratio
        self._rebalance_after = rebalance_after
        self._prefillers: dict[WorkerId, int] = {}
        self._rate: PrefillRate | None = None
        self._block_tokens = 0

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """Exploit or explore, by load."""
        self.histogram.expire(question.pricer.now)
        self._block_tokens = question.profile.block_tokens
        return place(question, lambda workers: self._pick(question, workers), pick_decode=fewest_requests(question))

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Follow requests and what they measured, rebalance after what was sent, forget who is gone."""
        match event:
            case WorkerJoined(worker=worker) if worker.role.can_prefill:
                self._prefillers[worker.id] = 0
            case FirstToken():
                self.histogram.first_token(event.request_id, event.ttft_s, now)
            case DecodeMeasured() if event.tokens > 0:
                self.histogram.decoded(event.worker_id, event.seconds / event.tokens)
            case RequestFinished():
                self.histogram.end(event.request_id, event.output_tokens)
            case _:
                pass
        for request in ended(event, commands):
            self.histogram.end(request)
        for lost in gone(event, commands):
            self._prefillers.pop(lost, None)
            self.histogram.lose(lost)
        for decision in sent(commands):
            self._count(decision, now)
        self.histogram.expire(now)

    def _pick(self, question: Question, workers: Sequence[WorkerState]) -> WorkerState:
        depth, prefix = self.histogram.find(question.request.block_keys)
        match_tokens = depth * question.profile.block_tokens
        candidates = workers
        if prefix is not None and question.request.prompt_tokens - match_tokens < match_tokens:
            allocated = prefix.allocated()
            candidates = [w for w in workers if w.worker.id in allocated] or workers
        best = min(candidates, key=lambda w: (self.histogram.load_s(w.worker.id), w.bit))
        self._rate = best.rate
        return best

    def _count(self, decision: Decision, now: float) -> None:
        request, worker = decision.request, decision.plan.prefill
        if self._rate is None:
            return
        self.histogram.visit(
            request.id,
            request.block_keys,
            worker,
            prompt_tokens=request.prompt_tokens,
            block_tokens=self._block_tokens,
            output_tokens=request.max_output_tokens,
            rate=self._rate,
            now=now,
        )
        if worker in self._prefillers:
            self._prefillers[worker] += 1
        enough = sum(self._prefillers.values()) >= self._rebalance_after * len(self._prefillers)
        if self._rebalance and enough and len(self._prefillers) > 1:
            self._even_out(now)

    def _even_out(self, now: float) -> None:
        loads = {worker: self.histogram.load_s(worker) for worker in sorted(self._prefillers)}
        heaviest, lightest = max(loads, key=loads.__getitem__), min(loads, key=loads.__getitem__)
        high_s, low_s = loads[heaviest], loads[lightest]
        if high_s < self._ratio * low_s or high_s <= low_s:
            return
        hot = self.histogram.hot(heaviest)
        if len(hot) == 1:
            if lightest not in hot[0].workers and self.histogram.is_overloaded(hot[0], heaviest, now):
                self.histogram.allocate(hot[0], lightest)
            return
        for prefix in sorted(hot, key=_cost_s):
            cost_s = _cost_s(prefix)
            if high_s < low_s + cost_s:
                return
            high_s, low_s = high_s - cost_s, low_s + cost_s
            self.histogram.move(prefix, lightest)


def _cost_s(prefix: Prefix) -> float:
    """What a prefix adds to each of its workers."""
    return prefix.charged[1]
