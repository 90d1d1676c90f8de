"""llm-d's precise scheduling: a weighted sum of scorers, each in [0, 1], the highest wins."""

from collections.abc import Sequence
from random import Random

from ..fleet import WorkerState
from ..question import Question
from ..types import Plan, Tier
from .baseline import place
from .options import NotNegative, Share


class LlmDPrecise:
    """`precise-prefix-cache-scorer`, `queue-scorer` and `kv-cache-utilization-scorer` of llm-d-router (2026-08).

    `prefix_weight * prefix + queue_weight * queue + kv_weight * kv`, highest wins, ties are drawn. `prefix` is the
    matched part of the prompt's blocks, of which one in host memory counts `host_credit`; `queue` is `(max - q) / (max
    - min)` over the waiting requests of all candidates, 1 where they are equal; `kv` is the free part of the KV cache.
    In a disaggregated fleet both profiles score in this way.

    Sees the exact index, queues and KV use, as fresh as this router knows them; llm-d scrapes them every 50 ms. Does
    not see lengths of prompts in a queue, speeds, distances or bandwidth.
    """

    name = "llm-d-precise"

    def __init__(
        self,
        *,
        prefix_weight: NotNegative = 1.0,
        queue_weight: NotNegative = 1.0,
        kv_weight: NotNegative = 1.0,
        host_credit: Share = 0.8,
    ) -> None:
        self._prefix_weight = prefix_weight
        self._queue_weight = queue_weight
        self._kv_weight = kv_weight
        self._host_credit = host_credit

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The highest score."""
        return place(question, lambda workers: self._pick(question, workers, random))

    def scores(self, question: Question, workers: Sequence[WorkerState]) -> list[float]:
        """One weighted sum per candidate, in their order."""
        waiting = [question.fleet.ledger.queued_requests(w.worker.id) for w in workers]
        most, span = max(waiting), max(waiting) - min(waiting)
        return [
            self._prefix_weight * self._prefix(question, worker)
            + self._queue_weight * ((most - queued) / span if span else 1.0)
            + self._kv_weight * _free_share(question, worker)
            for worker, queued in zip(workers, waiting, strict=True)
        ]

    def _pick(self, question: Question, workers: Sequence[WorkerState], random: Random) -> WorkerState:
        scores = self.scores(question, workers)
        best = max(scores)
        return random.choice([w for w, score in zip(workers, scores, strict=True) if score == best])

    def _prefix(self, question: Question, worker: WorkerState) -> float:
        total = len(question.request.block_keys)
        if not total:
            return 0.0
        held = question.held(worker)
        return (held + self._host_credit * question.held_on(worker, Tier.HOST, held)) / total


def _free_share(question: Question, worker: WorkerState) -> float:
    used = question.fleet.ledger.blocks(worker.worker.id) + worker.foreign_blocks
    return 1.0 - min(1.0, used / worker.worker.kv_blocks_max)
