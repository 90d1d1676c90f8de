"""One request that the router carries out itself: from its arrival to its last token, over as many workers as it takes.

Rule 1: no token is sent twice and none is lost. After a failure the next worker gets the prompt with the tokens that
were sent already, and goes on behind them.
Rule 2: the core hears of everything: first token, end, failure; whoever leaves early leaves nothing booked.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace

import grpc

from homing.router.core.blocks import block_keys, pack_tokens
from homing.router.core.commands import Abandon, Cancel, Dispatch, Reject
from homing.router.core.events import (
    DecodeMeasured,
    DispatchFailed,
    FirstToken,
    LinkMeasured,
    PrefillFinished,
    RequestFinished,
)
from homing.router.core.types import Decision, Outcome, Request

from .attempt import Accepted, Attempt, Broke, Done, NewTokens, Note, Prefilled, Wishes
from .driver import Driver, RequestCommand
from .prompts import Prompt
from .wire import STATUS, common_pb2, outcome_events
from .workers import Workers

log = logging.getLogger(__name__)


class RefusedRequestError(Exception):
    """The request ends without an answer, or without the rest of it: what the sender is told."""

    def __init__(self, code: grpc.StatusCode, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


def refused(command: Reject | Cancel) -> RefusedRequestError:
    """What a sender is told when the core says no, or gives its request up."""
    if isinstance(command, Cancel):
        return RefusedRequestError(grpc.StatusCode.DEADLINE_EXCEEDED, command.reason)
    return RefusedRequestError(STATUS[command.reason], f"{command.reason}: {command.detail}", command.retry_after_s)


@dataclass(slots=True)
class Tally:
    """What a generation has come to."""

    output_tokens: int = 0
    finish_reason: str = ""
    predicted_ttft_s: float = 0.0
    ttft_s: float | None = None
    dispatches: int = 0
    computed_tokens: int = 0
    transfers: list[common_pb2.TransferOutcome] = field(default_factory=list)
    prefills: list[common_pb2.PrefillOutcome] = field(default_factory=list)


Part = Decision | tuple[int, ...]


class Generation:
    """Drives one request. Iterate `parts()`: decisions and tokens in order; afterwards `tally` is complete."""

    def __init__(self, driver: Driver, workers: Workers, request: Request, prompt: Prompt, wishes: Wishes) -> None:
        self.tally = Tally()
        self._driver = driver
        self._workers = workers
        self._request = request
        self._asked = prompt
        self._prompt = prompt
        self._wishes = wishes
        self._emitted: list[int] = []
        self._attempt: Attempt | None = None
        self._dispatched_s = 0.0
        self._first_token_s = 0.0
        self._ended = False

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The answer as it comes. Raises RefusedRequestError; closing the iterator early cancels the request."""
        mailbox = self._driver.open(self._request)
        try:
            while not self._ended:
                item = await self._next(mailbox)
                if isinstance(item, Dispatch):
                    await self._begin(item.decision)
                    yield item.decision
                elif isinstance(item, NewTokens):
                    self._take(item)
                    yield item.ids
                else:
                    self._handle(item)
        finally:
            if self._attempt is not None:
                await self._attempt.close()
            self._driver.close_request(self._request.id)

    async def _next(self, mailbox: asyncio.Queue[RequestCommand]) -> RequestCommand | Note:
        """The next command of the core or note of the attempt; commands first."""
        if not mailbox.empty():
            return mailbox.get_nowait()
        if self._attempt is None:
            return await mailbox.get()
        command = asyncio.ensure_future(mailbox.get())
        note = asyncio.ensure_future(self._attempt.notes.get())
        try:
            await asyncio.wait([command, note], return_when=asyncio.FIRST_COMPLETED)
            if note.done() and command.done():
                mailbox.put_nowait(command.result())
            return note.result() if note.done() else command.result()
        finally:
            command.cancel()
            note.cancel()

    async def _begin(self, decision: Decision) -> None:
        if self._attempt is not None:
            await self._attempt.close()
        self.tally.dispatches += 1
        self._dispatched_s = self._driver.now()
        if not self._emitted:
            self.tally.predicted_ttft_s = decision.plan.estimate.ttft_s
        left = decision.request.max_output_tokens
        self._attempt = Attempt(decision, self._prompt, left, self._wishes, self._workers)
        self._attempt.start()

    def _handle(self, item: RequestCommand | Note) -> None:
        """Everything that is neither a dispatch nor tokens."""
        request = self._request.id
        match item:
            case Accepted():
                self._measure_way(item.after_s)
            case Prefilled():
                self._account(item.reply.transfers, item.reply.prefills)
                self._driver.feed(PrefillFinished(request_id=request))
            case Done():
                self.tally.finish_reason = item.finish_reason
                self._finish()
            case Broke():
                self._broke(item)
            case Abandon():
                if self._attempt is not None:
                    self._attempt.abandon(item.worker_id, item.reason)
            case Cancel() | Reject():
                self._ended = True
                raise refused(item)

    def _take(self, tokens: NewTokens) -> None:
        now = self._driver.now()
        if tokens.start is not None:
            self._first_token_s = now
            self._account(tokens.start.transfers, tokens.start.prefills)
            self._driver.feed(FirstToken(request_id=self._request.id, ttft_s=now - self._dispatched_s))
        if self.tally.ttft_s is None:
            self.tally.ttft_s = now - self._dispatched_s
        self._emitted += tokens.ids
        self.tally.output_tokens = len(self._emitted)

    def _finish(self) -> None:
        self._ended = True
        self.tally.computed_tokens = sum(
            part.computed_to_tokens - part.computed_from_tokens for part in self.tally.prefills
        )
        if self._attempt is not None and self._first_token_s:
            event = DecodeMeasured(
                worker_id=self._attempt.decision.plan.decode,
                tokens=len(self._emitted) - 1,
                seconds=self._driver.now() - self._first_token_s,
            )
            self._driver.feed(event)
        finished = RequestFinished(
            request_id=self._request.id, outcome=Outcome.FINISHED, output_tokens=len(self._emitted)
        )
        self._driver.feed(finished)

    def _broke(self, broke: Broke) -> None:
        log.warning("request %s: attempt failed: %s", self._request.id, broke.reason)
        resume_as = self._remaining() if broke.retryable else None
        self._driver.feed(
            DispatchFailed(
                request_id=self._request.id, worker_id=broke.worker, reason=broke.reason, resume_as=resume_as
            )
        )
        if resume_as is None:
            self._ended = True
            raise RefusedRequestError(broke.code, broke.reason)

    def _remaining(self) -> Request:
        """What is left to do: the prompt with the tokens that were sent, and fewer to come."""
        if not self._emitted:
            return self._request
        packed = self._asked.packed + pack_tokens(self._emitted)
        self._prompt = replace(self._asked, packed=packed)
        block_tokens = self._driver.scheduler.models[self._request.model].block_tokens
        return replace(
            self._request,
            block_keys=block_keys(packed, block_tokens, seed=self._asked.key_seed),
            prompt_tokens=self._prompt.tokens,
            max_output_tokens=self._request.max_output_tokens - len(self._emitted),
            # The first token was in time already.
            ttft_deadline_s=None,
        )

    def _measure_way(self, after_s: float) -> None:
        """Sending and the worker's acceptance: one round trip between this router and the worker."""
        if self._attempt is None:
            return
        state = self._driver.scheduler.fleet.get(self._attempt.decision.plan.decode)
        if state is not None:
            site = self._driver.scheduler.world.site
            self._driver.feed(LinkMeasured(source=site, target=state.worker.site, rtt_s=after_s))

    def _account(
        self, transfers: Iterable[common_pb2.TransferOutcome], prefills: Iterable[common_pb2.PrefillOutcome]
    ) -> None:
        """Let the core learn from what workers measured, and keep it for the summary."""
        self.tally.transfers += transfers
        self.tally.prefills += prefills
        for event in outcome_events(self._request.id, transfers, prefills):
            self._driver.feed(event)
