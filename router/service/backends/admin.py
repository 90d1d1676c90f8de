"""The operator's view of the fleet over HTTP, and his hand in it: `/fleet`, `/workers`."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web

from homing.router.core.errors import ConfigError
from homing.router.core.fleet import WorkerState
from homing.router.core.types import Tier

from ..config import parse_backend
from ..door.hits import Hits
from ..driver import Driver
from .endpoint import Endpoints
from .fleet import BACKENDS_MAX, Backends
from .readers import Readers
from .watch import Backend


class Admin:
    """Routes for the operator's HTTP server."""

    def __init__(
        self,
        driver: Driver,
        backends: Backends,
        endpoints: Endpoints,
        readers: Readers,
        hits: Hits,
        check: Callable[[Any], None],
    ) -> None:
        self._driver = driver
        self._backends = backends
        self._endpoints = endpoints
        self._readers = readers
        self._hits = hits
        self._check = check

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/fleet", self._tell_fleet)
        app.router.add_get("/workers", self._list)
        app.router.add_post("/workers", self._add)
        app.router.add_get("/workers/{id:.+}", self._tell)
        app.router.add_delete("/workers/{id:.+}", self._remove)

    # -- backends -------------------------------------------------------------------------------------------------

    async def _list(self, request: web.Request) -> web.Response:
        return _json(200, {"workers": [self._backend(backend) for backend in self._backends]})

    async def _tell(self, request: web.Request) -> web.Response:
        name = unquote(request.match_info["id"])
        backend = self._backends.get(name)
        if backend is None:
            return self._unknown(name)
        return _json(200, self._backend(backend))

    async def _add(self, request: web.Request) -> web.Response:
        """The body is an entry of the file's `backends`, as JSON."""
        try:
            given = msgspec.json.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _error(400, f"the body is not JSON: {error}")
        try:
            section = parse_backend(given, where="workers")
            self._check(section)
        except ConfigError as error:
            return _error(400, str(error))
        if self._backends.get(section.name) is not None:
            return _error(409, f"id: {section.name!r} is there already; DELETE it first, or give another id")
        if len(self._backends) >= BACKENDS_MAX:
            return _error(429, f"there are {BACKENDS_MAX} backends already")
        try:
            backend = self._backends.add(section)
        except ConfigError as error:
            return _error(400, str(error))
        location = f"/workers/{quote(section.name, safe='')}"
        return _json(202, self._backend(backend), {"Location": location})

    async def _remove(self, request: web.Request) -> web.Response:
        name = unquote(request.match_info["id"])
        if not self._backends.remove(name):
            return self._unknown(name)
        return _json(202, {"id": name, "status": "draining"})

    def _unknown(self, name: str) -> web.Response:
        known = ", ".join(backend.name for backend in self._backends) or "none"
        return _error(404, f"id: no backend {name!r}; known are {known}")

    def _backend(self, backend: Backend) -> dict[str, Any]:
        facts = backend.facts
        return {
            "id": backend.name,
            "url": backend.section.url,
            "site": backend.section.site,
            "role": backend.section.role,
            "status": "draining" if backend.draining else "serving" if backend.workers else "looking",
            "problem": backend.problem or None,
            "engine": None if facts is None else facts.kind.value,
            "version": None if facts is None else facts.version,
            "models": [] if facts is None else [model.name for model in facts.models],
            "connector": backend.section.connector.name if backend.section.connector else None,
            "workers": [
                {"id": worker, "trust": trust.value, "why": why or None}
                for worker, (trust, why, _) in backend.sources().items()
            ],
        }

    # -- the fleet ------------------------------------------------------------------------------------------------

    async def _tell_fleet(self, request: web.Request) -> web.Response:
        scheduler, now = self._driver.scheduler, self._driver.now()
        states = sorted(scheduler.fleet, key=lambda state: state.worker.id)
        told = {
            "policy": scheduler.policy.name,
            "site": scheduler.world.site,
            "models": [self._model(str(name)) for name in sorted(scheduler.fleet.models())],
            "workers": [self._worker(state, now) for state in states],
            "links": [self._link(source, target) for source, target in scheduler.topology.known()],
            "requests_waiting": len(scheduler.admission),
            "requests_in_flight": len(scheduler.in_flight),
            "prefix_hits": {
                "compared": self._hits.compared,
                "agreed": self._hits.agreed,
                "predicted_tokens": self._hits.predicted_tokens,
                "found_tokens": self._hits.found_tokens,
            },
        }
        return _json(200, told)

    def _model(self, name: str) -> dict[str, Any]:
        profile = next(p for known, p in self._driver.scheduler.models.items() if known == name)
        return {
            "name": name,
            "block_tokens": profile.block_tokens,
            "bytes_per_token": profile.bytes_per_token,
            "context_tokens": profile.context_tokens,
            "tokens_from": self._readers.source(name),
        }

    def _worker(self, state: WorkerState, now: float) -> dict[str, Any]:
        scheduler = self._driver.scheduler
        worker, endpoint = state.worker, self._endpoints.get(state.worker.id)
        a_s, b_s, q_s = state.rate.coefficients
        return {
            "id": worker.id,
            "url": None if endpoint is None else endpoint.url,
            "model": worker.model,
            "site": worker.site,
            "role": worker.role.value,
            "plans": ["local", *sorted(kind.value for kind in worker.plans if kind.value != "local")],
            "transport": worker.transport or None,
            "trust": state.trust.value,
            "draining": state.draining,
            "running_requests": scheduler.fleet.running(state),
            "requests_max": worker.requests_max,
            "queue_s": scheduler.fleet.queue_s(state, now),
            "cached_blocks": {tier.value: scheduler.index[tier].blocks_of(state.bit) for tier in Tier},
            "prefill_s": {"a_s": a_s, "b_s": b_s, "q_s": q_s, "samples": state.rate.samples},
            "decode_step_s": state.decode_step_s.value,
            "silent_s": now - state.last_seen_s,
        }

    def _link(self, source: Any, target: Any) -> dict[str, Any]:
        rate = self._driver.scheduler.topology.rate(source, target)
        return {
            "source": source,
            "target": target,
            "rtt_s": rate.rtt_s,
            "bytes_per_s": rate.bytes_per_s,
            "samples": rate.samples,
        }


def _json(status: int, told: Any, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(told)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _error(status: int, message: str) -> web.Response:
    kind = "invalid_request_error"
    return _json(status, {"error": {"message": message, "type": kind, "param": None, "code": None}})
