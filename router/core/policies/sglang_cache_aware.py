"""SGLang's cache-aware policy: the approximate prefix while loads are even, the least loaded when they are not."""

from collections.abc import Sequence

from ..fleet import WorkerState
from ..question import Question
from .approximate_tree import ApproximateTree


class SglangCacheAware(ApproximateTree):
    """`cache_aware` of sglang-router 0.3.2 with the defaults of its command line.

    With `max - min > balance_absolute` and `max > balance_relative * min` requests in flight: the least loaded.
    Otherwise the worker that was sent the longest prefix, if that is more than `cache_threshold` of the prompt, else
    the one with the smallest tree. Decode workers: the fewest requests (its `select_worker_pair`).

    Sees what this router sent and its own requests in flight. Does not see caches, evictions, reports of load or
    distances. Its tree is bounded in characters and pruned every 120 s; here it is bounded in blocks, at once.
    """

    name = "sglang-cache-aware"

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
