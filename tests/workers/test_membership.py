"""How a worker belongs to a router, seen from a router that misbehaves: it answers late, asks anew, breaks, refuses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from homing.protos import fleet_pb2, fleet_pb2_grpc
from homing.router.core.types import BlockKey
from homing.workers import membership as module
from homing.workers.engine.batcher import Load
from homing.workers.engine.kvcache import KvCache
from homing.workers.membership import Membership


class ScriptedRouter(fleet_pb2_grpc.FleetServicer, fleet_pb2_grpc.KvEventsServicer):
    """Speaks the router's side of the protocol, keeps what it hears, and does what a test tells it."""

    def __init__(self) -> None:
        self.heard: list[list[fleet_pb2.WorkerMessage]] = []
        self.told: list[list[fleet_pb2.KvEventBatch]] = []
        self.resync_at: set[int] = set()
        self.report_every_s = 0.05
        self.refuse = ""
        self.end = asyncio.Event()

    async def Join(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[fleet_pb2.RouterMessage]:
        if self.refuse:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuse)
        heard: list[fleet_pb2.WorkerMessage] = []
        self.heard.append(heard)
        heard.append(await anext(requests))
        yield fleet_pb2.RouterMessage(welcome=fleet_pb2.Welcome(report_every_s=self.report_every_s))
        reading = asyncio.create_task(self._read(requests, heard))
        with contextlib.suppress(asyncio.CancelledError):
            await self.end.wait()
        reading.cancel()

    async def _read(self, requests: AsyncIterator[Any], heard: list[fleet_pb2.WorkerMessage]) -> None:
        async for message in requests:
            heard.append(message)

    async def Publish(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[fleet_pb2.KvEventAck]:
        told: list[fleet_pb2.KvEventBatch] = []
        self.told.append(told)
        async for batch in requests:
            told.append(batch)
            resync = batch.sequence in self.resync_at
            self.resync_at.discard(batch.sequence)
            yield fleet_pb2.KvEventAck(sequence=batch.sequence, resync=resync, reason="a test wants it")


@asynccontextmanager
async def serving(router: ScriptedRouter, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    fleet_pb2_grpc.add_FleetServicer_to_server(router, server)
    fleet_pb2_grpc.add_KvEventsServicer_to_server(router, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


class Member:
    """A worker's cache and its membership."""

    def __init__(self, port: int) -> None:
        self.cache = KvCache(64)
        self.load = Load(queued_prefill_tokens=0, running_requests=0, kv_blocks_used=0)
        hello = fleet_pb2.Hello(worker_id="w", model="m")
        self.membership = Membership(f"127.0.0.1:{port}", hello, load=lambda: self.load, cache=self.cache)

    def hold(self, *keys: int) -> None:
        """Cache a chain of blocks and tell it, as the runtime does."""
        numbers = self.cache.allocate(len(keys))
        assert numbers is not None
        parent = None
        for number, key in zip(numbers, keys, strict=True):
            self.cache.commit(number, BlockKey(key), parent)
            parent = BlockKey(key)
        self.cache.unpin(numbers)
        self.membership.tell(self.cache.take_events())


@asynccontextmanager
async def member(port: int) -> AsyncIterator[Member]:
    opened = Member(port)
    opened.membership.start()
    try:
        yield opened
    finally:
        await opened.membership.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def eventually(holds: Callable[[], object], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


def keys_after(batches: list[fleet_pb2.KvEventBatch]) -> set[int]:
    """What a listener who replays the batches believes to be cached."""
    believed: set[int] = set()
    for event in (event for batch in batches for event in batch.events):
        match event.WhichOneof("what"):
            case "cleared":
                believed = set()
            case "stored":
                believed |= set(event.stored.keys)
            case "removed":
                believed -= set(event.removed.keys)
    return believed


def begins_with_cleared(batch: fleet_pb2.KvEventBatch) -> bool:
    return bool(batch.events) and batch.events[0].WhichOneof("what") == "cleared"


def test_it_says_who_it_is_and_then_how_it_is() -> None:
    async def check() -> None:
        router = ScriptedRouter()
        async with serving(router) as port, member(port):
            await eventually(lambda: router.heard and len(router.heard[0]) >= 4)
            first, *reports = router.heard[0]
            assert first.hello.worker_id == "w"
            assert [message.load.sequence for message in reports] == list(range(len(reports)))

    run(check())


def test_a_change_of_load_is_reported_at_once() -> None:
    """Not at the router's next turn: it prices queues with it."""

    async def check() -> None:
        router = ScriptedRouter()
        router.report_every_s = 60.0
        async with serving(router) as port, member(port) as opened:
            await opened.membership.joined.wait()
            await asyncio.sleep(0.1)
            opened.load = Load(queued_prefill_tokens=77, running_requests=1, kv_blocks_used=5)
            opened.membership.load_changed()
            await eventually(lambda: any(m.load.queued_prefill_tokens == 77 for m in router.heard[0]), 1.0)
            opened.membership.drain()
            await eventually(lambda: any(m.HasField("draining") for m in router.heard[0]), 1.0)
            opened.membership.load_changed()
            await asyncio.sleep(0.1)
            assert sum(m.HasField("draining") for m in router.heard[0]) == 1, "told once"

    run(check())


def test_what_was_cached_before_is_told_with_the_first_batch_and_changes_after_it() -> None:
    async def check() -> None:
        router = ScriptedRouter()
        async with serving(router) as port:
            async with member(port) as opened:
                opened.hold(1, 2, 3)
                await eventually(lambda: router.told and keys_after(router.told[0]) == {1, 2, 3})
                opened.hold(4, 5)
                opened.cache.clear()
                opened.membership.tell(opened.cache.take_events())
                opened.hold(6)
                await eventually(lambda: keys_after(router.told[0]) == {6})
            (batches,) = router.told
            assert begins_with_cleared(batches[0])
            assert not any(begins_with_cleared(batch) for batch in batches[1:])
            assert [batch.sequence for batch in batches] == list(range(len(batches)))
            assert {batch.worker_id for batch in batches} == {"w"}

    run(check())


def test_when_asked_anew_it_tells_everything_behind_a_clean_slate() -> None:
    async def check() -> None:
        router = ScriptedRouter()
        router.resync_at = {1}
        async with serving(router) as port, member(port) as opened:
            await eventually(lambda: router.told and router.told[0])
            opened.hold(1, 2)
            await eventually(lambda: sum(map(begins_with_cleared, router.told[0])) == 2)
            batches = router.told[0]
            assert keys_after(batches) == {1, 2}
            last = max(i for i, batch in enumerate(batches) if begins_with_cleared(batch))
            assert keys_after(batches[last:]) == {1, 2}, "the snapshot alone says everything"
            assert [batch.sequence for batch in batches] == list(range(len(batches)))

    run(check())


def test_a_large_cache_is_told_in_bounded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_PER_BATCH", 10)

    async def check() -> None:
        router = ScriptedRouter()
        async with serving(router) as port:
            opened = Member(port)
            opened.hold(*range(1, 33))
            opened.membership.start()
            await eventually(lambda: router.told and keys_after(router.told[0]) == set(range(1, 33)))
            assert all(sum(len(e.stored.keys) for e in batch.events) <= 10 for batch in router.told[0])
            assert sum(map(begins_with_cleared, router.told[0])) == 1
            await opened.membership.close()

    run(check())


def test_a_router_that_hears_too_slowly_is_told_everything_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be told is bounded."""
    monkeypatch.setattr(module, "EVENTS_WAITING_MAX", 5)

    async def check() -> None:
        router = ScriptedRouter()
        async with serving(router) as port, member(port) as opened:
            await eventually(lambda: router.told and router.told[0])
            opened.hold(*range(1, 9))
            assert not opened.membership._events
            await eventually(lambda: keys_after(router.told[0]) == set(range(1, 9)))
            assert sum(map(begins_with_cleared, router.told[0])) == 2

    run(check())


def test_a_router_that_goes_and_comes_back_is_joined_again_and_told_all() -> None:
    async def check() -> None:
        first, second = ScriptedRouter(), ScriptedRouter()
        async with serving(first) as port:
            opened = Member(port)
            opened.membership.start()
            await eventually(lambda: first.told and first.told[0])
            opened.hold(1, 2)
            await eventually(lambda: keys_after(first.told[0]) == {1, 2})
        await eventually(lambda: not opened.membership.joined.is_set())
        opened.hold(3)
        async with serving(second, port):
            await eventually(lambda: second.told and keys_after(second.told[0]) == {1, 2, 3}, 10.0)
            assert second.heard[0][0].hello.worker_id == "w"
            assert begins_with_cleared(second.told[0][0]) and second.told[0][0].sequence == 0
            await opened.membership.close()

    run(check())


def test_a_stream_that_the_router_ends_is_opened_anew() -> None:
    """That is how a router says: I took you for dead, join again if you live."""

    async def check() -> None:
        router = ScriptedRouter()
        async with serving(router) as port, member(port):
            await eventually(lambda: router.told and router.told[0])
            router.end.set()
            await asyncio.sleep(0.05)
            router.end.clear()
            await eventually(lambda: len(router.told) == 2 and router.told[1])
            assert begins_with_cleared(router.told[1][0])

    run(check())


def test_a_refusal_is_logged_as_an_error_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """An operator has to do something about it, and may have done so."""

    async def check() -> None:
        router = ScriptedRouter()
        router.refuse = "hello.kv_format: another one"
        async with serving(router) as port, member(port) as opened:
            await eventually(lambda: any("another one" in record.message for record in caplog.records))
            assert any(record.levelname == "ERROR" for record in caplog.records if "another one" in record.message)
            router.refuse = ""
            await asyncio.wait_for(opened.membership.joined.wait(), 5)

    run(check())
