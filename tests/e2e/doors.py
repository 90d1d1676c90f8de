"""A router with its door open before echo engines, all in one process, on real sockets."""

from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import openai

from homing.router.service.config import parse_config
from homing.router.service.process import RouterProcess
from homing.workers.echo.openai import EchoServer
from homing.workers.echo.settings import EchoSettings, KvEventSettings, StepTimes

from .cluster import eventually

INSTANT = StepTimes(prefill_a_s=0, prefill_b_s=0, decode_s=0)
SLOW = StepTimes(prefill_a_s=0, prefill_b_s=0, decode_s=0.01)
MODEL = "echo"


class Door:
    """The router, and who asks it."""

    def __init__(self, process: RouterProcess) -> None:
        self.process = process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.process.front.door_port}"

    @property
    def ops(self) -> str:
        return f"http://127.0.0.1:{self.process.http_port}"

    @property
    def scheduler(self) -> Any:
        return self.process.scheduler

    async def joined(self, count: int, timeout_s: float = 10.0) -> None:
        await eventually(lambda: len(self.scheduler.fleet) == count, f"the fleet has {count} workers", timeout_s)

    async def chat(self, text: str, headers: Any = None, **more: Any) -> tuple[int, Any, Any]:
        """Status, body and headers."""
        return await self.post("/v1/chat/completions", chat(text, **more), headers)

    async def post(self, path: str, body: Any, headers: Any = None) -> tuple[int, Any, Any]:
        return await self._ask("POST", self.url + path, body, headers)

    async def get(self, path: str) -> tuple[int, Any, Any]:
        return await self._ask("GET", self.url + path)

    async def operate(self, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        """As the operator."""
        return await self._ask(method, self.ops + path, body)

    async def _ask(self, method: str, url: str, body: Any = None, headers: Any = None) -> tuple[int, Any, Any]:
        data = body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json", **(headers or {})}
        async with self.session.request(method, url, data=data, headers=headers) as answer:
            told = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, msgspec.json.decode(told) if is_json else told.decode(), answer.headers

    async def assert_idle(self) -> None:
        """Nothing is booked, nothing waits, nothing is held."""
        scheduler = self.scheduler
        await eventually(lambda: not scheduler.in_flight, "no request is in flight")
        assert len(scheduler.fleet.ledger) == 0
        assert len(scheduler.admission) == 0
        assert not self.process.driver._mailboxes
        assert not scheduler._attempts
        assert self.process.front._server.bodies_bytes == 0
        scheduler.check()


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


@asynccontextmanager
async def engines(count: int, **settings: Any) -> Any:
    """Echo engines; each tells what it caches."""
    settings = {"times": INSTANT, "model": MODEL, "kv_events": KvEventSettings(), **settings}
    made = [EchoServer(EchoSettings(**settings)) for _ in range(count)]
    try:
        for engine in made:
            await engine.start()
        yield made
    finally:
        for engine in made:
            await engine.close()


@asynccontextmanager
async def opened(*urls: str, router: str = "", config: str = "", count: int | None = None) -> Any:
    """The door before these engines; `router` adds to its section of the file, `config` to the file."""
    backends = ", ".join(f"{{url: '{url}', id: e{number}}}" for number, url in enumerate(urls))
    text = (
        "router: {door: '127.0.0.1:0', listen: '127.0.0.1:0', http: '127.0.0.1:0', poll_s: 0.1, "
        f"first_token_timeout_s: 10{', ' + router if router else ''}}}\nbackends: [{backends}]\n{config}"
    )
    process = RouterProcess(parse_config(text), lambda name: None)
    await process.start()
    system = Door(process)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(process.close)
        system.session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), connector=aiohttp.TCPConnector(limit=0))
        )
        await system.joined(len(urls) if count is None else count)
        yield system
        await system.assert_idle()


@asynccontextmanager
async def fronted(count: int = 2, *, router: str = "", config: str = "", **settings: Any) -> Any:
    """The door and echo engines behind it."""
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(engines(count, **settings))
        urls = (engine.url for engine in made)
        system = await stack.enter_async_context(opened(*urls, router=router, config=config))
        system.engines = made
        yield system


@asynccontextmanager
async def client_of(system: Door) -> Any:
    """OpenAI's own client, which asks once."""
    async with openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def running(engine: EchoServer) -> int:
    return engine.engine.running + engine.engine.waiting
