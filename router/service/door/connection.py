"""One client's connection: requests read in whole, answered in order, refused when they are too much.

What is refused is told after the answers to what came before it, and told so that the client can read it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal

import httptools

from .http import HttpRequest, RefusedError, Responder, error_body

if TYPE_CHECKING:
    from .server import HttpServer

PIPELINED_BYTES_MAX: Final = 64 * 1024
PIPELINED_MAX: Final = 16
WRITE_BUFFER_BYTES: Final = 256 * 1024
_UPGRADE_HEADERS: Final = frozenset({"connection", "http2-settings", "upgrade"})

Phase = Literal["idle", "headers", "body", "leaving"]
"""What is awaited of a client: a request, the rest of its headers, the rest of its body, or that it goes."""


@dataclass(slots=True)
class _Parts:
    """A request as it comes in."""

    url: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    header_bytes: int = 0
    body: bytes | bytearray = b""


class Connection(asyncio.Protocol):
    """One client. Requests of one connection are answered in order, one at a time."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._parts = _Parts()
        self._phase: Phase = "idle"
        self._held_back_bytes = 0
        self._upgrades = False
        self._owes_continue = False
        self._waiting: deque[HttpRequest] = deque()
        self._unread = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._transport: Any = None
        self._paused = False
        self._on_pause: Callable[[], None] | None = None
        self._on_resume: Callable[[], None] | None = None
        self._refusal: RefusedError | None = None
        self._held_bytes = 0
        self.deadline_s = inf

    # -- what the event loop tells --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        if self._server.admit(self):
            self._await("idle")
        elif self._server.turn_away(self):
            self._refuse(RefusedError(503, f"{self._limits.connections_max} connections are open; try again later"))
        else:
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """A client is gone, and with it the reason to go on."""
        self._server.forget(self)
        self._transport = None
        self._drop_requests()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._refusal is not None:
            return
        if self._task is None:
            self._feed(data)
            return
        self._unread += data
        if len(self._unread) > PIPELINED_BYTES_MAX:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        self._paused = True
        self.deadline_s = self._server.now() + self._limits.write_timeout_s
        if self._on_pause is not None:
            self._on_pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused = False
        if self._task is None:
            self._await(self._phase)
        else:
            self.deadline_s = inf
        if self._on_resume is not None:
            self._on_resume()

    # -- what the parser tells ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._parts = _Parts()
        self._phase = "headers"
        self._held_back_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._parts.url += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer after the body, which is counted and left out."""
        if self._phase == "headers":
            self._parts.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._count_header(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """All headers are there: the body may be refused before it comes."""
        if self._parser.should_upgrade():
            self._upgrades = True
            return
        self._phase = "body"
        headers = self._parts.headers
        length = headers.get("content-length", "0")
        if int(length) > self._limits.body_bytes_max:
            self._too_large(int(length))
        if headers.get("expect", "").lower() == "100-continue":
            self._owes_continue = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        parts = self._parts
        self._held_back_bytes = 0
        size = len(parts.body) + len(body)
        if size > self._limits.body_bytes_max:
            self._too_large(size)
        if not self._server.hold(len(body)):
            raise RefusedError(503, "too many large requests at once; try again later")
        self._held_bytes += len(body)
        if not parts.body:
            parts.body = body
        else:
            if isinstance(parts.body, bytes):
                parts.body = bytearray(parts.body)
            parts.body += body

    def on_message_complete(self) -> None:
        """A whole request."""
        if self._upgrades:
            return
        parts, self._parts = self._parts, _Parts()
        target = httptools.parse_url(parts.url)
        request = HttpRequest(
            self._parser.get_method().decode("latin-1"),
            (target.path or b"/").decode("latin-1"),
            (target.query or b"").decode("latin-1"),
            parts.headers,
            bytes(parts.body),
            self._parser.should_keep_alive(),
            self._parser.get_http_version(),
        )
        self._phase = "idle"
        self._owes_continue = False
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
        """Be told when the client falls behind and catches up; at once if it is behind now."""
        self._on_pause, self._on_resume = on_pause, on_resume
        if self._paused and on_pause is not None:
            on_pause()

    def expire(self) -> None:
        """The time of this phase is over."""
        self.deadline_s = inf
        if self._paused or self._phase not in {"headers", "body"}:
            self.abort()
            return
        limits = self._limits
        seconds = limits.header_timeout_s if self._phase == "headers" else limits.body_timeout_s
        self._refuse(RefusedError(408, f"the request's {self._phase} did not come within {seconds:g} s"))

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
        """Read on, and begin to answer when a request is whole."""
        phase = self._phase
        self._parse(data)
        if self._held_back_bytes > self._limits.header_bytes_max and self._refusal is None:
            self._refusal = self._headers_too_large()
        if self._task is not None or self._transport is None:
            return
        if self._waiting:
            self.deadline_s = inf
            self._task = asyncio.ensure_future(self._answer())
        elif self._refusal is not None:
            self._refuse(self._refusal)
        else:
            self._continue_if_owed()
            if self._phase != phase:
                self._await(self._phase)

    def _parse(self, data: bytes) -> None:
        self._held_back_bytes += len(data)
        while data and self._refusal is None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                self._refusal = self._refusal_of(error)
            else:
                return

    def _refusal_of(self, error: Exception) -> RefusedError:
        """What a client is told that does not speak HTTP/1.1, or too much of it."""
        cause = error.__context__ or error
        if isinstance(cause, RefusedError):
            return cause
        if self._parser.get_method() == b"PRI":
            return RefusedError(400, "this door speaks HTTP/1.1, and this is HTTP/2")
        return RefusedError(400, f"not HTTP/1.1: {cause}")

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The request without its offer of another protocol, which RFC 9110 (7.8) lets us ignore: many clients offer
        HTTP/2 with each request. Refused where it would make no sense without.

        The parser took what follows for the other protocol, so a new one reads on.
        """
        headers, method = self._parts.headers, self._parser.get_method()
        if method == b"CONNECT" or headers.get("upgrade", "").lower() == "websocket":
            self._refusal = RefusedError(400, "this door speaks HTTP/1.1 only; do not ask for an upgrade")
            return b""
        kept = {name: value for name, value in headers.items() if name not in _UPGRADE_HEADERS}
        if "close" in headers.get("connection", "").lower():
            kept["connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items()).encode("latin-1")
        self._upgrades = False
        self._parser = httptools.HttpRequestParser(self)
        return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, self._parts.url, lines, rest)

    async def _answer(self) -> None:
        """Answer the requests that are there, in order."""
        try:
            while self._waiting:
                request = self._waiting.popleft()
                responder = Responder(
                    self, keep_alive=request.keep_alive, bodiless=request.method == "HEAD", version=request.version
                )
                try:
                    await self._server.handler(request, responder)
                finally:
                    self._let_go_of_bodies()
                    self.watch(None, None)
                if self._transport is None:
                    return
                if not responder.keeps_alive:
                    self._leave()
                    return
        except Exception:
            self.abort()
            raise
        finally:
            self._task = None
        if self._refusal is not None:
            self._refuse(self._refusal)
            return
        self._continue_if_owed()
        self._await(self._phase)
        unread, self._unread = bytes(self._unread), bytearray()
        self._transport.resume_reading()
        if unread:
            self._feed(unread)

    def _continue_if_owed(self) -> None:
        """A client that waits to be told sends its body, when the answers before it are out."""
        if self._owes_continue:
            self._owes_continue = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _await(self, phase: Phase) -> None:
        """Give the client its time for the next thing; one that does not read has its own."""
        self._phase = phase
        if not self._paused:
            self.deadline_s = self._server.now() + self._server.seconds_of[phase]

    def _refuse(self, refused: RefusedError) -> None:
        """Say no, and close when the client has seen it."""
        self._refusal = refused
        self._drop_requests()
        if self._transport is None:
            return
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        Responder(self, keep_alive=False).send(refused.status, error_body(str(refused), kind=kind))
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()
        self._await("leaving")

    def _leave(self) -> None:
        """Close when the client has read its answer."""
        self._drop_requests()
        self._transport.close()
        self._phase = "leaving"
        self.deadline_s = self._server.now() + self._limits.write_timeout_s

    def _count_header(self, count: int) -> None:
        self._held_back_bytes = 0
        self._parts.header_bytes += count
        if self._parts.header_bytes > self._limits.header_bytes_max:
            raise self._headers_too_large()

    def _headers_too_large(self) -> RefusedError:
        return RefusedError(431, f"the request's headers are larger than {self._limits.header_bytes_max} bytes")

    def _too_large(self, size: int) -> None:
        rule = f"at most {self._limits.body_bytes_max} bytes are taken (router.body_bytes_max)"
        raise RefusedError(413, f"the body is at least {size} bytes long; {rule}")

    def _drop_requests(self) -> None:
        self._waiting.clear()
        self._unread.clear()
        self._parts = _Parts()
        self._let_go_of_bodies()

    def _let_go_of_bodies(self) -> None:
        """Of all but the one that is being read, where no other waits."""
        if not self._waiting:
            kept = len(self._parts.body)
            self._server.let_go(self._held_bytes - kept)
            self._held_bytes = kept
