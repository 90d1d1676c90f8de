"""GORGO: round trip, uncached tokens and queued tokens in one weighted sum, with rates and weights learned online."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ..commands import Command
from ..events import Event, FirstToken, WorkerJoined
from ..fleet import WorkerState
from ..question import Question
from ..types import Decision, Plan, RequestId, Site, WorkerId
from .baseline import fewest_requests, place
from .gorgo_rates import Sample, TtftRates
from .gorgo_tuner import Tuner, Weights
from .options import Count, NotNegative
from .remembered import TREE_BLOCKS_MAX, Remembered
from .watching import ended, gone, sent


@dataclass(frozen=True, slots=True)
class _Sent:
    worker: WorkerId
    prompt_tokens: int
    uncached_tokens: int
    queued_tokens: int


class Gorgo:
    """`score = rtt_weight*rtt_ms + prefill_weight*uncached + queue_weight*queued`, argmin (arXiv 2602.11688; gorgo-lb
    0.2.0). The defaults are what its tuner had learned after 672 samples.

    `queued` are all prompt tokens sent to a worker and not finished, whatever was cached. With `learn_rates` it is
    `gorgo-2d`: `rtt_weight*rtt + P*uncached + Q*queue_weight*queued` in ms, with P and Q from an online least-squares
    fit of TTFT. With `tune` the two weights of round trip and queue are searched by a (1+1) evolution strategy on the
    p95 of TTFT, within its published bounds. Decode workers: the fewest requests (the paper has no disaggregation).

    Sees round trips, what this router sent (its prefix tree and its queue) and each TTFT. Does not see caches, reports
    of load, prefill speeds by length or bandwidth, and moves no KV. Round trips are those that this router has learned,
    with the constant overhead of a dispatch; that its tree is approximate is inferred.
    """

    name = "gorgo"

    def __init__(
        self,
        *,
        rtt_weight: NotNegative = 0.276,
        prefill_weight: NotNegative = 1.0,
        queue_weight: NotNegative = 0.5,
        learn_rates: bool = False,
        tune: bool = False,
        tree_blocks_max: Count = TREE_BLOCKS_MAX,
    ) -> None:
        self.tree = Remembered(tree_blocks_max)
        self.rates = TtftRates() if learn_rates else None
        self.tuner = Tuner(Weights(rtt_weight, queue_weight)) if tune else None
        self._weights = Weights(rtt_weight, queue_weight)
        self._prefill_weight = prefill_weight
        self._sites: dict[WorkerId, Site] = {}
        self._sent: dict[RequestId, _Sent] = {}
        self._queued_tokens: dict[WorkerId, int] = {}

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The lowest score."""
        weights = self.tuner.weights(random) if self.tuner else self._weights
        matched = self.tree.match(question.request.block_keys)

        def pick(workers: Sequence[WorkerState]) -> WorkerState:
            return min(workers, key=lambda w: (self._score(question, w, matched, weights), w.bit))

        return place(question, pick, pick_decode=fewest_requests(question))

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Follow requests, learn from first tokens, forget who is gone."""
        if isinstance(event, WorkerJoined):
            self._sites[event.worker.id] = event.worker.site
        elif isinstance(event, FirstToken):
            self._learn(event)
        for request in ended(event, commands):
            self._release(request)
        for worker in gone(event, commands):
            self.tree.forget(worker)
            self._sites.pop(worker, None)
        for decision in sent(commands):
            self._follow(decision)

    def in_flight(self) -> int:
        """How many requests are followed."""
        return len(self._sent)

    def queued_tokens(self, worker: WorkerId) -> int:
        """Prompt tokens sent to a worker and not finished."""
        return self._queued_tokens.get(worker, 0)

    def _score(self, question: Question, worker: WorkerState, matched: dict[str, int], weights: Weights) -> float:
        rtt_ms = question.pricer.network_s(worker) * 1e3
        name = worker.worker.id
        uncached = question.request.prompt_tokens - matched.get(name, 0) * question.profile.block_tokens
        queued = self._queued_tokens.get(name, 0)
        fitted = self.rates.fitted if self.rates else None
        if fitted is None:
            return weights.rtt * rtt_ms + self._prefill_weight * uncached + weights.queue * queued
        prefill_ms, queue_ms = fitted
        return weights.rtt * rtt_ms + prefill_ms * uncached + queue_ms * weights.queue * queued

    def _follow(self, decision: Decision) -> None:
        request, worker = decision.request, decision.plan.prefill
        self._release(request.id)
        matched = self.tree.match(request.block_keys).get(worker, 0)
        queued = self._queued_tokens.get(worker, 0)
        uncached = 1 - matched / max(1, len(request.block_keys))
        self._sent[request.id] = _Sent(worker, request.prompt_tokens, round(uncached * request.prompt_tokens), queued)
        self._queued_tokens[worker] = queued + request.prompt_tokens
        self.tree.sent(worker, request.block_keys)

    def _learn(self, event: FirstToken) -> None:
        record = self._sent.get(event.request_id)
        if record is None:
            return
        ttft_ms = event.ttft_s * 1e3
        site = self._sites.get(record.worker)
        if self.rates is not None and site is not None:
            self.rates.learn(Sample(site, record.uncached_tokens, record.queued_tokens, ttft_ms))
        if self.tuner is not None:
            self.tuner.learn(ttft_ms)

    def _release(self, request: RequestId) -> None:
        record = self._sent.pop(request, None)
        if record is not None:
            left = self._queued_tokens[record.worker] - record.prompt_tokens
            if left:
                self._queued_tokens[record.worker] = left
            else:
                del self._queued_tokens[record.worker]
