"""The two clusters of prefill-as-a-service, and how a request is routed between them for a given threshold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..fleet import Pool, WorkerState
from ..preparation import Source
from ..question import Question
from ..types import Plan, Role
from .baseline import answered, fewest_requests, handed_over


@dataclass(frozen=True, slots=True)
class Clusters:
    """The workers that may take a request: those that only prefill, far away, and those of the local cluster."""

    prfaas: tuple[WorkerState, ...]
    local: tuple[WorkerState, ...]
    """That prefill in the local cluster."""
    decoders: tuple[WorkerState, ...]
    """That decode there."""

    @classmethod
    def of(cls, question: Question, prefill_site: str) -> "Clusters":
        """Sort those that may take a request into clusters."""
        far = {pool.site for pool in question.pools().values() if is_prfaas(pool, prefill_site)}
        prefillers = list(question.prefillers())
        return cls(
            prfaas=tuple(w for w in prefillers if w.worker.site in far),
            local=tuple(w for w in prefillers if w.worker.site not in far),
            decoders=tuple(w for w in question.decoders() if w.worker.site not in far),
        )


def is_prfaas(pool: Pool, prefill_site: str) -> bool:
    """Whether a pool is a prefill cluster: it stands in the site that is named so, or, none named, only prefills."""
    if prefill_site:
        return pool.site == prefill_site
    return set(+pool.roles) == {Role.PREFILL}


def route(
    question: Question, clusters: Clusters, *, prefill_site: str, threshold_tokens: float, abundant: bool
) -> list[Plan]:
    """PrfaaS (arXiv 2604.15039) section 3.4: prompts whose incremental length is above the threshold go to the prefill
    cluster.

    With scarce bandwidth the incremental length is what the local cluster's cache leaves, with abundant what the longer
    of both caches leaves, which is then transferred to where the request goes. A cluster where nobody may take the
    request is passed over.
    """
    if not clusters.decoders:
        return []
    held_blocks = _longest(question, clusters.local)
    if abundant:
        held_blocks = max(held_blocks, _longest(question, clusters.prfaas))
    incremental_tokens = question.request.prompt_tokens - held_blocks * question.profile.block_tokens
    is_offloaded = bool(clusters.prfaas) and (incremental_tokens > threshold_tokens or not clusters.local)
    among = clusters.prfaas if is_offloaded else clusters.local
    if not among:
        return _without_prefill(question, clusters)
    worker = min(among, key=lambda w: (soonest_s(question, w), w.bit))
    source = None
    if abundant:
        source = _source(question, worker, lambda pool: is_prfaas(pool, prefill_site) is not is_offloaded)
    if not is_offloaded and worker.worker.role.can_decode:
        return [answered(question, worker, source)]
    decode = fewest_requests(question)(clusters.decoders)
    if question.needs_no_prefill(decode):
        return [question.local(decode)]
    plan = handed_over(question, worker, decode, source)
    return [] if plan is None else [plan]


def soonest_s(question: Question, worker: WorkerState) -> float:
    """`queue + prefill`: the cache-affine node of a cluster is the one that is done first (the paper names no rule)."""
    cached_tokens = question.held(worker) * question.profile.block_tokens
    prefill_s = worker.rate.prefill_s(cached_tokens, question.request.prompt_tokens)
    return question.fleet.queue_s(worker, question.pricer.now) + prefill_s


def _longest(question: Question, workers: Sequence[WorkerState]) -> int:
    return max((question.held(worker) for worker in workers), default=0)


def _without_prefill(question: Question, clusters: Clusters) -> list[Plan]:
    decode = fewest_requests(question)(clusters.decoders)
    return [question.local(decode)] if question.needs_no_prefill(decode) else []


def _source(question: Question, worker: WorkerState, is_elsewhere: Callable[[Pool], bool]) -> Source | None:
    """The holder of the longest prefix in the other cluster, if that is longer than the worker's own."""
    holders = [
        (question.held(state), -state.bit, state)
        for pool in question.source_pools()
        if is_elsewhere(pool)
        for state in pool.by_bit.values()
    ]
    blocks, _, state = max(holders, default=(0, 0, worker), key=lambda holder: holder[:2])
    return Source(state, blocks) if blocks > question.held(worker) else None
