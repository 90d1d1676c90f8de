"""What the baselines share: they choose workers, and the plan follows from whom they chose."""

from collections.abc import Callable, Sequence

from ..fleet import WorkerState
from ..question import Question
from ..types import Plan

Pick = Callable[[Sequence[WorkerState]], WorkerState]


def place(question: Question, pick: Pick) -> list[Plan]:
    """Let `pick` choose one worker that does all; in a disaggregated fleet, one to prefill and one to decode.

    A decode worker that has the whole prefix does all by itself. Empty when nobody may take the request.
    """
    alone = [worker for worker in question.prefillers() if worker.worker.role.can_decode]
    if alone:
        return [question.local(pick(alone))]
    decoders = list(question.decoders())
    prefillers = list(question.prefillers())
    if not decoders:
        return []
    decode = pick(decoders)
    if question.needs_no_prefill(decode):
        return [question.local(decode)]
    if not prefillers:
        return []
    plan = question.handed_over(pick(prefillers), decode)
    return [] if plan is None else [plan]
