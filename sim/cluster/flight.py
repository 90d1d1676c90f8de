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
    """Tokens that attempts sent before they broke."""
    broke: bool = False
    """Whether `attempt` broke: its tokens are counted, and no other attempt has begun."""

    def begin(self, attempt: Attempt) -> None:
        """Another attempt, the first one included."""
        self.attempt, self.broke = attempt, False
        if self.first_decision is None:
            self.first_decision = attempt.decision

    def note_broke(self) -> None:
        """The attempt broke, and was cancelled: the sender has what it generated."""
        assert self.attempt is not None and not self.broke
        self.answered_tokens += self.attempt.generated
        self.broke = True

    @property
    def is_travelling(self) -> bool:
        """Whether somebody works on it."""
        return self.attempt is not None and not self.attempt.is_over

    def resumed(self) -> Request:
        """What remains to be answered: the prompt with the tokens that the sender has already."""
        done, arrival, request = self.answered_tokens, self.arrival, self.request
        if not done:
            return request
        tokens = arrival.prompt_tokens + done
        keys = (arrival.keys + arrival.answer_keys)[: tokens // arrival.block_tokens]
        left = max(1, request.max_output_tokens - done)
        return replace(
            request,
            block_keys=keys,
            prompt_tokens=tokens,
            max_output_tokens=left,
            # The first token was in time already.
            ttft_deadline_s=None,
        )

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
        facts = {} if attempt is None else attempt.facts()
        output = self.answered_tokens
        if attempt is not None and not self.broke:
            output += attempt.generated
        # A first token that was on its way when the request ended never came.
        first_token_s = self.first_token_s if (self.first_token_s or 0.0) <= ended_s else None
        tpot_s = None
        if first_token_s is not None and output > 1:
            tpot_s = (ended_s - first_token_s) / (output - 1)
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
            ttft_s=None if first_token_s is None else first_token_s - arrival.at_s,
            tpot_s=tpot_s,
            e2e_s=ended_s - arrival.at_s,
            predicted_ttft_s=None if first is None else first.plan.estimate.ttft_s,
            finished_at_s=ended_s,
            **facts,
        )
