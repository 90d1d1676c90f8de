"""One request of the workload on its way through the world, over all its attempts, and its record at the end."""

from dataclasses import dataclass, replace

from homing.router.core.types import Decision, Request

from ..measure.log import RequestRecord
from ..workload.arrival import Arrival
from .attempt import Attempt


@dataclass(slots=True, eq=False)
class Flight:
    """What happened to a request so far."""

    arrival: Arrival
    request: Request
    attempt: Attempt | None = None
    first_decision: Decision | None = None
    first_token_s: float | None = None
    """When the sender had it."""
    answered_tokens: int = 0
    """Tokens that earlier attempts sent before they broke."""

    def resumed(self) -> Request:
        """What remains to be answered: the prompt with the tokens that the sender has already."""
        done, arrival, request = self.answered_tokens, self.arrival, self.request
        if not done:
            return request
        tokens = arrival.prompt_tokens + done
        keys = (arrival.keys + arrival.answer_keys)[: tokens // arrival.block_tokens]
        left = max(1, request.max_output_tokens - done)
        return replace(request, block_keys=keys, prompt_tokens=tokens, max_output_tokens=left)

    @property
    def tokens_left(self) -> int:
        """The rest of the true answer."""
        return max(1, self.arrival.output_tokens - self.answered_tokens)

    def note_first_token(self, at_s: float) -> None:
        """The sender has a first token, whichever attempt it came from."""
        if self.first_token_s is None:
            self.first_token_s = at_s

    def record(self, outcome: str, ended_s: float, reason: str = "") -> RequestRecord:
        """How it ended; `ended_s` is when the sender knew."""
        arrival, attempt, first = self.arrival, self.attempt, self.first_decision
        output = self.answered_tokens
        if attempt is None:
            facts = {}
        else:
            facts = attempt.facts()
            output += attempt.generated
        tpot_s = None
        if self.first_token_s is not None and output > 1:
            tpot_s = (ended_s - self.first_token_s) / (output - 1)
        return RequestRecord(
            id=arrival.id,
            at_s=arrival.at_s,
            session=arrival.session or "",
            tenant=arrival.tenant,
            origin=arrival.origin or "",
            model=self.request.model,
            outcome=outcome,
            reason=reason,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=output,
            waited_s=ended_s - arrival.at_s if first is None else first.decided_s - arrival.at_s,
            ttft_s=None if self.first_token_s is None else self.first_token_s - arrival.at_s,
            tpot_s=tpot_s,
            e2e_s=ended_s - arrival.at_s,
            predicted_ttft_s=None if first is None else first.plan.estimate.ttft_s,
            finished_at_s=ended_s,
            **facts,
        )
