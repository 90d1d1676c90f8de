"""Mooncake's Conductor: the shortest estimated TTFT, where a much longer prefix is fetched first."""

from collections.abc import Sequence
from random import Random

from ..fleet import WorkerState
from ..preparation import Source
from ..question import Question
from ..types import Plan, Site
from .baseline import fewest_requests, place
from .options import AtLeastOne


class MooncakeAlg1:
    """Algorithm 1, KVCache-centric scheduling (Mooncake, FAST'25; arXiv 2407.00079), without its admission control.

    For each prefill instance: where the longest prefix of all is more than `balancing_threshold` times its own (none of
    its own counts as infinitely less), `ttft = transfer + queue + prefill` with that prefix, else `ttft = queue +
    prefill` with its own. The shortest wins; if it was the first kind the blocks are copied to it, which is also how
    hot prefixes multiply. Decode: the instance with the fewest requests.

    Sees the exact index, its promises, prefill times by length and prefix, transfer times under present congestion.
    Does not see tolls, overlaps of transfer with queue or layers with compute, or distances to the sender. The
    threshold is not published ("adjusted manually"): 2 is ours. Of holders of equally long prefixes the nearest to each
    instance is meant, since its one cluster makes no difference. Its rejections on a predicted breach of the SLO are
    left to admission, which all policies share.
    """

    name = "mooncake-alg1"

    def __init__(self, *, balancing_threshold: AtLeastOne = 2.0) -> None:
        self._balancing_threshold = balancing_threshold

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The shortest estimated TTFT."""
        longest = _longest_by_site(question)

        def source(worker: WorkerState) -> Source | None:
            return self._source(question, worker, longest)

        def pick(workers: Sequence[WorkerState]) -> WorkerState:
            return min(workers, key=lambda w: (self.ttft_s(question, w, source(w)), w.bit))

        return place(question, pick, pick_decode=fewest_requests(question), find_source=source)

    def ttft_s(self, question: Question, worker: WorkerState, source: Source | None) -> float:
        """`transfer + queue + prefill`, each waiting for the one before."""
        profile, pricer = question.profile, question.pricer
        held = question.held(worker)
        transfer_s = 0.0
        if source is not None:
            moved_bytes = profile.moved_bytes((source.blocks - held) * profile.block_tokens)
            transfer_s = pricer.transfer_s(source.state.worker.site, worker.worker.site, moved_bytes)
            held = source.blocks
        prefill_s = worker.rate.prefill_s(held * profile.block_tokens, question.request.prompt_tokens)
        return transfer_s + question.fleet.queue_s(worker, pricer.now) + prefill_s

    def _source(self, question: Question, worker: WorkerState, longest: dict[Site, Source]) -> Source | None:
        """The nearest holder of the longest prefix, where that is long enough to be fetched."""
        if not longest:
            return None
        blocks = next(iter(longest.values())).blocks
        held = question.held(worker)
        if blocks <= held * self._balancing_threshold:
            return None
        target = worker.worker.site
        moved_bytes = question.profile.moved_bytes((blocks - held) * question.profile.block_tokens)
        return min(
            longest.values(),
            key=lambda source: question.pricer.transfer_s(source.state.worker.site, target, moved_bytes),
        )


def _longest_by_site(question: Question) -> dict[Site, Source]:
    """One holder of the longest prefix per site that has any, the smallest numbers first; empty when nobody has any."""
    found: dict[Site, Source] = {}
    longest = 1
    for pool in question.source_pools():
        for _, state in sorted(pool.by_bit.items()):
            held = question.held(state)
            if held > longest:
                found, longest = {}, held
            if held == longest:
                found.setdefault(pool.site, Source(state, held))
    return found
