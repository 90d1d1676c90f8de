"""One dispatch of one request: the calls to its workers, and what comes back, as notes in the request's mailbox.

The decode worker streams tokens. The prefill worker of a remote plan is called beside it; when that call fails, the
decode worker would compute the whole prompt itself, so the attempt is broken off and the core decides anew.
"""

import asyncio
import logging
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

import grpc

from homing.router.core.types import Decision, PlanKind, WorkerId

from .prompts import Prompt
from .wire import common_pb2, move_message, worker_pb2
from .workers import Workers

log = logging.getLogger(__name__)

HANDOVER_LEASE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a sender wants its tokens."""

    sampling: common_pb2.Sampling
    ignore_eos: bool
    first_token_timeout_s: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """The decode worker has the request; `after_s` since it was sent."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prefill worker of a remote plan is done."""

    reply: worker_pb2.PrefillReply


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens of the answer; with the first, what it took to get there."""

    ids: tuple[int, ...]
    start: worker_pb2.DecodeStart | None


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""

    finish_reason: str


@dataclass(frozen=True, slots=True)
class Broke:
    """The attempt failed at a worker. `retryable`: another try may go well."""

    worker: WorkerId
    reason: str
    code: grpc.StatusCode
    retryable: bool


Note = Accepted | Prefilled | NewTokens | Done | Broke

_HOPELESS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED}


class Attempt:
    """Carries one decision out. Notes come through `notes`; after Done or Broke none follows."""

    def __init__(
        self, decision: Decision, prompt: Prompt, output_tokens: int, wishes: Wishes, workers: Workers
    ) -> None:
        self.decision = decision
        self.notes: asyncio.Queue[Note] = asyncio.Queue()
        self._prompt = prompt
        self._output_tokens = output_tokens
        self._wishes = wishes
        self._workers = workers
        self._request_id = f"{decision.request.id}#{decision.attempt}"
        self._ended = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Make the calls."""
        plan = self.decision.plan
        if plan.kind is PlanKind.REMOTE:
            self._tasks.append(asyncio.create_task(self._prefill()))
        self._tasks.append(asyncio.create_task(self._decode()))

    async def close(self) -> None:
        """Cancel what still runs and wait for it. Idempotent."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def abandon(self, worker: WorkerId, reason: str) -> None:
        """A worker of this attempt is gone: do not wait for its connection to notice."""
        self._end(Broke(worker, reason, grpc.StatusCode.UNAVAILABLE, retryable=True))

    async def _decode(self) -> None:
        worker = self.decision.plan.decode
        try:
            async with asyncio.timeout(self._wishes.first_token_timeout_s) as limit:
                await self._stream(worker, limit)
        except TimeoutError:
            waited_s = self._wishes.first_token_timeout_s
            reason = f"worker {worker} gave no token within {waited_s} s"
            self._end(Broke(worker, reason, grpc.StatusCode.DEADLINE_EXCEEDED, retryable=True))
        except grpc.aio.AioRpcError as error:
            self._end(_broke(worker, error))
        except Exception as error:
            log.exception("request %s: dispatch to %s failed", self._request_id, worker)
            self._end(Broke(worker, repr(error), grpc.StatusCode.INTERNAL, retryable=True))

    async def _stream(self, worker: WorkerId, limit: asyncio.Timeout) -> None:
        stub = self._workers.stub(worker)
        if stub is None:
            self._end(Broke(worker, f"worker {worker} is gone", grpc.StatusCode.UNAVAILABLE, retryable=True))
            return
        call = stub.Decode(self._decode_request())
        try:
            await self._read(call, worker, limit)
        finally:
            # gRPC does not: a task that is cancelled while the request is being sent would leave the call running.
            call.cancel()

    async def _read(
        self, call: AsyncIterable[worker_pb2.DecodeReply], worker: WorkerId, limit: asyncio.Timeout
    ) -> None:
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        async for reply in call:
            match reply.WhichOneof("part"):
                case "accepted":
                    self._note(Accepted(loop.time() - sent_s))
                case "tokens":
                    # Each token may take as long as the first: a worker that stalls is as bad as one that is gone.
                    limit.reschedule(loop.time() + self._wishes.first_token_timeout_s)
                    start = reply.tokens.start if reply.tokens.HasField("start") else None
                    self._note(NewTokens(tuple(reply.tokens.ids), start))
                    if reply.tokens.finish_reason:
                        self._end(Done(reply.tokens.finish_reason))
                        return
        reason = f"worker {worker} ended its stream early"
        self._end(Broke(worker, reason, grpc.StatusCode.UNAVAILABLE, retryable=True))

    async def _prefill(self) -> None:
        worker = self.decision.plan.prefill
        stub = self._workers.stub(worker)
        if stub is None:
            self._end(Broke(worker, f"worker {worker} is gone", grpc.StatusCode.UNAVAILABLE, retryable=True))
            return
        try:
            reply = await stub.Prefill(self._prefill_request(), timeout=self._wishes.first_token_timeout_s)
        except grpc.aio.AioRpcError as error:
            self._end(_broke(worker, error))
        else:
            self._note(Prefilled(reply))

    def _decode_request(self) -> worker_pb2.DecodeRequest:
        return worker_pb2.DecodeRequest(
            request_id=self._request_id,
            tokens_le32=self._prompt.packed,
            key_seed=self._prompt.key_seed,
            sources=self._sources_of(self.decision.plan.decode),
            max_output_tokens=self._output_tokens,
            sampling=self._wishes.sampling,
            ignore_eos=self._wishes.ignore_eos,
        )

    def _prefill_request(self) -> worker_pb2.PrefillRequest:
        plan = self.decision.plan
        shipped = next(move for move in plan.moves if move.target == plan.decode)
        return worker_pb2.PrefillRequest(
            request_id=self._request_id,
            tokens_le32=self._prompt.packed,
            key_seed=self._prompt.key_seed,
            sources=self._sources_of(plan.prefill),
            handover_first_block=shipped.block_first,
            handover_end_block=shipped.block_end,
            handover_lease_s=HANDOVER_LEASE_S,
        )

    def _sources_of(self, target: WorkerId) -> list[worker_pb2.BlockSource]:
        """The moves towards a worker, with addresses as it sees them; a source that is gone is left out."""
        sources = []
        for move in self.decision.plan.moves:
            address = self._workers.address(move.source, seen_from=target)
            if move.target == target and address:
                sources.append(worker_pb2.BlockSource(move=move_message(move), address=address))
        return sources

    def _note(self, note: Note) -> None:
        if not self._ended:
            self.notes.put_nowait(note)

    def _end(self, note: Done | Broke) -> None:
        self._note(note)
        self._ended = True


def _broke(worker: WorkerId, error: Any) -> Broke:
    reason = f"worker {worker}: {error.code().name}: {error.details()}"
    return Broke(worker, reason, error.code(), retryable=error.code() not in _HOPELESS)
