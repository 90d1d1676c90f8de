"""Asking a source for blocks: whatever it answers, the target is told in time and computes instead."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from homing.protos import worker_pb2, worker_pb2_grpc
from homing.workers import pulling as module
from homing.workers.job import Source, Transferred
from homing.workers.pulling import Puller
from homing.workers.transfer import BufferMemory, CachedExport, DataServer, MemorySink, Order

LAYERS, LAYER_BLOCK_BYTES, BLOCKS = 2, 1024, 6
KEYS = tuple(range(100, 100 + BLOCKS))
Answer = Callable[[worker_pb2.FetchBlocksRequest, Any], AsyncIterator[worker_pb2.FetchBlocksReply]]


def memory(fill: bytes) -> BufferMemory:
    return BufferMemory(bytearray(fill), format="f", layers=LAYERS, layer_block_bytes=LAYER_BLOCK_BYTES)


SIZE = BLOCKS * LAYERS * LAYER_BLOCK_BYTES
CONTENT = random.Random(1).randbytes(SIZE)


class ScriptedSource(worker_pb2_grpc.WorkerServicer):
    """Speaks a source's side of the protocol as a test says, and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[worker_pb2.FetchBlocksRequest] = []

    async def FetchBlocks(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.FetchBlocksReply]:
        self.asked.append(request)
        async for reply in self._answer(request, context):
            yield reply


def offer(**changes: Any) -> worker_pb2.FetchBlocksReply:
    """A good offer of everything at a port where nobody listens, but for the changes."""
    good = {
        "host": "127.0.0.1",
        "port": 1,
        "token": b"t" * 16,
        "kv_format": "f",
        "blocks": BLOCKS,
        "layers": LAYERS,
        "layer_block_bytes": LAYER_BLOCK_BYTES,
    }
    return worker_pb2.FetchBlocksReply(offer=worker_pb2.BlockOffer(**(good | changes)))


def saying(*replies: worker_pb2.FetchBlocksReply) -> Answer:
    async def answer(request: Any, context: Any) -> AsyncIterator[worker_pb2.FetchBlocksReply]:
        for reply in replies:
            yield reply

    return answer


def refusing(code: "grpc.StatusCode") -> Answer:
    async def answer(request: Any, context: Any) -> AsyncIterator[worker_pb2.FetchBlocksReply]:
        await context.abort(code, "because of a test")
        yield offer()

    return answer


async def silence(request: Any, context: Any) -> AsyncIterator[worker_pb2.FetchBlocksReply]:
    """Nothing, for longer than anybody waits."""
    await asyncio.sleep(60)
    yield offer()


class Target:
    """A puller with a memory to fill."""

    def __init__(self, address: str, *, inline: bool = False) -> None:
        self.memory = memory(bytes(SIZE))
        self.sink = MemorySink(self.memory, range(BLOCKS))
        self.stop = asyncio.Event()
        self.puller = Puller("t", "far", self.memory, inline=inline)
        self.source = Source(worker_id="s", address=address, kind="fetch", first=0, end=BLOCKS)

    async def pull(self) -> Transferred:
        """Never raises for a failure: that is what is tested."""
        try:
            return await self.puller.pull(self.source, "r", KEYS, self.sink, self.stop)
        finally:
            await self.puller.close()


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[ScriptedSource, str]]:
    source = ScriptedSource(answer)
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(source, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield source, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


@pytest.mark.parametrize("inline", [False, True], ids=["socket", "inline"])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT]
)
def test_a_no_is_final(code: "grpc.StatusCode", inline: bool) -> None:
    """Asking again would cost the request time and bring nothing."""

    async def check() -> None:
        async with serving(refusing(code)) as (source, address):
            done = await Target(address, inline=inline).pull()
            assert not done.complete and "because of a test" in done.reason
            assert done.blocks == done.bytes == 0
            assert len(source.asked) == 1

    run(check())


def test_a_breakdown_is_asked_again_but_not_for_ever() -> None:
    async def check() -> None:
        async with serving(refusing(grpc.StatusCode.UNAVAILABLE)) as (source, address):
            done = await Target(address).pull()
            assert not done.complete and done.reason
            assert 1 < len(source.asked) <= 3

    run(check())


@pytest.mark.parametrize("inline", [False, True], ids=["socket", "inline"])
@pytest.mark.parametrize(
    "answer",
    [
        saying(),
        saying(worker_pb2.FetchBlocksReply()),
        saying(worker_pb2.FetchBlocksReply(frame=worker_pb2.BlockFrame(header=b"h", payload=b"p"))),
        saying(offer(kv_format="other")),
        saying(offer(blocks=0)),
        saying(offer(blocks=BLOCKS + 1)),
        saying(offer(layers=LAYERS + 1)),
        saying(offer(layer_block_bytes=1)),
        saying(offer(port=0)),
        saying(offer(port=99_999)),
        saying(offer(host="no such host")),
        saying(offer(token=b"")),
        saying(offer()),
        saying(offer(), worker_pb2.FetchBlocksReply(frame=worker_pb2.BlockFrame(header=b"h", payload=b"p"))),
    ],
    ids=[
        "nothing",
        "empty",
        "a frame first",
        "other format",
        "no block",
        "more blocks than asked",
        "more layers",
        "other size",
        "port 0",
        "port beyond",
        "no host",
        "no token",
        "nobody listens",
        "no frame",
    ],
)
def test_an_offer_that_cannot_be_used_is_told_and_changes_nothing(answer: Answer, inline: bool) -> None:
    async def check() -> None:
        async with serving(answer) as (_, address):
            target = Target(address, inline=inline)
            done = await target.pull()
            assert not done.complete and done.reason
            assert done.blocks == done.bytes == 0
            assert bytes(target.memory._bytes) == bytes(SIZE)

    run(check())


def test_nobody_at_the_address_is_told_at_once() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        done = await Target("127.0.0.1:1").pull()
        assert not done.complete and "no connection to s at 127.0.0.1:1" in done.reason
        assert loop.time() - began_s < 5

    run(check())


@pytest.mark.parametrize("inline", [False, True], ids=["socket", "inline"])
def test_a_source_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, inline: bool) -> None:
    monkeypatch.setattr(module, "FETCH_OFFER_S", 0.1)

    async def check() -> None:
        async with serving(silence) as (_, address):
            done = await Target(address, inline=inline).pull()
            assert not done.complete and done.reason

    run(check())


@pytest.mark.parametrize("inline", [False, True], ids=["socket", "inline"])
def test_who_stops_does_not_wait_for_an_offer(inline: bool) -> None:
    """The computation met nothing yet, or the request was cancelled: either way the blocks are wanted no more."""

    async def check() -> None:
        async with serving(silence) as (source, address):
            target = Target(address, inline=inline)
            pulling = asyncio.create_task(target.pull())
            while not source.asked:
                await asyncio.sleep(0.005)
            target.stop.set()
            done = await asyncio.wait_for(pulling, 10)
            assert done.blocks == done.bytes == 0

    run(check())


def test_what_is_asked_says_who_and_what_and_the_blocks_come() -> None:
    async def check() -> None:
        held = memory(CONTENT)
        data = DataServer(held)
        await data.start()

        async def answer(request: Any, context: Any) -> AsyncIterator[worker_pb2.FetchBlocksReply]:
            export = CachedExport(range(BLOCKS), Order.FRONT_TO_BACK, LAYERS, LAYER_BLOCK_BYTES)
            opened = data.open(export, ttl_s=5.0, on_done=lambda outcome: None)
            yield offer(host=opened.host, port=opened.port, token=opened.token)

        async with serving(answer) as (source, address):
            target = Target(address)
            done = await target.pull()
            assert done.complete and done.reason == ""
            assert (done.blocks, done.bytes) == (BLOCKS, SIZE)
            assert done.rtt_s > 0
            assert bytes(target.memory._bytes) == CONTENT
            (asked,) = source.asked
            assert (asked.worker_id, asked.request_id, asked.kv_format, asked.site) == ("t", "r", "f", "far")
            assert tuple(asked.keys) == KEYS
            assert asked.order == worker_pb2.BLOCK_ORDER_FRONT_TO_BACK
            assert not asked.handover and not asked.inline_frames
        await data.close()

    run(check())
