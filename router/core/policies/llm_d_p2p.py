"""llm-d's peer-to-peer sharing: placed by the scorers, and the blocks that a peer has beyond that are pulled."""

from random import Random

from ..fleet import WorkerState
from ..preparation import Source
from ..question import Question
from ..types import Plan
from .baseline import place
from .llm_d_precise import LlmDPrecise
from .options import Count, NotNegative, Share


class LlmDP2p(LlmDPrecise):
    """`llm-d-precise` with llm-d's `p2p-source-producer` (llm-d-router 2026-08; its guide to P2P KV cache sharing).

    The worker is placed first. A peer is then drawn, with chance `1 / (1 + waiting requests)`, among those within one
    block of the longest cached prefix, and the computing worker pulls from it iff it leads by `lead_tokens`: 2,048 in
    the guide for gpt-oss-120b, 16,384 for GLM; meant to be set from the measured crossover of pulling and computing.

    Sees what `llm-d-precise` sees. Does not price the pull: neither bytes nor bandwidth nor distance enter.
    """

    name = "llm-d-p2p"

    def __init__(
        self,
        *,
        prefix_weight: NotNegative = 1.0,
        queue_weight: NotNegative = 1.0,
        kv_weight: NotNegative = 1.0,
        host_credit: Share = 0.8,
        lead_tokens: Count = 2048,
    ) -> None:
        super().__init__(
            prefix_weight=prefix_weight, queue_weight=queue_weight, kv_weight=kv_weight, host_credit=host_credit
        )
        self._lead_tokens = lead_tokens

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The highest score, with a pull where a peer leads by enough."""
        return place(
            question,
            lambda workers: self._pick(question, workers, random),
            find_source=lambda worker: self._peer(question, worker, random),
        )

    def _peer(self, question: Question, worker: WorkerState, random: Random) -> Source | None:
        held = {state.bit: question.held(state) for pool in question.source_pools() for state in pool.by_bit.values()}
        longest = max(held.values(), default=0)
        if (longest - question.held(worker)) * question.profile.block_tokens < self._lead_tokens:
            return None
        near = [
            state
            for pool in question.source_pools()
            for _, state in sorted(pool.by_bit.items())
            if held[state.bit] >= longest - 1
        ]
        waiting = question.fleet.ledger.queued_requests
        (peer,) = random.choices(near, weights=[1 / (1 + waiting(state.worker.id)) for state in near])
        lead_tokens = (held[peer.bit] - question.held(worker)) * question.profile.block_tokens
        return Source(peer, held[peer.bit]) if lead_tokens >= self._lead_tokens else None
