"""HTTP/1.1 for clients: requests in whole, responses in parts.

Rule 1: bounded. Headers, bodies, all bodies together, connections and what a client pipelines have limits.
Rule 2: nobody holds a connection for nothing: each phase has its time, kept by one sweep for all connections.
Rule 3: a client that goes away cancels what is being done for it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import httptools
import msgspec

PHRASES: Final = {
    200: "OK",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    414: "URI Too Long",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
PIPELINED_BYTES_MAX: Final = 64 * 1024
PIPELINED_MAX: Final = 16
WRITE_BUFFER_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one client, and all together, may take."""

    body_bytes_max: int = 32 * 1024 * 1024
    bodies_bytes_max: int = 1024 * 1024 * 1024
    """All bodies that are being read or worked on."""
    header_bytes_max: int = 64 * 1024
    connections_max: int = 20_000
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 60.0
    """How long a client may leave what was sent to it unread."""


@dataclass(slots=True)
class HttpRequest:
    """One request. Header names are in lower case; of a repeated header the last value counts."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


Handler = Callable[[HttpRequest, "Responder"], Awaitable[None]]


@dataclass(slots=True)
class _Parts:
    """A request as it comes in."""

    url: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    header_bytes: int = 0
    body: list[bytes] = field(default_factory=list)
    body_bytes: int = 0


class RefusedError(Exception):
    """A request that is not read to its end: what the client is told before the connection closes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """An error as OpenAI's API tells it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


class Responder:
    """The answer to one request: `send` it whole, or `start`, `write` and `finish` it."""

    __slots__ = ("_bodiless", "_connection", "_keep_alive", "chunked", "finished", "started")

    def __init__(self, connection: "Connection", *, keep_alive: bool, bodiless: bool = False) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self._bodiless = bodiless
        self.started = False
        self.finished = False
        self.chunked = False

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer at once; JSON unless the headers say otherwise."""
        self.started = self.finished = True
        head = self._head(status, headers or {}, f"content-length: {len(body)}\r\n")
        self._connection.write(head if self._bodiless else head + body)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer whose length is not known."""
        self.started = self.chunked = True
        self._connection.write(self._head(status, headers, "transfer-encoding: chunked\r\n"))

    def write(self, data: bytes) -> None:
        """A part of a started answer."""
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        """The end of a started answer."""
        self.finished = True
        self._connection.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """End a started answer so that the client sees that it is not whole."""
        self.finished = True
        self._connection.abort()

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection can take another request after this one."""
        return self._keep_alive and self.finished

    def watch(self, on_pause: Callable[[], None], on_resume: Callable[[], None]) -> None:
        """Be told when the client reads more slowly than it is written to."""
        self._connection.watch(on_pause, on_resume)

    def _head(self, status: int, headers: Mapping[str, str], length: str) -> bytes:
        lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}\r\n", length]
        if "content-type" not in headers:
            lines.append("content-type: application/json\r\n")
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        lines.append("\r\n" if self._keep_alive else "connection: close\r\n\r\n")
        return "".join(lines).encode("latin-1", "replace")


class Connection(asyncio.Protocol):
    """One client. Requests of one connection are answered in order, one at a time."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._parts = _Parts()
        self._waiting: deque[HttpRequest] = deque()
        self._unread = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._transport: Any = None
        self._on_pause: Callable[[], None] | None = None
        self._on_resume: Callable[[], None] | None = None
        self._refused = False
        self._held_bytes = 0
        self.deadline_s = inf
        self.late: tuple[int, str] = (408, "")

    # -- what the event loop tells --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        if not self._server.admit(self):
            self._refuse(RefusedError(503, f"{self._limits.connections_max} connections are open; try again later"))
            return
        self._expect("idle")

    def connection_lost(self, error: Exception | None) -> None:
        """A client is gone, and with it the reason to go on."""
        self._server.forget(self)
        self._let_go_of_body()
        if self._task is not None:
            self._task.cancel()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._refused:
            return
        if self._task is not None:
            self._unread += data
            if len(self._unread) > PIPELINED_BYTES_MAX:
                self._transport.pause_reading()
            return
        self._feed(data)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        self.deadline_s = self._server.now() + self._limits.write_timeout_s
        self.late = (0, "")
        if self._on_pause is not None:
            self._on_pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.deadline_s = inf
        if self._on_resume is not None:
            self._on_resume()

    # -- what the parser tells ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._parts = _Parts()
        self._expect("headers")

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._parts.url += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._parts.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._count_header(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """All headers are there: the body may be refused before it comes."""
        headers = self._parts.headers
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limits.body_bytes_max:
            self._too_large(int(length))
        if headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expect("body")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        parts = self._parts
        parts.body_bytes += len(body)
        if parts.body_bytes > self._limits.body_bytes_max:
            self._too_large(parts.body_bytes)
        if not self._server.hold(len(body)):
            raise RefusedError(503, "too many large requests at once; try again later")
        self._held_bytes += len(body)
        parts.body.append(body)

    def on_message_complete(self) -> None:
        """A whole request."""
        parts = self._parts
        target = httptools.parse_url(parts.url)
        request = HttpRequest(
            self._parser.get_method().decode("latin-1"),
            (target.path or b"/").decode("latin-1"),
            (target.query or b"").decode("latin-1"),
            parts.headers,
            parts.body[0] if len(parts.body) == 1 else b"".join(parts.body),
            self._parser.should_keep_alive(),
        )
        self._parts = _Parts()
        if len(self._waiting) >= PIPELINED_MAX:
            raise RefusedError(429, f"more than {PIPELINED_MAX} requests were sent ahead on one connection")
        self._waiting.append(request)

    # -- answering ------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes, if anybody is there."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def watch(self, on_pause: Callable[[], None] | None, on_resume: Callable[[], None] | None) -> None:
        """Be told when the client falls behind and catches up."""
        self._on_pause, self._on_resume = on_pause, on_resume

    def expire(self) -> None:
        """The time of this phase is over."""
        self.deadline_s = inf
        status, message = self.late
        if status and self._parts.url:
            self._refuse(RefusedError(status, message))
        else:
            self.abort()

    async def close(self, grace_s: float) -> None:
        """Let the request that is being answered end, at most so long, and close."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace_s)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except RefusedError as error:
            self._refuse(error)
            return
        except httptools.HttpParserUpgrade:
            self._refuse(RefusedError(400, "this door speaks HTTP/1.1 only; do not ask for an upgrade"))
            return
        except (httptools.HttpParserError, ValueError) as error:
            cause = error.__context__
            refused = cause if isinstance(cause, RefusedError) else RefusedError(400, f"not HTTP/1.1: {error}")
            self._refuse(refused)
            return
        if self._waiting and self._task is None:
            self.deadline_s = inf
            self._task = asyncio.ensure_future(self._answer())

    async def _answer(self) -> None:
        """Answer the requests that are there, in order."""
        try:
            while self._waiting:
                request = self._waiting.popleft()
                responder = Responder(self, keep_alive=request.keep_alive, bodiless=request.method == "HEAD")
                try:
                    await self._server.handler(request, responder)
                finally:
                    self._let_go_of_body()
                    self.watch(None, None)
                if self._transport is None:
                    return
                if not responder.keeps_alive:
                    self._transport.close()
                    return
        finally:
            self._task = None
        self._expect("idle")
        unread, self._unread = bytes(self._unread), bytearray()
        self._transport.resume_reading()
        if unread:
            self._feed(unread)

    def _expect(self, phase: str) -> None:
        limits = self._limits
        seconds, what = {
            "idle": (limits.idle_timeout_s, ""),
            "headers": (limits.header_timeout_s, "the request's headers"),
            "body": (limits.body_timeout_s, "the request's body"),
        }[phase]
        self.deadline_s = self._server.now() + seconds
        self.late = (408, f"{what} did not come within {seconds:g} s") if what else (0, "")

    def _refuse(self, refused: RefusedError) -> None:
        self._refused = True
        self._let_go_of_body()
        if self._transport is None:
            return
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        Responder(self, keep_alive=False).send(refused.status, error_body(str(refused), kind=kind))
        self._transport.close()

    def _count_header(self, count: int) -> None:
        self._parts.header_bytes += count
        if self._parts.header_bytes > self._limits.header_bytes_max:
            raise RefusedError(431, f"the request's headers are larger than {self._limits.header_bytes_max} bytes")

    def _too_large(self, size: int) -> None:
        rule = f"at most {self._limits.body_bytes_max} bytes are taken (router.body_bytes_max)"
        raise RefusedError(413, f"the body is at least {size} bytes long; {rule}")

    def _let_go_of_body(self) -> None:
        if not self._waiting:
            self._server.let_go(self._held_bytes)
            self._held_bytes = 0


class HttpServer:
    """Listens, and hands whole requests to `handler`, which answers them and never raises but CancelledError."""

    def __init__(self, handler: Handler, limits: HttpLimits | None = None) -> None:
        self.handler = handler
        self.limits = limits or HttpLimits()
        self.connections: set[Connection] = set()
        self.now: Callable[[], float] = asyncio.get_running_loop().time
        self._bodies_bytes = 0
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when the address is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._sweeping = asyncio.create_task(self._sweep())
        return self.port

    async def close(self, grace_s: float = 0.0) -> None:
        """Take no new connections; give those that are being answered so long."""
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*(connection.close(grace_s) for connection in list(self.connections)))
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    def admit(self, connection: Connection) -> bool:
        """Count a connection; False if there are too many."""
        if len(self.connections) >= self.limits.connections_max:
            return False
        self.connections.add(connection)
        return True

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)

    def hold(self, count: int) -> bool:
        """Count bytes of bodies; False if there are too many."""
        if self._bodies_bytes + count > self.limits.bodies_bytes_max:
            return False
        self._bodies_bytes += count
        return True

    def let_go(self, count: int) -> None:
        """Bytes of bodies are no longer needed."""
        self._bodies_bytes -= count

    @property
    def bodies_bytes(self) -> int:
        """Bytes of all bodies that are being read or worked on."""
        return self._bodies_bytes

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.limits.header_timeout_s / 4))
            now = self.now()
            for connection in [each for each in self.connections if each.deadline_s < now]:
                connection.expire()
