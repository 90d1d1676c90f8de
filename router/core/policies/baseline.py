"""What the baselines share: they choose workers, and the plan follows from whom they chose."""

from collections.abc import Callable, Sequence

from ..fleet import WorkerState
from ..preparation import Source
from ..question import Question
from ..types import Plan, PlanKind

Pick = Callable[[Sequence[WorkerState]], WorkerState]
FindSource = Callable[[WorkerState], Source | None]


def place(
    question: Question, pick: Pick, *, pick_decode: Pick | None = None, find_source: FindSource | None = None
) -> list[Plan]:
    """Let `pick` choose one worker that does all; in a disaggregated fleet, one to prefill and one to decode.

    `pick_decode` chooses the latter where its rule differs. A decode worker that has the whole prefix does all by
    itself. `find_source` names the worker from which the chosen one gets blocks first; nobody moves any without it.
    Empty when nobody may take the request.
    """
    prefillers = to_prefill(question)
    if prefillers and prefillers[0].worker.role.can_decode:
        worker = pick(prefillers)
        return [answered(question, worker, find_source(worker) if find_source else None)]
    decoders = list(question.decoders())
    if not decoders:
        return []
    decode = (pick_decode or pick)(decoders)
    if question.needs_no_prefill(decode):
        return [question.local(decode)]
    if not prefillers:
        return []
    prefill = pick(prefillers)
    plan = handed_over(question, prefill, decode, find_source(prefill) if find_source else None)
    return [] if plan is None else [plan]


def to_prefill(question: Question) -> list[WorkerState]:
    """Among whom a baseline picks who computes the prompt: those who do all, and where there is none, the others."""
    prefillers = list(question.prefillers())
    return [worker for worker in prefillers if worker.worker.role.can_decode] or prefillers


def answered(question: Question, worker: WorkerState, source: Source | None = None) -> Plan:
    """The plan in which one worker does everything, after getting from `source` what that one has beyond it."""
    held = question.held(worker)
    if source is None or source.blocks <= held or not question.may_move(PlanKind.FETCH, source.state, worker):
        return question.local(worker)
    pricer = question.pricer
    return pricer.plan(pricer.fetch(worker, held, source, question.request.prompt_tokens))


def handed_over(
    question: Question, prefill: WorkerState, decode: WorkerState, source: Source | None = None
) -> Plan | None:
    """The plan in which `prefill` gets blocks from `source`, computes the rest and hands all over to `decode`.

    A source that has everything sends it to `decode` directly. None when there is nothing to hand over.
    """
    held, pricer = question.held(prefill), question.pricer
    if source is None or source.blocks <= held or question.needs_no_prefill(decode):
        return question.handed_over(prefill, decode)
    if source.blocks >= pricer.reusable and question.may_move(PlanKind.DIRECT, source.state, decode):
        return question.direct(decode, source)
    if not question.may_move(PlanKind.FETCH, source.state, prefill):
        return question.handed_over(prefill, decode)
    if not question.may_move(PlanKind.REMOTE, prefill, decode):
        return None
    prepared = pricer.fetch(prefill, held, source, pricer.reusable * question.profile.block_tokens)
    return pricer.remote(prepared, decode, question.held(decode))


def fewest_requests(question: Question) -> Pick:
    """Picks the worker with the fewest requests, ours and those of others."""
    return lambda workers: min(workers, key=lambda w: (question.fleet.running(w), w.bit))


def uncached_tokens(question: Question, worker: WorkerState) -> int:
    """Tokens of the prompt that a worker would have to compute, by the exact index."""
    return question.request.prompt_tokens - question.held(worker) * question.profile.block_tokens
