"""One call carried to engines until one answers it.

Rule 1: as long as the client was sent nothing, a failure is another engine's chance; afterwards it is the end, told as
an event in a stream.
Rule 2: the core hears of everything: first token, end, failure; whoever leaves early leaves nothing booked.
Rule 3: a client that reads slowly slows its engine's connection down, and nothing piles up here.
"""

import asyncio
import logging
from collections import deque
from typing import Final

from homing.router.actuators.types import Actuator, Prepared
from homing.router.core.commands import Abandon, Cancel, Dispatch, Reject
from homing.router.core.types import Decision, Outcome, Request, WorkerId
from homing.router.tokens.types import PromptTokens

from ..backends.endpoint import Endpoint
from ..driver import RequestCommand
from .calls import PROMPT_PATHS, Call
from .errors import DoorError, refused
from .http import Responder
from .orders import prepare
from .telling import Carrier, Telling
from .upstream import Answer, Head, UpstreamError
from .usage import StreamReader, error_event, usage_in

log = logging.getLogger(__name__)

WHOLE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Answers up to this size are read to their end before the client gets them, so that a failure can be made good."""
_RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_NOT_PASSED: Final = frozenset(
    {"connection", "content-length", "date", "keep-alive", "server", "trailer", "transfer-encoding", "upgrade"}
)


class Forwarding:
    """Drives one call. `run` returns when the client has its answer; DoorError when it gets none."""

    def __init__(
        self, carrier: Carrier, call: Call, request: Request, prompt: PromptTokens | None, responder: Responder
    ) -> None:
        self._driver = carrier.driver
        self._endpoints = carrier.endpoints
        self._post = carrier.post
        self._told = Telling(carrier, call, request)
        self._call = call
        self._request = request
        self._prompt = prompt
        self._responder = responder
        self._commands: deque[RequestCommand] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._answer: Answer | None = None
        self._decision: Decision | None = None
        self._failed_prefill = False
        self._last_failure: tuple[int, bytes, dict[str, str]] | None = None
        self._said_no: set[WorkerId] = set()

    def put_nowait(self, command: RequestCommand, /) -> None:
        """A command of the core: the next plan, or the end of this one."""
        if isinstance(command, Abandon | Cancel) and self._answer is not None:
            self._answer.fail(UpstreamError(command.reason))
        if isinstance(command, Abandon):
            return
        self._commands.append(command)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def run(self) -> None:
        """Let the request arrive, and carry out what is decided until it ended."""
        self._driver.open_with(self._request, self)
        try:
            while not self._told.is_over:
                command = await self._next()
                if isinstance(command, Dispatch):
                    await self._carry_out(command.decision)
                elif isinstance(command, Reject | Cancel):
                    self._refuse(command)
        finally:
            self._told.close()

    async def _next(self) -> RequestCommand:
        while not self._commands:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._commands.popleft()

    def _refuse(self, command: Reject | Cancel) -> None:
        self._told.is_over = True
        if self._responder.started:
            return
        if self._last_failure is not None:
            # The engine's own words say more than that nobody else was left to ask.
            self._responder.send(*self._last_failure)
            return
        raise refused(command)

    # -- one attempt ----------------------------------------------------------------------------------------------

    async def _carry_out(self, decision: Decision) -> None:
        worker = decision.plan.decode
        endpoint = self._endpoints.get(worker)
        self._decision = decision
        self._told.decided()
        if endpoint is None:
            self._broke(worker, f"worker {worker} is gone")
            return
        if self._last_failure is not None and worker in self._said_no:
            # Nobody else was left, and who said no a moment ago would say it again.
            self._told.is_over = True
            self._responder.send(*self._last_failure)
            return
        if endpoint.actuator is None or not (decision.plan.moves or endpoint.prepares_local):
            await self._ask(decision, endpoint, Prepared())
            return
        prepared = await self._prepare(decision, endpoint.actuator)
        if prepared.beside is not None:
            prepared.beside.add_done_callback(self._prefilled)
        try:
            await self._ask(decision, endpoint, prepared)
        finally:
            endpoint.actuator.ended(self._call.engine_id)
            if prepared.beside is not None:
                prepared.beside.cancel()
                await asyncio.gather(prepared.beside, return_exceptions=True)

    def _prefilled(self, beside: "asyncio.Task[float]") -> None:
        """The prefill worker is done; if it failed, the decode worker waits for what will not come."""
        if beside.cancelled() or self._told.is_over:
            return
        error = beside.exception()
        if error is None:
            self._told.prefilled()
        elif self._answer is not None and not self._responder.started:
            self._failed_prefill = True
            self._answer.fail(UpstreamError(f"was left by its prefill worker: {error}"))

    async def _prepare(self, decision: Decision, actuator: Actuator) -> Prepared:
        profile = self._driver.scheduler.models[self._request.model]
        prepared = await prepare(actuator, self._post, self._call, decision, profile, self._endpoints, self._prompt)
        if prepared.prefill_s is not None:
            self._told.prefilled()
        return prepared

    async def _ask(self, decision: Decision, endpoint: Endpoint, prepared: Prepared) -> None:
        call = self._call
        changes = {**endpoint.patch.body, **prepared.patch.body}
        adds_usage = call.streams and endpoint.gives_usage and not call.asks_usage and call.path in PROMPT_PATHS
        if adds_usage and call.path in {"/v1/chat/completions", "/v1/completions"}:
            changes["stream_options"] = {"include_usage": True}
        headers = {**call.passed_headers(), **endpoint.headers, **endpoint.patch.headers, **prepared.patch.headers}
        headers.update(self._told.asking(decision, endpoint))
        try:
            answer, head = await endpoint.upstream.ask("POST", call.path, headers, call.with_body(changes), self._began)
        except UpstreamError as error:
            self._answer = None
            endpoint.on_trouble()
            self._broke(endpoint.worker, f"worker {endpoint.worker} {error}")
            return
        try:
            await self._pass_on(decision, endpoint, answer, head, hides_usage=adds_usage)
        finally:
            self._answer = None
            self._told.stop_waiting()
            endpoint.upstream.release(answer)

    def _began(self, answer: Answer) -> None:
        self._answer = answer

    async def _pass_on(
        self, decision: Decision, endpoint: Endpoint, answer: Answer, head: Head, *, hides_usage: bool
    ) -> None:
        streams = head.headers.get("content-type", "").startswith("text/event-stream")
        if head.status == 200 and streams:
            await self._stream(decision, endpoint, answer, head, StreamReader(hides_usage=hides_usage))
            return
        await self._whole(decision, endpoint, answer, head)

    async def _stream(
        self, decision: Decision, endpoint: Endpoint, answer: Answer, head: Head, reader: StreamReader
    ) -> None:
        responder, headers = self._responder, self._answer_headers(decision, head)

        def take(data: bytes) -> None:
            passed = reader.push(data)
            if not passed:
                return
            if not responder.started:
                self._told.first_token(decision)
                responder.start(head.status, headers)
            responder.write(passed)

        responder.watch(answer.pause, answer.resume)
        answer.take(take)
        try:
            await answer.done()
        except UpstreamError as error:
            endpoint.on_trouble()
            reason = f"worker {endpoint.worker} {error}"
            if not responder.started:
                self._broke(endpoint.worker, reason)
                return
            self._break_stream(reason, reader.events)
            return
        except asyncio.CancelledError:
            # OpenAI's client goes when it has read the last event, which may be before the end of the HTTP answer.
            if reader.is_over:
                self._told.settle_alone(decision, endpoint, reader.usage, reader.events)
            raise
        if not responder.started:
            responder.start(head.status, headers)
        rest = reader.finish()
        if rest:
            responder.write(rest)
        responder.finish()
        await self._told.settle(decision, endpoint, reader.usage, reader.events)

    def _break_stream(self, reason: str, events: int) -> None:
        """The client has a part of its answer: the rest cannot come from elsewhere word for word."""
        log.warning("request %s: its stream broke: %s", self._call.id, reason)
        self._responder.write(error_event(DoorError(502, reason, "server_error", "stream_broken").body))
        self._responder.finish()
        self._told.ended(Outcome.FAILED, events)

    async def _whole(self, decision: Decision, endpoint: Endpoint, answer: Answer, head: Head) -> None:
        parts: list[bytes] = []
        size = 0
        responder, headers = self._responder, self._answer_headers(decision, head)

        def take(data: bytes) -> None:
            nonlocal size
            size += len(data)
            if responder.started:
                responder.write(data)
                return
            parts.append(data)
            if size > WHOLE_BYTES_MAX:
                responder.watch(answer.pause, answer.resume)
                responder.start(head.status, headers)
                for part in parts:
                    responder.write(part)
                parts.clear()

        answer.take(take)
        try:
            await answer.done()
        except UpstreamError as error:
            endpoint.on_trouble()
            reason = f"worker {endpoint.worker} {error}"
            if responder.started:
                responder.break_off()
                self._told.ended(Outcome.FAILED, 0)
            else:
                self._broke(endpoint.worker, reason)
            return
        if responder.started:
            responder.finish()
            self._told.ended(Outcome.FINISHED, 0)
            return
        body = b"".join(parts)
        if head.status in _RETRIED_STATUSES:
            self._last_failure = (head.status, body, headers)
            self._said_no.add(endpoint.worker)
            reason = f"worker {endpoint.worker} answered {head.status}: {body[:200].decode('utf-8', 'replace')}"
            self._broke(endpoint.worker, reason)
            return
        responder.send(head.status, body, headers)
        if head.status == 200:
            usage = usage_in(body)
            await self._told.settle(decision, endpoint, usage, 0)
        else:
            self._told.ended(Outcome.FINISHED, 0)

    # -- telling the core -----------------------------------------------------------------------------------------

    def _broke(self, worker: WorkerId, reason: str) -> None:
        if self._failed_prefill and self._decision is not None:
            worker, self._failed_prefill = self._decision.plan.prefill, False
        self._told.broke(worker, reason)

    def _answer_headers(self, decision: Decision, head: Head) -> dict[str, str]:
        headers = {name: value for name, value in head.headers.items() if name not in _NOT_PASSED}
        headers |= plan_headers(decision, self._call.id)
        return headers


def plan_headers(decision: Decision, request_id: str) -> dict[str, str]:
    """What a client is told of the way its request went."""
    plan = decision.plan
    return {
        "x-request-id": request_id,
        "x-homing-worker": plan.decode,
        "x-homing-plan": plan.kind.value,
        "x-homing-prefix-tokens": str(plan.estimate.hit_tokens),
    }
