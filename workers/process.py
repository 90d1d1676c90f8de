"""A worker process: model, engine, data plane, gRPC server and membership, put together and taken apart in order."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from functools import partial

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from homing.protos import common_pb2, fleet_pb2, worker_pb2, worker_pb2_grpc

from .calibration import calibrate
from .engine.kvcache import KvEvent
from .membership import Membership
from .model.weights import LoadedModel, load_model
from .pulling import Puller
from .runtime import WorkerRuntime
from .service import WorkerService
from .transfer import DataServer, SocketSettings

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""A prompt of four million tokens; anything larger is refused by gRPC itself."""
FLUSH_S = 2.0
"""How long a drained worker waits until those it answered have read it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Everything a worker is told at its start."""

    id: str
    site: str
    model: str
    """The name under which requests ask for it."""
    source: str
    """What to load: a directory, a .gguf file, "smollm2" or "tiny"."""
    role: str = "both"
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    block_tokens: int = 16
    kv_blocks_max: int = 1024
    requests_max: int = 16
    step_tokens_max: int = 256
    host: str = "127.0.0.1"
    port: int = 0
    advertise_host: str | None = None
    """The host that others are told, for a worker that listens on all interfaces."""
    data_port: int = 0
    routers: tuple[str, ...] = ()
    address_from: dict[str, str] = field(default_factory=dict)
    """gRPC address of this worker as seen from other sites, where a gateway stands between."""
    data_address_from: dict[str, str] = field(default_factory=dict)
    """The same for the data plane."""
    connections: int = 1
    congestion: str | None = None
    inline: bool = False
    calibrate: bool = True
    """Whether to measure the model's speed before joining."""
    prior: tuple[float, float, float] | None = None
    """First guess of the prefill coefficients a_s, b_s, q_s."""


class WorkerProcess:
    """Start with `start`, stop with `drain` and `close`."""

    def __init__(self, settings: WorkerSettings, loaded: LoadedModel | None = None) -> None:
        self.settings = settings
        self._loaded = loaded
        self._server: grpc.aio.Server | None = None
        self._opened = contextlib.AsyncExitStack()
        self._members: list[Membership] = []
        self._measured: list[common_pb2.PrefillOutcome] = []
        self.runtime: WorkerRuntime
        self.service: WorkerService
        self.port = 0

    @property
    def data_port(self) -> int:
        """The port of the data plane."""
        return self._data.port

    @property
    def address(self) -> str:
        """The gRPC address that others are told."""
        return _host_and_port(self.settings.advertise_host or self.settings.host, self.port)

    async def start(self) -> None:
        """Load the model, listen, join. Raises OSError for a port in use, ValueError or FileNotFoundError for a
        model; then nothing is left open.
        """
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        settings = self.settings
        loaded = self._loaded
        if loaded is None:
            load = partial(load_model, dtype=settings.dtype, threads=settings.threads, device=settings.device)
            loaded = await asyncio.to_thread(load, settings.source)
        kv = loaded.kv_tensor(blocks=settings.kv_blocks_max, block_tokens=settings.block_tokens)
        if settings.calibrate:
            measure = partial(calibrate, loaded.model, kv, settings.id, vocab_tokens=loaded.config.vocab_tokens)
            self._measured = await asyncio.to_thread(measure)
        self._data = DataServer(kv, host=settings.host, port=settings.data_port, advertise_host=settings.advertise_host)
        try:
            await self._data.start()
        except OSError as error:
            detail = f"{settings.host}:{settings.data_port}: cannot listen there for blocks ({error.strerror})"
            raise OSError(f"{detail}; is the port in use? choose another data_port") from error
        self._opened.push_async_callback(self._data.close)
        transport = SocketSettings(connections=settings.connections, congestion=settings.congestion)
        self._puller = Puller(settings.id, settings.site, kv, settings=transport, inline=settings.inline)
        self._opened.push_async_callback(self._puller.close)
        self.runtime = WorkerRuntime(
            loaded.model,
            kv,
            puller=self._puller,
            data=self._data,
            step_tokens_max=settings.step_tokens_max,
            sequences_max=settings.requests_max,
        )
        self._opened.push_async_callback(self.runtime.close)
        self.service = WorkerService(
            self.runtime,
            loaded.config,
            worker_id=settings.id,
            block_tokens=settings.block_tokens,
            data_address_from={site: _host_port(a) for site, a in settings.data_address_from.items()},
        )
        await self._listen()
        self.runtime.start()
        self._join(loaded)
        log.info(
            "worker %s (%s, %s) in %s listens on %s",
            settings.id,
            settings.role,
            loaded.name,
            settings.site,
            self.address,
        )

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, finish what runs, at most for `timeout_s`."""
        self.service.draining = True
        for member in self._members:
            member.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.runtime.idle.wait(), timeout_s)
        # The last tokens may be on their way still: leaving the routers before would break their requests.
        if self._server is not None:
            await self._server.stop(FLUSH_S)

    async def close(self) -> None:
        """Stop everything, in the reverse order of `start`. Idempotent."""
        await asyncio.gather(*(member.close() for member in self._members))
        await self._opened.aclose()

    async def _listen(self) -> None:
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.so_reuseport", 0)]
        server = grpc.aio.server(options=options)
        worker_pb2_grpc.add_WorkerServicer_to_server(self.service, server)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        name = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
        reflection.enable_server_reflection((name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        wanted = _host_and_port(self.settings.host, self.settings.port)
        try:
            self.port = server.add_insecure_port(wanted)
        except RuntimeError as error:
            detail = f"{wanted}: cannot listen there ({error}); is the port in use? choose another"
            raise OSError(detail) from error
        await server.start()
        self._opened.push_async_callback(server.stop, 0.2)
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server

    def _join(self, loaded: LoadedModel) -> None:
        hello = self._hello(loaded)
        for router in self.settings.routers:
            self._members.append(Membership(router, hello, load=self.runtime.load, cache=self.runtime.cache))
        self.runtime.on_kv_events = self._tell
        self.runtime.on_load = self._load_changed
        for member in self._members:
            member.start()

    def _tell(self, events: list[KvEvent]) -> None:
        for member in self._members:
            member.tell(events)

    def _load_changed(self) -> None:
        for member in self._members:
            member.load_changed()

    def _hello(self, loaded: LoadedModel) -> fleet_pb2.Hello:
        settings, kv = self.settings, self.runtime.kv
        a_s, b_s, q_s = settings.prior or (0.0, 0.0, 0.0)
        return fleet_pb2.Hello(
            worker_id=settings.id,
            model=settings.model,
            role=settings.role,
            site=settings.site,
            address=self.address,
            address_from=settings.address_from,
            block_tokens=settings.block_tokens,
            kv_blocks_max=settings.kv_blocks_max,
            requests_max=settings.requests_max,
            kv_format=kv.format,
            kv_bytes_per_token=kv.block_bytes // settings.block_tokens,
            layers=kv.layers,
            context_tokens=loaded.config.context_tokens,
            vocabulary_tokens=loaded.config.vocab_tokens,
            prefill_a_s=a_s,
            prefill_b_s=b_s,
            prefill_q_s=q_s,
            measured=self._measured,
        )


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
