"""How a worker belongs to a router: it joins, reports its load, and tells what its cache holds.

Rule 1: losing the router loses nothing: the worker goes on with what it has and comes back, with growing pauses between
its tries, and tells everything anew.
Rule 2: events are numbered per connection. What is told after a break or a resync begins with `cleared` and a snapshot,
so nothing that was missed in between is ever believed.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import grpc

from homing.protos import fleet_pb2, fleet_pb2_grpc

from .engine.batcher import Load
from .engine.kvcache import KvCache, KvEvent
from .wire import kv_events

log = logging.getLogger(__name__)

REPORT_PAUSE_S = 0.02
"""Shortest pause between two reports when the load changes; the longest when it does not is the router's to say."""
REPORT_EVERY_S = 0.5
BACKOFF_S = (0.2, 5.0)
EVENTS_PER_BATCH = 4096
EVENTS_WAITING_MAX = 200_000
"""Beyond this a slow router is told everything anew instead of every change."""
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class Membership:
    """One worker's connection to one router."""

    def __init__(self, router: str, hello: fleet_pb2.Hello, *, load: Callable[[], Load], cache: KvCache) -> None:
        self._router = router
        self._hello = hello
        self._load = load
        self._cache = cache
        self._events: list[KvEvent] = []
        self._everything_anew = True
        self._changed = asyncio.Event()
        self._report_every_s = REPORT_EVERY_S
        self._reporting = asyncio.Event()
        self._draining = False
        self._task: asyncio.Task[None] | None = None
        self.joined = asyncio.Event()

    def start(self) -> None:
        """Join, and stay joined."""
        self._task = asyncio.create_task(self._stay(), name=f"join {self._router}")

    async def close(self) -> None:
        """Leave. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def tell(self, events: list[KvEvent]) -> None:
        """What changed in the cache."""
        if self._everything_anew:
            return
        self._events += events
        if len(self._events) > EVENTS_WAITING_MAX:
            self._tell_everything_anew()
        self._changed.set()

    def drain(self) -> None:
        """Tell the router that this worker wants nothing new."""
        self._draining = True
        self._reporting.set()

    def load_changed(self) -> None:
        """A request came or ended: report soon."""
        self._reporting.set()

    async def _stay(self) -> None:
        pause_s = BACKOFF_S[0]
        while True:
            try:
                async with grpc.aio.insecure_channel(self._router, options=CHANNEL_OPTIONS) as channel:
                    await self._belong(channel)
            except grpc.aio.AioRpcError as error:
                level = logging.ERROR if error.code() is grpc.StatusCode.INVALID_ARGUMENT else logging.WARNING
                log.log(level, "router %s: %s: %s", self._router, error.code().name, error.details())
            except Exception:
                log.exception("router %s: the connection failed in a way that was not foreseen", self._router)
            if self.joined.is_set():
                # It was let in, so this break is a new one, whoever made it.
                pause_s = BACKOFF_S[0]
            self.joined.clear()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    async def _belong(self, channel: grpc.aio.Channel) -> None:
        call = fleet_pb2_grpc.FleetStub(channel).Join(self._messages())
        answer = await call.read()
        if answer is grpc.aio.EOF:
            return
        self._report_every_s = answer.welcome.report_every_s or REPORT_EVERY_S
        log.info("joined router %s as %s", self._router, self._hello.worker_id)
        self.joined.set()
        publishing = asyncio.create_task(self._publish(channel))
        reading = asyncio.ensure_future(call.read())
        try:
            await asyncio.wait([reading, publishing], return_when=asyncio.FIRST_COMPLETED)
            for done in (reading, publishing):
                if done.done():
                    done.result()
        finally:
            call.cancel()
            reading.cancel()
            publishing.cancel()
            await asyncio.gather(reading, publishing, return_exceptions=True)

    async def _messages(self) -> AsyncIterator[fleet_pb2.WorkerMessage]:
        yield fleet_pb2.WorkerMessage(hello=self._hello)
        sequence = 0
        told_draining = False
        while True:
            self._reporting.clear()
            load = self._load()
            yield fleet_pb2.WorkerMessage(
                load=fleet_pb2.LoadReport(
                    sequence=sequence,
                    queued_prefill_tokens=load.queued_prefill_tokens,
                    running_requests=load.running_requests,
                    kv_blocks_used=load.kv_blocks_used,
                )
            )
            sequence += 1
            if self._draining and not told_draining:
                told_draining = True
                yield fleet_pb2.WorkerMessage(draining=fleet_pb2.Draining())
            await asyncio.sleep(REPORT_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reporting.wait(), self._report_every_s)

    async def _publish(self, channel: grpc.aio.Channel) -> None:
        self._tell_everything_anew()
        async for ack in fleet_pb2_grpc.KvEventsStub(channel).Publish(self._batches()):
            if ack.resync:
                log.warning("router %s asks for all cached blocks anew: %s", self._router, ack.reason)
                self._tell_everything_anew()

    def _tell_everything_anew(self) -> None:
        self._everything_anew = True
        self._events.clear()
        self._changed.set()

    async def _batches(self) -> AsyncIterator[fleet_pb2.KvEventBatch]:
        sequence = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            waiting: list[KvEvent] = []
            messages: list[fleet_pb2.KvEvent] = []
            if self._everything_anew:
                self._everything_anew = False
                messages.append(fleet_pb2.KvEvent(cleared=fleet_pb2.Cleared()))
                waiting += self._cache.entries()
            else:
                waiting, self._events = self._events, []
            for first in range(0, max(1, len(waiting)), EVENTS_PER_BATCH):
                messages += kv_events(waiting[first : first + EVENTS_PER_BATCH])
                yield fleet_pb2.KvEventBatch(worker_id=self._hello.worker_id, sequence=sequence, events=messages)
                sequence += 1
                messages = []
