"""The router's gRPC surface: decide, generate, report, explain."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from math import isfinite
from typing import Any

import grpc
import structlog

from homing.router.core.commands import Cancel, Dispatch, Reject
from homing.router.core.errors import RequestError
from homing.router.core.events import DispatchFailed, FirstToken, RequestFinished
from homing.router.core.explain import explain
from homing.router.core.types import Decision, Outcome, Request, RequestId, WorkerId

from .attempt import Wishes
from .driver import Driver, RequestCommand
from .generation import Generation, RefusedRequestError, refused
from .journal import DecisionJournal
from .prompts import Intake, Prompt
from .text import CodecOf
from .views import fleet_message
from .wire import RouterServicer, common_pb2, decision_message, refusal_message, router_pb2
from .workers import Workers

log = structlog.get_logger(__name__)

STREAM_PENDING_MAX = 256
"""Requests of one RouteStream that may be unanswered at once; then the stream is read no further."""


class RouterService(RouterServicer):
    """Answers clients. It holds nothing of a request but the mailbox that it reads."""

    def __init__(
        self,
        driver: Driver,
        workers: Workers,
        intake: Intake,
        journal: DecisionJournal,
        codec_of: CodecOf,
        *,
        request_timeout_s: float,
        first_token_timeout_s: float,
    ) -> None:
        self._driver = driver
        self._workers = workers
        self._intake = intake
        self._journal = journal
        self._codec_of = codec_of
        self._request_timeout_s = request_timeout_s
        self._first_token_timeout_s = first_token_timeout_s
        self.draining = False
        self.is_fronted: Callable[[str], bool] = lambda model: False
        """Whether a model is served by engines behind HTTP, which this service routes to and does not ask."""

    # -- deciding only -------------------------------------------------------------------------------------------

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteReply:  # noqa: N802
        """Decide on one request."""
        try:
            decision, took_s = await self._route(request)
        except RefusedRequestError as error:
            await _abort(context, error)
        return self._reply(decision, took_s)

    async def RouteStream(  # noqa: N802
        self, requests: AsyncIterator[router_pb2.RouteRequest], context: Any
    ) -> AsyncIterator[router_pb2.RouteReply]:
        """Decide on many, pipelined: what must wait for room does not hold up what need not."""
        replies: asyncio.Queue[router_pb2.RouteReply | None] = asyncio.Queue()
        pending = asyncio.Semaphore(STREAM_PENDING_MAX)
        reading = asyncio.create_task(self._read_stream(requests, replies, pending))
        try:
            while (reply := await replies.get()) is not None:
                yield reply
                pending.release()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def Report(self, request: router_pb2.ReportRequest, context: Any) -> router_pb2.ReportReply:  # noqa: N802
        """What became of a request that was only routed."""
        request_id = RequestId(request.request_id)
        flight = self._driver.scheduler.in_flight.get(request_id)
        if flight is None:
            detail = f"request_id: {request_id!r} is not in flight; it ended, or its lease is over"
            await context.abort(grpc.StatusCode.NOT_FOUND, detail)
            raise AssertionError("abort raises")
        if self._driver.is_read(request_id):
            detail = f"request_id: {request_id!r} is carried out by this router; report only what you routed"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, detail)
        match request.WhichOneof("what"):
            case "first_token":
                ttft_s = request.first_token.ttft_s
                if not isfinite(ttft_s) or ttft_s < 0:
                    detail = f"first_token.ttft_s: expected seconds since dispatch, at least 0, got {ttft_s}"
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, detail)
                self._driver.feed(FirstToken(request_id=request_id, ttft_s=ttft_s))
            case "ended":
                outcome = Outcome.CANCELLED if request.ended.cancelled else Outcome.FINISHED
                tokens = request.ended.output_tokens
                self._driver.feed(RequestFinished(request_id=request_id, outcome=outcome, output_tokens=tokens))
            case "broke":
                return await self._route_again(flight.decision.request, request.broke)
            case _:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "what: give first_token, ended or broke")
        return router_pb2.ReportReply()

    # -- carrying out --------------------------------------------------------------------------------------------

    async def Generate(  # noqa: N802
        self, request: router_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[router_pb2.GenerateReply]:
        """Decide, dispatch, and stream the answer."""
        try:
            core_request, prompt = self._read_computable(request.request)
            async with asyncio.timeout(self._request_timeout_s):
                async for reply in self._generate(request, core_request, prompt):
                    yield reply
        except RefusedRequestError as error:
            await _abort(context, error)
        except TimeoutError:
            detail = f"the request did not end within {self._request_timeout_s} s"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, detail)

    async def _generate(
        self, request: router_pb2.GenerateRequest, core_request: Request, prompt: Prompt
    ) -> AsyncIterator[router_pb2.GenerateReply]:
        wishes = Wishes(
            sampling=request.sampling,
            ignore_eos=request.ignore_eos,
            first_token_timeout_s=self._first_token_timeout_s,
        )
        generation = Generation(self._driver, self._workers, core_request, prompt, wishes)
        codec = self._codec_of(core_request.model)
        decoder = None if codec is None else codec.decoder()
        parts = generation.parts()
        try:
            async for part in parts:
                if isinstance(part, Decision):
                    log.info(
                        "dispatched",
                        request_id=core_request.id,
                        plan=str(part.plan.kind),
                        prefill=part.plan.prefill,
                        decode=part.plan.decode,
                        attempt=part.attempt,
                        predicted_ttft_s=round(part.plan.estimate.ttft_s, 4),
                    )
                    yield router_pb2.GenerateReply(decision=self._decision(part))
                else:
                    text = "" if decoder is None else decoder.push(part)
                    yield router_pb2.GenerateReply(tokens=router_pb2.Tokens(ids=part, text=text))
        finally:
            await parts.aclose()
        rest = "" if decoder is None else decoder.finish()
        if rest:
            yield router_pb2.GenerateReply(tokens=router_pb2.Tokens(text=rest))
        summary = self._summary(generation, core_request)
        log.info("finished", request_id=core_request.id, ttft_s=round(summary.ttft_s, 4), reason=summary.finish_reason)
        yield router_pb2.GenerateReply(summary=summary)

    # -- asking --------------------------------------------------------------------------------------------------

    async def Explain(self, request: router_pb2.ExplainRequest, context: Any) -> router_pb2.ExplainReply:  # noqa: N802
        """Why a request went where it went."""
        decisions = self._journal.decisions(RequestId(request.request_id))
        if not decisions:
            detail = f"request_id: nothing is remembered of {request.request_id!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, detail)
        return router_pb2.ExplainReply(
            decisions=[self._decision(decision, took_s) for decision, took_s in decisions],
            text="\n".join(explain(decision, took_s=took_s) for decision, took_s in decisions),
        )

    async def GetFleet(self, request: router_pb2.GetFleetRequest, context: Any) -> router_pb2.GetFleetReply:  # noqa: N802
        """Workers and links, and what is believed of them."""
        return fleet_message(self._driver.scheduler, self._workers, self._driver.now())

    # -- helpers -------------------------------------------------------------------------------------------------

    def _read(self, message: router_pb2.RouteRequest) -> tuple[Request, Prompt | None]:
        if self.draining:
            raise RefusedRequestError(grpc.StatusCode.UNAVAILABLE, "the router is draining", 1.0)
        try:
            request, prompt = self._intake.read(message, self._driver.now())
        except RequestError as error:
            raise RefusedRequestError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except LookupError as error:
            raise RefusedRequestError(grpc.StatusCode.NOT_FOUND, str(error.args[0])) from error
        if self._driver.is_open(request.id):
            detail = f"request_id: {request.id!r} is being answered already; give each request its own"
            raise RefusedRequestError(grpc.StatusCode.ALREADY_EXISTS, detail)
        return request, prompt

    def _read_computable(self, message: router_pb2.RouteRequest) -> tuple[Request, Prompt]:
        request, prompt = self._read(message)
        if prompt is None:
            detail = "prompt.block_keys: keys are enough to Route, but to Generate send tokens or text"
            raise RefusedRequestError(grpc.StatusCode.INVALID_ARGUMENT, detail)
        if self.is_fronted(request.model):
            detail = (
                f"model: {request.model} is served by engines behind HTTP; ask the door (router.door), or Route it and "
                "send it to the address that comes back"
            )
            raise RefusedRequestError(grpc.StatusCode.FAILED_PRECONDITION, detail)
        # This router dispatches it and passes the tokens on, so the way that counts begins here, wherever it came from.
        return replace(request, origin=None), prompt

    async def _route(self, message: router_pb2.RouteRequest) -> tuple[Decision, float]:
        request, _ = self._read(message)
        decision = await self._first_decision(request.id, self._driver.open(request))
        _, took_s = self._journal.decisions(request.id)[-1]
        return decision, took_s

    async def _route_again(self, request: Request, broke: router_pb2.DispatchBroke) -> router_pb2.ReportReply:
        worker = WorkerId(broke.worker) if broke.worker else None
        mailbox = self._driver.reopen(request.id)
        event = DispatchFailed(request_id=request.id, worker_id=worker, reason=broke.reason, resume_as=request)
        self._driver.feed(event)
        try:
            decision = await self._first_decision(request.id, mailbox)
        except RefusedRequestError as error:
            refusal = refusal_message(error.code, str(error), error.retry_after_s)
            return router_pb2.ReportReply(refusal=refusal)
        return router_pb2.ReportReply(decision=self._decision(decision))

    async def _first_decision(self, request: RequestId, mailbox: "asyncio.Queue[RequestCommand]") -> Decision:
        """The decision for a request that its sender carries out; without one, nothing of the request is left here."""
        try:
            async with asyncio.timeout(self._request_timeout_s):
                decision = await _decided(mailbox)
        except TimeoutError:
            self._driver.close_request(request)
            detail = f"no worker had room within {self._request_timeout_s} s"
            raise RefusedRequestError(grpc.StatusCode.DEADLINE_EXCEEDED, detail) from None
        except BaseException:
            self._driver.close_request(request)
            raise
        self._driver.forget(request)
        return decision

    async def _read_stream(
        self,
        requests: AsyncIterator[router_pb2.RouteRequest],
        replies: "asyncio.Queue[router_pb2.RouteReply | None]",
        pending: asyncio.Semaphore,
    ) -> None:
        async def answer(message: router_pb2.RouteRequest) -> None:
            try:
                decision, took_s = await self._route(message)
                replies.put_nowait(self._reply(decision, took_s))
            except RefusedRequestError as error:
                refusal = refusal_message(error.code, str(error), error.retry_after_s)
                replies.put_nowait(router_pb2.RouteReply(request_id=message.request_id, refusal=refusal))

        try:
            async with asyncio.TaskGroup() as group:
                async for message in requests:
                    await pending.acquire()
                    group.create_task(answer(message))
        finally:
            replies.put_nowait(None)

    def _reply(self, decision: Decision, took_s: float) -> router_pb2.RouteReply:
        return router_pb2.RouteReply(request_id=decision.request.id, decision=self._decision(decision, took_s))

    def _decision(self, decision: Decision, took_s: float = 0.0) -> common_pb2.Decision:
        plan = decision.plan
        named = {*plan.workers, *(move.source for move in plan.moves)}
        addresses = {worker: self._workers.address(worker) for worker in sorted(named)}
        return decision_message(decision, addresses, took_s)

    def _summary(self, generation: Generation, request: Request) -> router_pb2.Summary:
        tally = generation.tally
        return router_pb2.Summary(
            request_id=request.id,
            prompt_tokens=request.prompt_tokens,
            output_tokens=tally.output_tokens,
            finish_reason=tally.finish_reason,
            predicted_ttft_s=tally.predicted_ttft_s,
            ttft_s=tally.ttft_s or 0.0,
            e2e_s=self._driver.now() - request.arrived_s,
            retries=max(0, tally.dispatches - 1),
            transfers=tally.transfers,
            prefills=tally.prefills,
            computed_tokens=tally.computed_tokens,
            hit_tokens=max(0, request.prompt_tokens - tally.computed_tokens),
        )


async def _decided(mailbox: "asyncio.Queue[RequestCommand]") -> Decision:
    """The next decision in a mailbox; raises RefusedRequestError when the request ends instead."""
    while True:
        match await mailbox.get():
            case Dispatch() as command:
                return command.decision
            case Reject() | Cancel() as command:
                raise refused(command)


async def _abort(context: Any, error: RefusedRequestError) -> None:
    metadata: tuple[tuple[str, str], ...] = ()
    if error.retry_after_s is not None:
        # The delay in milliseconds, under the key that gRPC clients and proxies honour.
        metadata = (("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1e3))),)
    await context.abort(error.code, str(error), trailing_metadata=metadata)
