"""A router process: core, driver, gRPC and HTTP servers, put together and taken apart in order."""

import asyncio
import logging
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from homing.router.core.errors import ConfigError
from homing.router.core.events import LinksConfigured
from homing.router.core.journal import Header
from homing.router.core.types import ModelName, Site

from .config import Config
from .driver import Driver
from .journal import DecisionJournal
from .membership import FleetService, KvEventsService, route_worker_commands
from .metrics import Metrics
from .ops import OpsServer
from .prompts import Intake
from .recorder import Recorder
from .server import RouterService
from .text import CodecOf
from .wire import (
    SERVICES,
    add_FleetServicer_to_server,
    add_KvEventsServicer_to_server,
    add_RouterServicer_to_server,
)
from .workers import MESSAGE_BYTES_MAX, Workers

if TYPE_CHECKING:
    from .backends.readers import LocalReaderOf
    from .front import Front

log = logging.getLogger(__name__)


class RouterProcess:
    """Made in the event loop; start with `start`, stop with `drain` and `close`.

    `codec_of` makes tokens of text where a model has a tokenizer, `local_reader_of` of whole requests.
    """

    def __init__(self, config: Config, codec_of: CodecOf, local_reader_of: "LocalReaderOf | None" = None) -> None:
        self._config = config
        section = config.router
        random = Random(config.policy.seed)  # noqa: S311 - spreads load, keeps no secret
        made = Header(
            models=tuple(config.profiles()),
            links=tuple(config.directions()),
            site=Site(section.site),
            policy=config.policy.name,
            options=config.policy.options,
            limits=config.limits(),
            dollars_per_s=config.policy.dollars_per_s,
            random_state=random.getstate(),
        )
        self.scheduler = made.scheduler(random)
        self._recorder = None if section.journal is None else Recorder(Path(section.journal), made, self.scheduler)
        self.driver = Driver(self.scheduler)
        self.workers = Workers(self.scheduler.world.site)
        self.metrics = Metrics(self.scheduler)
        journal = DecisionJournal(section.decisions_kept)
        self.driver.observe(self.metrics)
        self.driver.observe(journal)
        if self._recorder is not None:
            self.driver.observe(self._recorder)
        models = self.scheduler.models
        intake = Intake(
            profile=lambda name: models.get(ModelName(name)), codec_of=codec_of, known=lambda: sorted(models)
        )
        self._router = RouterService(
            self.driver,
            self.workers,
            intake,
            journal,
            codec_of,
            request_timeout_s=section.request_timeout_s,
            first_token_timeout_s=section.first_token_timeout_s,
        )
        self._fleet = FleetService(self.driver, self.workers, config, report_every_s=section.lost_after_s / 8)
        self._kv_events = KvEventsService(self.driver, self.metrics.kv_event_gaps.inc)
        self.front = self._make_front(intake, codec_of, local_reader_of or (lambda model, fallback: None))
        backends = None if self.front is None else self.front.backends
        route_worker_commands(self.driver, self._fleet, self._kv_events, backends)
        more = None
        if self.front is not None:
            more = self.front.add_routes
            self.workers.address_elsewhere = self.front.endpoints.url
            self._router.is_fronted = self.front.endpoints.serves
        self._ops = OpsServer(self.metrics, self._not_ready_because, more)
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self.port = 0
        self.http_port = 0

    def _make_front(self, intake: Intake, codec_of: CodecOf, local_reader_of: "LocalReaderOf") -> "Front | None":
        """What stands before engines of others; a router that has none needs nothing of it installed."""
        section = self._config.router
        if section.door is None and section.ext_proc is None and not self._config.backends:
            return None
        try:
            from .door.native import NativeAnswers  # noqa: PLC0415 - optional
            from .front import Front  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ConfigError(f"router.door: needs more packages ({error}): pip install 'homing[http]'") from error
        native = NativeAnswers(
            self.driver, self.workers, intake, codec_of, first_token_timeout_s=section.first_token_timeout_s
        )
        return Front(self._config, self.driver, self.metrics, native, local_reader_of, self._not_ready_because)

    async def start(self) -> None:
        """Listen. Raises ConfigError when an address is taken or not this machine's."""
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.so_reuseport", 0)]
        server = grpc.aio.server(options=options)
        add_RouterServicer_to_server(self._router, server)
        add_FleetServicer_to_server(self._fleet, server)
        add_KvEventsServicer_to_server(self._kv_events, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            await self._listen(server)
        except BaseException:
            await self.close()
            raise
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._server = server

    async def _listen(self, server: grpc.aio.Server) -> None:
        section = self._config.router
        host, _, port = section.http.rpartition(":")
        try:
            # Before the gRPC port, which a server that has not started cannot give back.
            self.http_port = await self._ops.start(host.strip("[]"), int(port))
        except OSError as error:
            raise ConfigError(f"router.http: cannot listen on {section.http}: {error.strerror}") from error
        if self.front is not None:
            await self.front.start()
        try:
            self.port = server.add_insecure_port(section.listen)
        except RuntimeError as error:
            raise ConfigError(
                f"router.listen: cannot listen on {section.listen}: is the port in use, or not this machine's?"
            ) from error
        await server.start()
        grpc_host = section.listen.rpartition(":")[0]
        log.info(
            "router in %s listens on %s:%s (gRPC) and %s:%s (HTTP)",
            section.site,
            grpc_host,
            self.port,
            host,
            self.http_port,
        )

    def apply(self, config: Config) -> None:
        """Take the engines and links of a file that changed; what else changed needs a restart. Raises ConfigError."""
        if self.front is not None:
            self.front.apply(config)
        if config.links != self._config.links:
            self.driver.feed(LinksConfigured(links=tuple(config.directions())))
        taken = {"backends", "links", "models"}
        for name in sorted(set(Config.__struct_fields__) - taken):
            if getattr(config, name) != getattr(self._config, name):
                log.warning("%s: changed in the file; that is taken at the next start", name)
        self._config = config

    async def drain(self, timeout_s: float) -> None:
        """Take no new request, let those in flight end, at most for `timeout_s`."""
        self._router.draining = True
        if self.front is not None:
            self.front.drain()
        await self._health.enter_graceful_shutdown()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while self.scheduler.in_flight and loop.time() < until_s:  # noqa: ASYNC110 - polled for seconds at a shutdown
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Stop everything. Idempotent."""
        if self._server is not None:
            await self._server.stop(grace=0.2)
            self._server = None
        if self.front is not None:
            await self.front.close()
        self.driver.stop()
        await self._ops.close()
        await self.workers.close()
        if self._recorder is not None:
            self._recorder.close()

    def _not_ready_because(self) -> str:
        if self._router.draining:
            return "draining"
        if not len(self.scheduler.fleet):
            return "no worker has joined"
        return ""
