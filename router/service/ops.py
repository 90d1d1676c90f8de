"""The operator's HTTP: `/metrics` for Prometheus, `/health` for "the process lives", `/ready` for "it can serve"."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from .metrics import Metrics

BODY_BYTES_MAX = 64 * 1024


class OpsServer:
    """Listens on `host:port`. `ready` says why the router cannot serve, or nothing when it can; `more` adds routes."""

    def __init__(
        self, metrics: Metrics, ready: Callable[[], str], more: Callable[[web.Application], None] | None = None
    ) -> None:
        self._metrics = metrics
        self._ready = ready
        self._more = more
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when the address is taken."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/health", self._serve_health)
        app.router.add_get("/ready", self._serve_ready)
        if self._more is not None:
            self._more(app)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve_metrics(self, request: web.Request) -> web.Response:
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _serve_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _serve_ready(self, request: web.Request) -> web.Response:
        problem = self._ready()
        return web.Response(text=f"{problem or 'ready'}\n", status=503 if problem else 200)
