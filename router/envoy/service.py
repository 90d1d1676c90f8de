"""The endpoint picker as a gRPC server: Envoy's external processor, its access log, and the health that gateways ask.

Envoy opens one stream per HTTP request and ends it with the response, in the same way whether that came whole or not.

Rule 1: everything that waits has a time-out (`Limits`), and so many streams, each with its body, may be open at once.
Rule 2: while a pick is waited for the stream is read, so that a client that leaves takes its request off the queue.
Rule 3: whatever the picker raises, the client gets an answer.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import grpc
import structlog
from envoy.service.accesslog.v3 import als_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as ext_proc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from homing.router.core.errors import ConfigError

from .endings import AccessLog, Endings
from .messages import Answered
from .processor import Effect, Exchange, Question
from .types import Pick, Picker, PickRefusedError

log = structlog.get_logger(__name__)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
LIVENESS = "liveness"
READINESS = "readiness"
FRAME_BYTES = 1 << 20
"""What a message may hold beside its body: headers and metadata."""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of what the service holds and waits for."""

    streams_max: int = 16_384
    body_bytes_max: int = 32 << 20
    body_timeout_s: float = 60.0
    """From a request's headers to the end of its body."""
    pick_timeout_s: float = 60.0
    response_timeout_s: float = 3600.0
    """From the pick to the end of the response."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not (value := getattr(self, name)) > 0:
                raise ConfigError(f"ext_proc: {name} must be above 0, found {value}")


class ExternalProcessor(ext_proc.ExternalProcessorServicer):  # type: ignore[misc]
    """Answers Envoy's streams with the endpoints that the picker chooses."""

    def __init__(self, picker: Picker, limits: Limits, endings: Endings) -> None:
        self._picker = picker
        self._limits = limits
        self._endings = endings
        prefix = secrets.token_hex(4)
        self._names = (f"{prefix}-{number}" for number in count())
        self.open_streams = 0

    async def Process(self, _requests: Any, context: Any) -> None:  # noqa: N802
        """One HTTP request, from its headers to the end of its response."""
        exchange = Exchange(next(self._names), body_bytes_max=self._limits.body_bytes_max)
        stream = _Stream(self._picker, self._limits, exchange, context)
        self.open_streams += 1
        try:
            if self.open_streams > self._limits.streams_max:
                await stream.refuse(self._full())
            else:
                await stream.run()
        finally:
            self.open_streams -= 1
            stream.close(self._endings)

    def _full(self) -> PickRefusedError:
        return PickRefusedError(503, f"{self._limits.streams_max} requests are open at the endpoint picker", 1.0)


class _Stream:
    """Carries messages between one gRPC stream and its exchange."""

    def __init__(self, picker: Picker, limits: Limits, exchange: Exchange, context: Any) -> None:
        self._picker = picker
        self._limits = limits
        self._context = context
        self._exchange = exchange
        self._deadline = asyncio.timeout(limits.body_timeout_s)
        self._reading: asyncio.Task[Any] | None = None
        self._pick: Pick | None = None
        self._is_given_up = False

    async def run(self) -> None:
        """Until the response has ended, the proxy has left or a time-out is over."""
        try:
            async with self._deadline:
                while (message := await self._read()) is not grpc.aio.EOF:
                    await self._perform(self._exchange.receive(message))
                    if self._exchange.is_over:
                        return
        except TimeoutError:
            if not self._exchange.is_answering:
                await self.refuse(self._too_late())
                return
            self._is_given_up = True
            log.warning("ext_proc: a response did not end", timeout_s=self._limits.response_timeout_s)

    async def refuse(self, error: PickRefusedError) -> None:
        """Answer the client instead of an endpoint."""
        await self._perform(self._exchange.refused(error))

    def close(self, endings: Endings) -> None:
        """Give the pick back, whatever happened."""
        if self._reading is not None:
            self._reading.cancel()
        if (pick := self._pick) is None:
            return
        cut_off = self._is_given_up or self._exchange.is_cut_off
        if cut_off is None:
            endings.settle(self._exchange.stream, lambda cut_off: self._picker.ended(pick, cancelled=cut_off))
        else:
            self._picker.ended(pick, cancelled=cut_off)

    async def _read(self) -> Any:
        if self._reading is None:
            return await self._context.read()
        reading, self._reading = self._reading, None
        return await reading

    async def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Question():
                    await self._perform(await self._ask(effect))
                case Answered():
                    assert self._pick is not None, "a response comes after a pick"
                    self._picker.served(self._pick, effect.endpoint, effect.status)
                case _:
                    await self._context.write(effect)

    async def _ask(self, question: Question) -> list[Effect]:
        """The exchange's answer to the pick. Nothing is due from a proxy that waits: what arrives before is its end."""
        self._reschedule(self._limits.pick_timeout_s)
        picking = asyncio.create_task(
            self._picker.pick(question.path, question.headers, question.body, question.subset)
        )
        self._reading = asyncio.create_task(self._context.read())
        try:
            await asyncio.wait({picking, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            if not picking.done():
                return []
            return self._answer(picking)
        finally:
            await self._settle(picking)

    def _answer(self, picking: asyncio.Task[Pick]) -> list[Effect]:
        try:
            pick = picking.result()
        except PickRefusedError as error:
            return self._exchange.refused(error)
        except (Exception, asyncio.CancelledError):
            log.exception("ext_proc: the picker failed")
            return self._exchange.refused(PickRefusedError(500, "the endpoint picker failed; its log says why"))
        self._reschedule(self._limits.response_timeout_s)
        return self._exchange.picked(pick)

    async def _settle(self, picking: asyncio.Task[Pick]) -> None:
        """Leave no pick behind, also when it was made while it was called off."""
        picking.cancel()
        await asyncio.wait({picking})
        if not picking.cancelled() and picking.exception() is None:
            self._pick = replace(picking.result(), body=None)

    def _reschedule(self, seconds: float) -> None:
        self._deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    def _too_late(self) -> PickRefusedError:
        if self._exchange.is_asking:
            return PickRefusedError(503, f"no endpoint was free within {self._limits.pick_timeout_s:g} s", 1.0)
        return PickRefusedError(408, f"the request's body took longer than {self._limits.body_timeout_s:g} s")


class ExtProcServer:
    """A gRPC server of the external processor and its health. One start, one stop."""

    def __init__(self, picker: Picker, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self.endings = Endings()
        self.processor = ExternalProcessor(picker, self._limits, self.endings)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> int:
        """Listen on `host:port` and return the port; not ready until `set_ready`. Raises ConfigError."""
        message_bytes_max = self._limits.body_bytes_max + FRAME_BYTES
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", message_bytes_max)])
        ext_proc.add_ExternalProcessorServicer_to_server(self.processor, self._server)
        als_pb2_grpc.add_AccessLogServiceServicer_to_server(AccessLog(self.endings), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"ext_proc: cannot listen on {address!r}: {error}; give a free HOST:PORT") from error
        await self._health.set("", SERVING)
        await self._health.set(LIVENESS, SERVING)
        await self.set_ready(ready=False)
        await self._server.start()
        return int(port)

    async def set_ready(self, *, ready: bool) -> None:
        """Whether gateways may send requests: there are workers, and this replica leads."""
        for service in (READINESS, SERVICE):
            await self._health.set(service, SERVING if ready else NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new streams and break those that are open after the grace."""
        await self.set_ready(ready=False)
        if self._server is not None:
            await self._server.stop(grace_s)
        self.endings.close()
