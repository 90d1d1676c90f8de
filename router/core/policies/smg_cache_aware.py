"""SMG's cache-aware policy: pin to the holder of the approximate prefix, spill when it is loaded beyond others."""

from collections.abc import Sequence

from ..fleet import WorkerState
from ..question import Question
from .approximate_tree import ApproximateTree


class SmgCacheAware(ApproximateTree):
    """`cache_aware` of Shepherd Model Gateway (smg) 1.13 with the defaults of its command line.

    The worker that was sent the longest prefix, if that is at least `cache_threshold` of the prompt; among equals the
    one with the fewest requests in flight, then the smaller tree. When that worker has more than `balance_absolute`
    requests above the mean and more than `balance_relative` times the mean, or when no prefix is long enough: the least
    loaded. Decode workers: the fewest requests.

    Sees what this router sent and its own requests in flight. Does not see reports of load or distances; where smg has
    KV events it uses them, here it is its approximate tree. That short matches go to the least loaded (as smg does with
    events) and not to the smallest tree is inferred.
    """

    name = "smg-cache-aware"

    def _pick(self, question: Question, workers: Sequence[WorkerState]) -> WorkerState:
        loads = {w.bit: question.fleet.ledger.running(w.worker.id) for w in workers}
        matched = self.tree.match(question.request.block_keys)

        def order(worker: WorkerState) -> tuple[int, int, int, int]:
            name = worker.worker.id
            return -matched.get(name, 0), loads[worker.bit], self.tree.size(name), worker.bit

        best = min(workers, key=order)
        match_tokens = matched.get(best.worker.id, 0) * question.profile.block_tokens
        mean = sum(loads.values()) / len(loads)
        load = loads[best.bit]
        is_overloaded = load > mean + self._balance_absolute and load > self._balance_relative * mean
        if match_tokens >= self._cache_threshold * question.request.prompt_tokens and not is_overloaded:
            return best
        return min(workers, key=lambda w: (loads[w.bit], w.bit))
