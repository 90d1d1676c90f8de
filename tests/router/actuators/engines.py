"""The wire side of engines: HTTP servers on loopback that note what they are asked and answer as they are told."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from homing.router.actuators.http import HttpPost
from homing.router.actuators.types import Order, Peer
from homing.router.core.types import Estimate, Move, MoveKind, Plan, PlanKind, WorkerId

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@dataclass
class Call:
    method: str
    path: str
    json: Any
    headers: dict[str, str]


@dataclass
class Wire:
    """One server. `answers` maps a path, with or without its query, to what is answered: JSON, a status, "hang"."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    url: str = ""
    hanging: int = 0

    async def serve(self, request: web.Request) -> web.Response:
        data = await request.json() if request.can_read_body else None
        self.calls.append(
            Call(
                request.method, request.path_qs, data, {name.lower(): value for name, value in request.headers.items()}
            )
        )
        answer = self.answers.get(request.path_qs, self.answers.get(request.path, 404))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer == "hang":
            self.hanging += 1
            try:
                await asyncio.sleep(60)
            finally:
                self.hanging -= 1
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "as told"}}, status=answer)
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(answer)


@asynccontextmanager
async def wires(count):
    """Servers, and a `Post` that reaches them; afterwards nothing of the test runs any more."""
    runners, made = [], [Wire() for _ in range(count)]
    for wire in made:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", wire.serve)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        wire.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        runners.append(runner)
    async with aiohttp.ClientSession() as session:
        yield HttpPost(session), *made
    for runner in runners:
        await runner.cleanup()


async def refusing_url():
    """A URL at which nobody listens: its port was ours a moment ago."""
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"


def move(kind, source, target, first=0, end=2):
    return Move(
        kind=MoveKind(kind),
        source=WorkerId(source),
        target=WorkerId(target),
        block_first=first,
        block_end=end,
        bytes=1,
    )


def plan(kind, moves=(), prefill="d", decode="d", **estimate):
    return Plan(
        kind=PlanKind(kind),
        prefill=WorkerId(prefill),
        decode=WorkerId(decode),
        moves=tuple(moves),
        estimate=Estimate(**estimate),
        prefill_compute_s=0.1,
    )


def local():
    return plan("local")


def fetch(kind="fetch", **estimate):
    return plan(kind, [move("fetch", "s", "d")], **estimate)


def remote(*more, **estimate):
    return plan("remote", [*more, move("ship", "p", "d", 1, 4)], prefill="p", **estimate)


def peer(name, url="http://127.0.0.1:1", rank=0, site="here", headers=None, **kv):
    return Peer(worker=WorkerId(name), url=url, rank=rank, site=site, kv=kv, headers=headers or {})


def order(the_plan, *peers, body=None, path=CHAT, request_id="r-1", headers=None, tokens=(), block_tokens=4):
    return Order(
        request_id=request_id,
        path=path,
        body=dict(CHAT_BODY if body is None else body),
        headers=headers or {},
        plan=the_plan,
        peers={one.worker: one for one in peers},
        block_tokens=block_tokens,
        tokens=tuple(tokens),
    )


CHAT_BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "max_completion_tokens": 90,
    "min_tokens": 5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "response_format": {"type": "json_object"},
}
CHAT_PREFILL = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 1,
    "max_completion_tokens": 1,
    "stream": False,
    "temperature": 0.5,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "response_format": {"type": "json_object"},
}
TEXT_BODY = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 50, "stream": True, "ignore_eos": True, "cache_salt": "t"}
TEXT_PREFILL = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 1, "stream": False, "cache_salt": "t"}
