"""LMetric: tokens to prefill times requests in the batch, the smallest product wins."""

from random import Random

from ..fleet import WorkerState
from ..question import Question
from ..types import Plan
from .baseline import fewest_requests, place, uncached_tokens


class LMetric:
    """`score = new_prefill_tokens * batch_size`, argmin, no parameter (arXiv 2603.15202, OSDI'26).

    New prefill tokens are those queued on the worker and those of this prompt that it has not cached; that the queued
    ones count is inferred. Where both products are zero the fewer tokens win, since the paper's rule is silent there.
    Decode workers: the fewest requests.

    Sees the exact index, queues and batches. Does not see distances, speeds or lengths of answers.
    """

    name = "lmetric"

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The smallest product."""

        def score(worker: WorkerState) -> tuple[int, int, int]:
            queued_tokens = question.fleet.ledger.queued_tokens(worker.worker.id) + worker.foreign_tokens
            tokens = queued_tokens + uncached_tokens(question, worker)
            return tokens * question.fleet.running(worker), tokens, worker.bit

        return place(question, lambda workers: min(workers, key=score), pick_decode=fewest_requests(question))
