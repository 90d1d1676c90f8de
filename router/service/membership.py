"""The router's side of the fleet: workers join and report, and tell what they cache."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc

from homing.router.core.commands import ChangeRole, Forget, Resync
from homing.router.core.errors import RequestError
from homing.router.core.events import CacheCleared, LoadReported, WorkerDraining, WorkerJoined, WorkerLost
from homing.router.core.types import ModelName, ModelProfile, Worker, WorkerId

from .config import Config
from .driver import Driver
from .wire import FleetServicer, KvEventsServicer, cache_events, fleet_pb2, load_of, measured_of, profile_of, worker_of
from .workers import Workers

if TYPE_CHECKING:
    from .backends.fleet import Backends

log = logging.getLogger(__name__)


class FleetService(FleetServicer):
    """Workers join here. The stream is the worker's life: when it breaks, the worker is lost."""

    def __init__(self, driver: Driver, workers: Workers, config: Config, *, report_every_s: float) -> None:
        self._driver = driver
        self._workers = workers
        self._config = config
        self._report_every_s = report_every_s
        self._formats: dict[ModelName, str] = {}
        self._streams: dict[WorkerId, asyncio.Event] = {}

    async def Join(  # noqa: N802 - named by the protocol
        self, requests: AsyncIterator[fleet_pb2.WorkerMessage], context: Any
    ) -> AsyncIterator[fleet_pb2.RouterMessage]:
        """One worker's stream, from hello to its end."""
        worker = await self._welcome(requests, context)
        if worker is None:
            return
        forgotten = self._streams[worker.id] = asyncio.Event()
        reading = asyncio.create_task(self._read(worker, requests))
        waiting = asyncio.create_task(forgotten.wait())
        try:
            welcome = fleet_pb2.Welcome(report_every_s=self._report_every_s)
            yield fleet_pb2.RouterMessage(welcome=welcome)
            await asyncio.wait([reading, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            waiting.cancel()
            if self._streams.get(worker.id) is forgotten:
                self._lost(worker.id, "its stream ended")

    def forget(self, worker: WorkerId) -> None:
        """The core gave a worker up: end its stream, so that it joins anew if it lives."""
        forgotten = self._streams.pop(worker, None)
        self._workers.remove(worker)
        if forgotten is not None:
            forgotten.set()

    async def _welcome(self, requests: AsyncIterator[fleet_pb2.WorkerMessage], context: Any) -> Worker | None:
        try:
            first = await anext(requests)
        except StopAsyncIteration:
            return None
        if first.WhichOneof("what") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "hello: the first message must say who joins")
        try:
            worker = worker_of(first.hello)
            self._check_model(worker, first.hello)
        except RequestError as error:
            log.warning("a worker was refused: %s", error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if worker.id in self._streams:
            log.warning("worker %s joins again: its former stream is given up", worker.id)
            self._streams.pop(worker.id).set()
            self._lost(worker.id, "it joined again")
        self._workers.add(first.hello)
        self._driver.feed(WorkerJoined(worker=worker))
        for event in measured_of(first.hello):
            self._driver.feed(event)
        log.info("worker %s joined: %s in %s, model %s", worker.id, worker.role, worker.site, worker.model)
        return worker

    def _check_model(self, worker: Worker, hello: fleet_pb2.Hello) -> None:
        models = self._driver.scheduler.models
        known = models.get(worker.model)
        if known is None:
            known = models[worker.model] = self._described(profile_of(hello))
        if worker.block_tokens != known.block_tokens:
            raise RequestError(
                "hello.block_tokens", f"{worker.block_tokens}, but {worker.model} has blocks of {known.block_tokens}"
            )
        format_known = self._formats.setdefault(worker.model, hello.kv_format)
        if hello.kv_format != format_known:
            raise RequestError(
                "hello.kv_format",
                f"{hello.kv_format!r}, but {worker.model} is served as {format_known!r}; use the same weights, "
                "precision and block size, or another model name",
            )

    def _described(self, profile: ModelProfile) -> ModelProfile:
        """A model as a worker tells it, with what the operator says of it on top."""
        section = self._config.model(profile.name)
        if section is None:
            return profile
        return replace(
            profile,
            block_tokens=section.block_tokens or profile.block_tokens,
            state_bytes=section.state_bytes,
            layers=section.layers or profile.layers,
            context_tokens=section.context_tokens or profile.context_tokens,
            vocabulary_tokens=section.vocabulary_tokens or profile.vocabulary_tokens,
            kv_group=section.kv_group,
        )

    async def _read(self, worker: Worker, requests: AsyncIterator[fleet_pb2.WorkerMessage]) -> None:
        async for message in requests:
            match message.WhichOneof("what"):
                case "load":
                    report = load_of(worker.id, message.load, self._driver.now())
                    self._driver.feed(LoadReported(report=report))
                case "draining":
                    log.info("worker %s is draining", worker.id)
                    self._driver.feed(WorkerDraining(worker_id=worker.id))
                case other:
                    log.warning("worker %s sent a message that is not expected here: %s", worker.id, other)

    def _lost(self, worker: WorkerId, reason: str) -> None:
        self._streams.pop(worker, None)
        self._workers.remove(worker)
        log.warning("worker %s is lost: %s", worker, reason)
        self._driver.feed(WorkerLost(worker_id=worker, reason=reason))


class KvEventsService(KvEventsServicer):
    """Workers tell their caches here. A gap in the numbers clears what is believed and asks for everything anew."""

    def __init__(self, driver: Driver, on_gap: Callable[[], None]) -> None:
        self._driver = driver
        self._on_gap = on_gap
        self._resync: dict[WorkerId, str] = {}

    def ask_anew(self, command: Resync) -> None:
        """The core found a contradiction in what a worker told."""
        self._resync[command.worker_id] = command.reason

    async def Publish(  # noqa: N802 - named by the protocol
        self, requests: AsyncIterator[fleet_pb2.KvEventBatch], context: Any
    ) -> AsyncIterator[fleet_pb2.KvEventAck]:
        """One publisher's stream; every batch is acknowledged."""
        expected: int | None = None
        async for batch in requests:
            worker = WorkerId(batch.worker_id)
            if self._driver.scheduler.fleet.get(worker) is None:
                detail = f"worker_id: {worker!r} has not joined; join before telling what is cached"
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, detail)
            if expected is not None and batch.sequence < expected:
                yield fleet_pb2.KvEventAck(sequence=expected - 1)
                continue
            if expected is not None and batch.sequence > expected:
                yield self._gap(worker, batch.sequence, expected)
                expected = None
                continue
            if expected is None and not (batch.events and batch.events[0].WhichOneof("what") == "cleared"):
                # After a gap, or at a stream's start, only a batch that begins with a clean slate can be believed.
                yield fleet_pb2.KvEventAck(sequence=batch.sequence, resync=True, reason="begin with cleared")
                continue
            try:
                for event in cache_events(worker, batch.events):
                    self._driver.feed(event)
            except RequestError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            expected = batch.sequence + 1
            reason = self._resync.pop(worker, "")
            if reason:
                expected = None
            yield fleet_pb2.KvEventAck(sequence=batch.sequence, resync=bool(reason), reason=reason)

    def _gap(self, worker: WorkerId, sequence: int, expected: int) -> fleet_pb2.KvEventAck:
        self._on_gap()
        reason = f"batch {expected} was expected, {sequence} came"
        log.warning("worker %s: %s: its cached blocks are asked for anew", worker, reason)
        self._driver.feed(CacheCleared(worker_id=worker))
        return fleet_pb2.KvEventAck(sequence=sequence, resync=True, reason=reason)


def route_worker_commands(
    driver: Driver, fleet: FleetService, kv_events: KvEventsService, backends: "Backends | None"
) -> None:
    """Bring the core's commands about workers to where they are carried out."""

    def carry_out(command: Forget | Resync | ChangeRole) -> None:
        if isinstance(command, Forget):
            log.warning("worker %s is given up: %s", command.worker_id, command.reason)
            if backends is None or not backends.forget(command.worker_id):
                fleet.forget(command.worker_id)
        elif isinstance(command, ChangeRole):
            log.warning("worker %s should become a %s worker: %s", command.worker_id, command.role, command.reason)
        else:
            log.error("worker %s contradicts itself: %s", command.worker_id, command.reason)
            if backends is None or not backends.resync(command.worker_id):
                kv_events.ask_anew(command)

    driver.on_worker = carry_out
