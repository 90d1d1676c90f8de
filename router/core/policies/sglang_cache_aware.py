"""SGLang's cache-aware policy: the approximate prefix while loads are even, the least loaded when they are not."""

from collections.abc import Sequence
from random import Random

from ..commands import Command
from ..events import Event
from ..fleet import WorkerState
from ..question import Question
from ..types import Plan
from .baseline import fewest_requests, place
from .options import AtLeastOne, Count, NotNegative, Share
from .remembered import TREE_BLOCKS_MAX, Remembered
from .watching import gone, sent


class SglangCacheAware:
    """`cache_aware` of sglang-router 0.3.2 with the defaults of its command line.

    With `max - min > balance_absolute` and `max > balance_relative * min` requests in flight: the least loaded.
    Otherwise the worker that was sent the longest prefix, if that is more than `cache_threshold` of the prompt, else
    the one with the smallest tree. Decode workers: the fewest requests (its `select_worker_pair`).

    Sees what this router sent and its own requests in flight. Does not see caches, evictions, reports of load or
    distances. Its tree is bounded in characters and pruned every 120 s; here it is bounded in blocks, at once.
    """

    name = "sglang-cache-aware"

    def __init__(
        self,
        *,
        cache_threshold: Share = 0.3,
        balance_absolute: NotNegative = 64,
        balance_relative: AtLeastOne = 1.5,
        tree_blocks_max: Count = TREE_BLOCKS_MAX,
    ) -> None:
        self._cache_threshold = cache_threshold
        self._balance_absolute = balance_absolute
        self._balance_relative = balance_relative
        self.tree = Remembered(tree_blocks_max)

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The longest approximate prefix, or the least loaded."""
        return place(question, lambda workers: self._pick(question, workers), pick_decode=fewest_requests(question))

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Remember what was sent to whom, and forget who is gone."""
        for worker in gone(event, commands):
            self.tree.forget(worker)
        for decision in sent(commands):
            self.tree.sent(decision.plan.prefill, decision.request.block_keys)

    def _pick(self, question: Question, workers: Sequence[WorkerState]) -> WorkerState:
        in_flight = question.fleet.ledger.running
        loads = [
            in_flight(state.worker.id)
            for pool in question.pools().values()
            for state in pool.by_bit.values()
            if state.worker.role.can_prefill and not state.draining
        ]
        if max(loads) - min(loads) > self._balance_absolute and max(loads) > self._balance_relative * min(loads):
            return min(workers, key=lambda w: (in_flight(w.worker.id), w.bit))
        matched = self.tree.match(question.request.block_keys)
        best = max(workers, key=lambda w: (matched.get(w.worker.id, 0), -w.bit))
        match_tokens = matched.get(best.worker.id, 0) * question.profile.block_tokens
        if match_tokens / question.request.prompt_tokens > self._cache_threshold:
            return best
        return min(workers, key=lambda w: (self.tree.size(w.worker.id), w.bit))
