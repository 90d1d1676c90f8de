"""HTTP/1.1 as clients' requests and our responses: requests in whole, responses in parts."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

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
    version: str = "1.1"


Handler = Callable[[HttpRequest, "Responder"], Awaitable[None]]


class RefusedError(Exception):
    """A request that is not read to its end: what the client is told before the connection closes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client(Protocol):
    """Who a response goes to."""

    def write(self, data: bytes) -> None:
        """Send bytes, if anybody is there."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def watch(self, on_pause: Callable[[], None] | None, on_resume: Callable[[], None] | None) -> None:
        """Be told when the client falls behind and catches up."""
        ...


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """An error as OpenAI's API tells it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


class Responder:
    """The answer to one request: `send` it whole, or `start`, `write` and `finish` it.

    A client that speaks HTTP/1.0 knows no chunks: what was started for it ends with the connection.
    """

    __slots__ = ("_bodiless", "_client", "_keep_alive", "_old", "finished", "sends_events", "started")

    def __init__(self, client: Client, *, keep_alive: bool, bodiless: bool = False, version: str = "1.1") -> None:
        self._client = client
        self._keep_alive = keep_alive
        self._bodiless = bodiless
        self._old = version != "1.1"
        self.started = False
        self.finished = False
        self.sends_events = False
        """Whether a stream of server-sent events was started."""

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer at once; JSON unless the headers say otherwise."""
        self.started = self.finished = True
        head = self._head(status, headers or {}, f"content-length: {len(body)}\r\n")
        self._client.write(head if self._bodiless else head + body)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer whose length is not known."""
        self.started = True
        self.sends_events = headers.get("content-type", "").startswith("text/event-stream")
        if self._old:
            self._keep_alive = False
        self._client.write(self._head(status, headers, "" if self._old else "transfer-encoding: chunked\r\n"))

    def write(self, data: bytes) -> None:
        """A part of a started answer."""
        if data:
            self._client.write(data if self._old else b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        """The end of a started answer."""
        self.finished = True
        if not self._old:
            self._client.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """End a started answer so that the client sees that it is not whole."""
        self.finished = True
        self._client.abort()

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection can take another request after this one."""
        return self._keep_alive and self.finished

    def watch(self, on_pause: Callable[[], None], on_resume: Callable[[], None]) -> None:
        """Be told when the client reads more slowly than it is written to."""
        self._client.watch(on_pause, on_resume)

    def _head(self, status: int, headers: Mapping[str, str], length: str) -> bytes:
        lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}\r\n", length]
        if "content-type" not in headers:
            lines.append("content-type: application/json\r\n")
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if not self._keep_alive:
            lines.append("connection: close\r\n")
        elif self._old:
            lines.append("connection: keep-alive\r\n")
        lines.append("\r\n")
        return "".join(lines).encode("latin-1", "replace")
