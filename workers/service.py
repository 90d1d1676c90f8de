"""The worker's gRPC surface: prefill, decode, give blocks away."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from homing.protos import worker_pb2, worker_pb2_grpc
from homing.router.core.types import BlockKey

from .job import Broken, Generated, Job, Prefilled
from .model.config import LlamaConfig
from .runtime import CancelledJobError, WorkerRuntime
from .transfer import Export, Order, RefusedError, messages_of
from .wire import BadRequestError, decode_job, prefill_job, prefill_outcomes, transfer_outcomes

Context: TypeAlias = Any
"""A grpc.aio.ServicerContext, which has no types."""
_ORDERS = {
    worker_pb2.BLOCK_ORDER_UNSPECIFIED: Order.FRONT_TO_BACK,
    worker_pb2.BLOCK_ORDER_FRONT_TO_BACK: Order.FRONT_TO_BACK,
    worker_pb2.BLOCK_ORDER_BACK_TO_FRONT: Order.BACK_TO_FRONT,
}


REPORT_WAIT_S = 0.1
"""How long a first token may be held back until the transfer that made it possible has ended too and can be reported:
the last block is used before the last frame has come. Nearly always nothing."""


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Turns calls into jobs. A call that is cancelled cancels its job."""

    def __init__(
        self,
        runtime: WorkerRuntime,
        config: LlamaConfig,
        *,
        worker_id: str,
        block_tokens: int,
        data_address_from: dict[str, tuple[str, int]],
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._worker_id = worker_id
        self._block_tokens = block_tokens
        self.data_address_from = data_address_from
        self.draining = False

    async def Prefill(  # noqa: N802 - named by the protocol
        self, request: worker_pb2.PrefillRequest, context: Context
    ) -> worker_pb2.PrefillReply:
        """Compute the full blocks of a prompt and keep them for the handover."""
        job = await self._submitted(context, request)
        try:
            output = await job.outputs.get()
        except asyncio.CancelledError:
            await self._runtime.cancel(job)
            raise
        if isinstance(output, Broken):
            await _abort_broken(context, output)
        await job.pulled(REPORT_WAIT_S)
        return worker_pb2.PrefillReply(
            prefills=prefill_outcomes(job, self._worker_id),
            transfers=transfer_outcomes(job, self._worker_id),
            queued_s=job.queued_s,
            hit_tokens=job.sequence.hit_tokens,
        )

    async def Decode(  # noqa: N802 - named by the protocol
        self, request: worker_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[worker_pb2.DecodeReply]:
        """Get blocks, compute the rest, and stream the answer's tokens."""
        job = await self._submitted(context, request)
        try:
            yield worker_pb2.DecodeReply(accepted=worker_pb2.Accepted())
            start: worker_pb2.DecodeStart | None = None
            finish_reason = None
            while finish_reason is None:
                output = await job.outputs.get()
                if not isinstance(output, Generated):
                    await _abort_broken(context, output)
                    return
                finish_reason = output.finish_reason
                tokens = worker_pb2.NewTokens(ids=[output.token], finish_reason=finish_reason)
                if start is None:
                    await job.pulled(REPORT_WAIT_S)
                    start = self._start(job)
                    tokens.start.CopyFrom(start)
                yield worker_pb2.DecodeReply(tokens=tokens)
            summary = worker_pb2.DecodeSummary(finish_reason=finish_reason, output_tokens=job.sequence.generated)
            yield worker_pb2.DecodeReply(summary=summary)
        finally:
            await self._runtime.cancel(job)

    async def FetchBlocks(  # noqa: N802 - named by the protocol
        self, request: worker_pb2.FetchBlocksRequest, context: Context
    ) -> AsyncIterator[worker_pb2.FetchBlocksReply]:
        """Offer cached blocks, or those of a handover; send them here if asked to."""
        memory = self._runtime.kv
        if request.kv_format != memory.format:
            detail = f"kv_format: this worker's is {memory.format!r}, the target's {request.kv_format!r}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, detail)
        if request.order not in _ORDERS:
            detail = f"order: {request.order} is no order; give front to back or back to front"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, detail)
        try:
            keys = [BlockKey(key) for key in request.keys]
            if request.handover:
                export, release = await self._runtime.handovers.take(request.request_id, keys)
            else:
                export, release = self._runtime.export_cached(keys, _ORDERS[request.order])
        except RefusedError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        if request.inline_frames:
            try:
                async for reply in self._inline(export):
                    yield reply
            finally:
                release()
            return
        try:
            offer = self._runtime.offer(export, release)
        except RefusedError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        host, port = self.data_address_from.get(request.site, (offer.host, offer.port))
        yield worker_pb2.FetchBlocksReply(
            offer=worker_pb2.BlockOffer(
                host=host,
                port=port,
                token=offer.token,
                kv_format=offer.format,
                blocks=offer.blocks,
                layers=offer.layers,
                layer_block_bytes=offer.layer_block_bytes,
            )
        )

    async def _inline(self, export: Export) -> AsyncIterator[worker_pb2.FetchBlocksReply]:
        memory = self._runtime.kv
        yield worker_pb2.FetchBlocksReply(
            offer=worker_pb2.BlockOffer(
                kv_format=memory.format,
                blocks=len(export.blocks),
                layers=memory.layers,
                layer_block_bytes=memory.layer_block_bytes,
            )
        )
        async for message in messages_of(export, memory):
            yield worker_pb2.FetchBlocksReply(
                frame=worker_pb2.BlockFrame(header=message.header, payload=message.payload)
            )

    async def _submitted(self, context: Context, request: worker_pb2.PrefillRequest | worker_pb2.DecodeRequest) -> Job:
        if self.draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"worker {self._worker_id} is draining")
        now = time.monotonic()
        try:
            if isinstance(request, worker_pb2.PrefillRequest):
                job = prefill_job(request, self._config, self._block_tokens, now)
            else:
                job = decode_job(request, self._config, self._block_tokens, now)
            self._runtime.submit(job)
        except BadRequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return job

    def _start(self, job: Job) -> worker_pb2.DecodeStart:
        return worker_pb2.DecodeStart(
            prefills=prefill_outcomes(job, self._worker_id),
            transfers=transfer_outcomes(job, self._worker_id),
            queued_s=job.queued_s,
            hit_tokens=job.sequence.hit_tokens,
            computed_tokens=job.computed_tokens,
        )


async def _abort_broken(context: Context, broken: Broken | Prefilled) -> None:
    assert isinstance(broken, Broken), "a job that generates is never merely prefilled"
    code = grpc.StatusCode.CANCELLED if isinstance(broken.error, CancelledJobError) else grpc.StatusCode.INTERNAL
    await context.abort(code, str(broken.error) or type(broken.error).__name__)
