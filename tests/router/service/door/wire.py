"""Both ends of HTTP by hand: a client that sends any bytes at any pace, servers that answer any bytes."""

import asyncio
import contextlib
import functools
from dataclasses import dataclass

from homing.router.service.door.http import HttpLimits
from homing.router.service.door.server import HttpServer


def on_a_loop(test):
    """A test that hangs is a test that fails, and so is one that leaves tasks behind."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def checked():
            await asyncio.wait_for(test(*args, **kwargs), 30)
            until_s = asyncio.get_running_loop().time() + 3
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                assert asyncio.get_running_loop().time() < until_s, others
                await asyncio.sleep(0.01)

        return asyncio.run(checked())

    return run


async def eventually(holds, what, timeout_s=5.0):
    loop = asyncio.get_running_loop()
    until_s = loop.time() + timeout_s
    while not holds():
        assert loop.time() < until_s, f"within {timeout_s} s it never came true that {what}"
        await asyncio.sleep(0.005)


# -- a client ----------------------------------------------------------------------------------------------------------


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True


class Client:
    """One connection."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def head(self):
        """The next response's status line and headers; None at the end of the connection."""
        try:
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [line.split(": ", 1) for line in lines[1:]]
        assert len({name for name, _ in pairs}) == len(pairs), f"a header is there twice: {pairs}"
        return Response(int(status), dict(pairs), b"")

    async def response(self, *, bodiless=False):
        """The next response; None at the end of the connection."""
        told = await self.head()
        if told is None or bodiless or told.status == 100:
            return told
        if told.headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in told.headers
            await self._chunks(told)
        elif "content-length" in told.headers:
            told.body = await self.reader.readexactly(int(told.headers["content-length"]))
        else:
            assert told.headers["connection"] == "close"
            told.body = await self.reader.read()
        return told

    async def _chunks(self, told):
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                told.body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        except (asyncio.IncompleteReadError, ConnectionError):
            told.whole = False

    async def responses(self):
        """All that come until the connection ends."""
        found = []
        while (one := await self.response()) is not None:
            found.append(one)
        return found

    async def ended(self):
        """Whether nothing more comes."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def leave(self):
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(port, **options):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def request(body=b"", *, method="POST", path="/echo", headers=()):
    lines = [f"{method} {path} HTTP/1.1", "host: here", *headers]
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(parts, *, path="/echo", headers=(), trailers=()):
    lines = [f"POST {path} HTTP/1.1", "host: here", "transfer-encoding: chunked", *headers, "", ""]
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    end = "0\r\n" + "".join(f"{line}\r\n" for line in trailers) + "\r\n"
    return "\r\n".join(lines).encode() + body + end.encode()


# -- our server --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(handler, **limits):
    """Our HTTP server; at the end no connection and no body is left."""
    server = HttpServer(handler, HttpLimits(**limits))
    await server.start("127.0.0.1", 0)
    try:
        yield server
        await eventually(lambda: not server.connections and not server.turned_away, "every connection is gone")
        assert server.bodies_bytes == 0
    finally:
        await server.close()


# -- other servers -----------------------------------------------------------------------------------------------------


class Scripted:
    """A server whose connections are each handled by a coroutine of (reader, writer, number of the connection)."""

    def __init__(self, script):
        self._script = script
        self.connections = 0
        self.open = 0
        self.url = ""

    async def _handle(self, reader, writer):
        number = self.connections
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._script(reader, writer, number)
        finally:
            self.open -= 1
            writer.transport.abort()


@contextlib.asynccontextmanager
async def scripted(script):
    made = Scripted(script)
    tasks = set()

    async def handle(reader, writer):
        tasks.add(asyncio.current_task())
        await made._handle(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    made.listener = server
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def one_request(reader):
    """The head, in lower case, and the body of a request with a length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
    return head, await reader.readexactly(length)
