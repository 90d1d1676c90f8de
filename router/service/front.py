"""Engines that others wrote, and the door in front of them, put together and taken apart in order."""

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import aiohttp
import zmq.asyncio
from aiohttp import web

from homing.router.actuators.http import HttpPost
from homing.router.actuators.registry import check_kv, make_actuator
from homing.router.actuators.types import Actuator
from homing.router.core.errors import ConfigError
from homing.router.core.types import Role
from homing.router.engines.probe import probe
from homing.router.engines.types import Adapter, EngineFacts, EngineKind
from homing.router.kv_events.hub import KvEventHub

from .backends.admin import Admin
from .backends.calibration import calibrate
from .backends.described import Description, check, credentials, describe
from .backends.endpoint import Endpoints
from .backends.fleet import Backends
from .backends.gauges import BackendGauges
from .backends.readers import LocalReaderOf, Readers
from .backends.watch import Backend, Surroundings
from .config import Config
from .door.door import Door, DoorParts
from .door.hits import Hits
from .door.http import HttpLimits
from .door.native import NativeAnswers
from .door.server import HttpServer
from .door.telling import Carrier
from .door.tracing import Tracing
from .door.upstream import Timeouts, Upstream
from .driver import Driver
from .metrics import Metrics
from .picker import EndpointPicker
from .sections import BackendSection

if TYPE_CHECKING:
    from homing.router.envoy.service import ExtProcServer

log = logging.getLogger(__name__)


class Front:
    """Made in the event loop. `native` answers for Homing's own workers; `not_ready` says why nobody could answer."""

    def __init__(
        self,
        config: Config,
        driver: Driver,
        metrics: Metrics,
        native: NativeAnswers,
        local_reader_of: LocalReaderOf,
        not_ready: Callable[[], str],
    ) -> None:
        section = config.router
        self._config = config
        self._driver = driver
        self._not_ready = not_ready
        self._random = Random(config.policy.seed)  # noqa: S311 - names rooms, keeps no secret
        self._actuators: dict[str, Actuator] = {}
        self.endpoints = Endpoints()
        self.hits = Hits()
        self._tracing = None if section.traces is None else Tracing(section.traces)
        self.readers = Readers(local_reader_of, self.endpoints)
        self._session = aiohttp.ClientSession()
        self._context = zmq.asyncio.Context()
        around = Surroundings(
            driver=driver,
            endpoints=self.endpoints,
            find=self._find,
            upstream_of=self._upstream_of,
            describe=self._describe,
            calibrate=self._calibrate,
            context=self._context,
            hub=KvEventHub(self._context),
            poll_s=section.poll_s,
            lost_after_s=section.lost_after_s,
        )
        self.backends = Backends(around, self._actuator_of, drain_s=section.drain_s)
        self._admin = Admin(driver, self.backends, self.endpoints, self.readers, self.hits, self._check)
        metrics.registry.register(BackendGauges(self.backends, self.hits))
        self.door = Door(
            DoorParts(
                carrier=Carrier(
                    driver=driver,
                    endpoints=self.endpoints,
                    post=HttpPost(self._session),
                    hits=self.hits,
                    tracing=self._tracing,
                ),
                native=native,
                reader_of=self.readers,
                not_ready=not_ready,
                is_looking=lambda: any(backend.facts is None for backend in self.backends),
                request_timeout_s=section.request_timeout_s,
            )
        )
        self._ext_proc: ExtProcServer | None = None
        self._picker: EndpointPicker | None = None
        self._telling: asyncio.Task[None] | None = None
        self.ext_proc_port = 0
        limits = HttpLimits(body_bytes_max=section.body_bytes_max, connections_max=section.connections_max)
        self._server = HttpServer(self.door, limits)
        self.door_port = 0

    def add_routes(self, app: web.Application) -> None:
        """The operator's routes."""
        self._admin.add_to(app)

    async def start(self) -> None:
        """Open the door, if there is to be one, and look for the file's engines. Raises ConfigError."""
        for section in self._config.backends:
            self._check(section)
        address = self._config.router.door
        if address is not None:
            host, _, port = address.rpartition(":")
            try:
                self.door_port = await self._server.start(host.strip("[]"), int(port))
            except OSError as error:
                raise ConfigError(f"router.door: cannot listen on {address}: {error.strerror}") from error
            log.info("the door is open at http://%s:%s", host, self.door_port)
        if self._config.router.ext_proc is not None:
            await self._start_ext_proc(self._config.router.ext_proc)
        for section in self._config.backends:
            self.backends.add(section, from_file=True)

    async def _start_ext_proc(self, address: str) -> None:
        """Pick endpoints for gateways. Raises ConfigError."""
        try:
            from homing.router.envoy.service import ExtProcServer, Limits  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ConfigError(f"router.ext_proc: needs more packages: pip install 'homing[envoy]' ({error})") from error
        router = self._config.router
        picker = self._picker = EndpointPicker(
            self._driver, self.endpoints, self.door.reader, self.door.parts.carrier.post
        )
        limits = Limits(body_bytes_max=router.body_bytes_max, pick_timeout_s=router.request_timeout_s)
        self._ext_proc = ExtProcServer(picker, limits)
        self.ext_proc_port = await self._ext_proc.start(address)
        self._telling = asyncio.create_task(self._tell_ready(self._ext_proc))
        log.info("endpoints are picked for gateways at %s (ext_proc)", address)

    async def _tell_ready(self, server: "ExtProcServer") -> None:
        """Let gateways know whether there is an engine."""
        told = None
        while True:
            ready = not self._not_ready()
            if ready != told:
                await server.set_ready(ready=ready)
                told = ready
            await asyncio.sleep(0.5)

    def drain(self) -> None:
        """Take no new request."""
        self.door.draining = True
        if self._picker is not None:
            self._picker.draining = True

    def apply(self, config: Config) -> None:
        """Take the engines of a file that changed. Raises ConfigError, and then nothing has changed."""
        for section in config.backends:
            self._check(section)
        self._config = config
        changes = self.backends.apply(config.backends)
        log.info(
            "the file was read again: backends added: %s; removed: %s; changed: %s",
            ", ".join(changes.added) or "none",
            ", ".join(changes.removed) or "none",
            ", ".join(changes.changed) or "none",
        )

    async def close(self) -> None:
        """Close everything. Idempotent."""
        await self._server.close(grace_s=0.2)
        asking = list(self.door.parts.carrier.asking)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        if self._telling is not None:
            self._telling.cancel()
        if self._ext_proc is not None:
            await self._ext_proc.stop(0.2)
        await self.backends.close()
        for actuator in self._actuators.values():
            await actuator.close()
        await self._session.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._context.destroy(linger=0)

    # -- for backends ---------------------------------------------------------------------------------------------

    def _check(self, section: BackendSection) -> None:
        """What the file's own rules do not say: connectors and their addresses, the environment, the site."""
        where = f"backends: {section.name}"
        check(section)
        sites = {site.name for site in self._config.sites}
        if section.site is not None and sites and section.site not in sites:
            raise ConfigError(f"{where}.site: unknown site {section.site!r}; sites lists {', '.join(sorted(sites))}")
        actuator = self._actuator_of(section)
        if section.connector is not None and actuator is not None:
            check_kv(actuator, Role(section.role), section.connector.kv, f"{where}.connector")

    def _actuator_of(self, section: BackendSection) -> Actuator | None:
        """What moves a backend's KV. Those of one connector and one set of options share it: it remembers things."""
        connector = section.connector
        if connector is None:
            return None
        key = repr((connector.name, sorted(connector.options.items())))
        if key not in self._actuators:
            where = f"backends: {section.name}.connector"
            self._actuators[key] = make_actuator(connector.name, connector.options, self._random, where)
        return self._actuators[key]

    async def _find(self, section: BackendSection) -> Adapter:
        kind = None if section.engine == "auto" else EngineKind(section.engine)
        return await probe(section.url, self._session, kind, headers=credentials(section))

    def _upstream_of(self, section: BackendSection) -> Upstream:
        router = self._config.router
        timeouts = Timeouts(first_byte_s=router.first_token_timeout_s, between_s=router.first_token_timeout_s)
        return Upstream(section.url, timeouts)

    def _describe(self, section: BackendSection, facts: EngineFacts) -> Description:
        return describe(section, facts, self._config, self._driver.scheduler.models, self._actuator_of(section))

    async def _calibrate(self, backend: Backend) -> None:
        limit_s = 2 * self._config.router.first_token_timeout_s
        async with asyncio.timeout(limit_s):
            await calibrate(backend, self._driver)
