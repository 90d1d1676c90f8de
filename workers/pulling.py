"""Bringing blocks here: asking their holder over gRPC, receiving them over the data plane."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from homing.protos import worker_pb2, worker_pb2_grpc

from .job import Source, Transferred
from .transfer import (
    BlockMemory,
    FrameMessage,
    FrameStream,
    Layout,
    Mover,
    Offer,
    Order,
    PullRequest,
    RefusedError,
    RetryPolicy,
    Sink,
    SocketMover,
    SocketSettings,
    Status,
    StreamMover,
    TransferReport,
)

log = logging.getLogger(__name__)

FETCH_OFFER_S = 5.0
HANDOVER_OFFER_S = 150.0
"""Longer than a prefill worker keeps us waiting before it says no."""
CHANNEL_OPTIONS = [
    # A worker that came back is found again within seconds, not gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_REFUSALS = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT}
_ORDERS = {
    Order.FRONT_TO_BACK: worker_pb2.BLOCK_ORDER_FRONT_TO_BACK,
    Order.BACK_TO_FRONT: worker_pb2.BLOCK_ORDER_BACK_TO_FRONT,
}
_Stub = worker_pb2_grpc.WorkerStub


class Puller:
    """Pulls blocks from other workers into this one's memory.

    `inline` receives them inside gRPC, for networks where no other port passes; slower (docs/performance.md).
    """

    def __init__(
        self,
        worker_id: str,
        site: str,
        memory: BlockMemory,
        *,
        settings: SocketSettings | None = None,
        inline: bool = False,
    ) -> None:
        self._worker_id = worker_id
        self._site = site
        self._memory = memory
        self._settings = settings or SocketSettings()
        self._inline = inline
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def pull(
        self, source: Source, request_id: str, keys: tuple[int, ...], sink: Sink, stop: asyncio.Event
    ) -> Transferred:
        """Fill `sink` with the blocks of `keys` from `source`; tells what arrived and never raises for a failure."""
        asking = _Asking(self, source, request_id)
        wait_s = HANDOVER_OFFER_S if source.is_handover else FETCH_OFFER_S
        request = PullRequest(
            source=source.address,
            keys=keys,
            order=source.order,
            handover=request_id if source.is_handover else None,
        )
        report = await self._mover(asking, wait_s).pull(request, sink, stop)
        if report.status is Status.FAILED:
            log.warning("request %s: blocks from %s: %s", request_id, source.worker_id, report.reason)
        return _transferred(source, report, asking.rtt_s)

    async def close(self) -> None:
        """Close the connections to other workers."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels))

    def channel(self, address: str) -> grpc.aio.Channel:
        """The one connection to a worker's control address."""
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return self._channels[address]

    async def forget(self, address: str) -> None:
        """Nobody answers at an address: workers come and go, and connections to those that went must not pile up."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    def ask(self, source: Source, request_id: str, request: PullRequest) -> worker_pb2.FetchBlocksRequest:
        """The control message for a pull."""
        return worker_pb2.FetchBlocksRequest(
            worker_id=self._worker_id,
            request_id=request_id,
            kv_format=self._memory.format,
            site=self._site,
            keys=request.keys,
            order=_ORDERS[request.order],
            handover=source.is_handover,
            inline_frames=self._inline,
        )

    def _mover(self, asking: "_Asking", wait_s: float) -> Mover:
        retry = RetryPolicy(offer_timeout_s=wait_s)
        if self._inline:
            return StreamMover(asking.open_stream, self._memory, retry=retry)
        return SocketMover(asking.open_offer, self._memory, settings=self._settings, retry=retry)


class _Asking:
    """The control side of one pull; `rtt_s` is the quickest answer seen on an open connection."""

    def __init__(self, puller: Puller, source: Source, request_id: str) -> None:
        self._puller = puller
        self._source = source
        self._request_id = request_id
        self.rtt_s = 0.0

    async def open_offer(self, request: PullRequest) -> Offer:
        call, offer = await self._open(request)
        call.cancel()
        return Offer(
            host=offer.host,
            port=offer.port,
            token=offer.token,
            format=offer.kv_format,
            blocks=offer.blocks,
            layers=offer.layers,
            layer_block_bytes=offer.layer_block_bytes,
        )

    async def open_stream(self, request: PullRequest) -> FrameStream:
        call, offer = await self._open(request)

        async def messages() -> AsyncIterator[FrameMessage]:
            # Not `async for`: the offer was read with `read`, and gRPC refuses to mix the two on one call.
            while (reply := await call.read()) is not grpc.aio.EOF:
                yield FrameMessage(header=reply.frame.header, payload=reply.frame.payload)

        async def close() -> None:
            call.cancel()

        layout = Layout(
            format=offer.kv_format,
            blocks=offer.blocks,
            layers=offer.layers,
            layer_block_bytes=offer.layer_block_bytes,
        )
        return FrameStream(layout=layout, messages=messages(), close=close)

    async def _open(self, request: PullRequest) -> tuple[Any, worker_pb2.BlockOffer]:
        """The call, whose first message was read, and that message."""
        channel = self._puller.channel(self._source.address)
        try:
            await _connected(channel, self._source)
        except ConnectionError:
            await self._puller.forget(self._source.address)
            raise
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        call = _Stub(channel).FetchBlocks(self._puller.ask(self._source, self._request_id, request))
        try:
            reply = await call.read()
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                raise RefusedError(error.details() or error.code().name) from error
            raise
        except asyncio.CancelledError:
            # gRPC does not: a task that is cancelled while the request is being sent would leave the call running.
            call.cancel()
            raise
        if reply is grpc.aio.EOF or reply.WhichOneof("part") != "offer":
            raise RefusedError(f"{self._source.worker_id} made no offer")
        if not self._source.is_handover:
            self.rtt_s = loop.time() - asked_s
        return call, reply.offer


async def _connected(channel: grpc.aio.Channel, source: Source) -> None:
    """Wait for the connection; ConnectionError at once when nobody answers, since a request waits for these blocks."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
            raise ConnectionError(f"no connection to {source.worker_id} at {source.address}")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


def _transferred(source: Source, report: TransferReport, rtt_s: float) -> Transferred:
    speed = report.link_bytes_per_s
    return Transferred(
        source=source,
        bytes=report.payload_bytes,
        blocks=report.blocks,
        lasted_s=report.seconds,
        flowing_s=report.payload_bytes / speed if speed else 0.0,
        rtt_s=rtt_s,
        complete=report.status is not Status.FAILED,
        reason=report.reason if report.status is Status.FAILED else "",
    )
