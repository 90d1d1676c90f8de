"""Engines to be asked: real HTTP servers on loopback that answer what was recorded, byte for byte, or break."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from homing.router.engines.http import EngineHttp

EXCHANGES = Path(__file__).parent / "exchanges"


def exchanges(name):
    return json.loads((EXCHANGES / f"{name}.json").read_text(encoding="utf-8"))["exchanges"]


def recorded(name, path, turn=0):
    """The body of one recorded answer."""
    return [row for row in exchanges(name) if row["path"] == path][turn]["answer"]


class Replay:
    """Answers a request that was recorded, whose JSON is the same, and keeps all that came."""

    def __init__(self, name):
        self.rows = exchanges(name)
        self.came = []
        self.headers = []

    async def answer(self, request):
        body = await request.json() if request.can_read_body else None
        self.came.append((request.method, request.path_qs, body))
        self.headers.append(request.headers)
        for row in self.rows:
            if (row["method"], row["path"], row["request"]) == (request.method, request.path_qs, body):
                headers = {"Content-Type": row["content_type"]} if row["content_type"] else {}
                return web.Response(status=row["status"], body=row["answer"].encode(), headers=headers)
        return web.json_response({"detail": "Not Found"}, status=404)


@asynccontextmanager
async def serving(name, timeout_s=5.0, **options):
    """A replaying server and a way to ask it."""
    replay = Replay(name)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", replay.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as session:
            yield replay, EngineHttp(url, session, timeout_s=timeout_s, **options)
    finally:
        await runner.cleanup()


def _page(status, body, content_type="application/json"):
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


BROKEN = {
    "refuses": None,
    "is silent": b"",
    "stops in the head": b"HTTP/1.1 200 OK\r\nContent-",
    "stops in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    "hangs up": b"HANG UP",
    "hangs up in the body": b"HANG UPHTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    "speaks no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "500": _page(500, b'{"error": "CUDA out of memory"}'),
    "503": _page(503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'),
    "401": _page(401, b'{"error": "Unauthorized"}'),
    "302": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
    "empty": _page(200, b""),
    "no JSON": _page(200, b"<html>It works!</html>", "text/html"),
    "another JSON": _page(200, b'{"data": 7, "loads": {}, "version": [], "0": 1}'),
    "null": _page(200, b"null"),
    "a list": _page(200, b"[]"),
    "no UTF-8": _page(200, b'{"data": [{"id": "\xff\xfe"}], "version": "\xc3("}'),
    "deep": _page(200, b"[" * 100_000),
    "huge numbers": _page(200, b'{"data": [{"id": "a", "max_model_len": ' + b"9" * 6000 + b"}]}"),
    "huge": _page(200, b'"' + b"x" * (1 << 20) + b'"'),
}
"""What servers do that are not well."""


@asynccontextmanager
async def breaking(how, timeout_s=0.25):
    """A way to ask a server that breaks in one way."""
    said, held = BROKEN[how], []

    async def talk(reader, writer):
        held.append(writer)
        try:
            await reader.read(1 << 16)
            writer.write(said.removeprefix(b"HANG UP"))
            await writer.drain()
            if said.startswith(b"HANG UP"):
                writer.close()
        except ConnectionError:
            pass

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if said is None:
        server.close()
        await server.wait_closed()
    try:
        async with aiohttp.ClientSession() as session:
            yield EngineHttp(url, session, timeout_s=timeout_s, answer_bytes_max=1 << 19)
    finally:
        for writer in held:
            writer.close()
        server.close()
