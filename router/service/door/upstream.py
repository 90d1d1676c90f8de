"""HTTP/1.1 to engines: pooled connections, answers passed on in the parts in which they come.

A connection that was kept open may have been closed by the engine a moment ago. What fails on such a connection before
the first byte of an answer is tried once more on a new one; every other failure is told.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final
from urllib.parse import urlsplit

import httptools

IDLE_S: Final = 4.0
"""Engines behind uvicorn close a connection that was idle for 5 s."""
ROUND_TRIPS: Final = 3
TLS_ROUND_TRIPS: Final = 2
"""A connection takes one, and TLS 1.3 one more."""
HEADER_BYTES_MAX: Final = 64 * 1024
EARLY_BYTES_MAX: Final = 1024 * 1024
"""Of a body that nobody takes yet."""


class UpstreamError(Exception):
    """An engine failed to answer, or to finish its answer. `refused`: nobody listens there."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long an engine may take."""

    connect_s: float = 5.0
    first_byte_s: float = 300.0
    between_s: float = 300.0
    """Between two parts of an answer."""


@dataclass(slots=True)
class Head:
    """How an answer begins. Header names are in lower case."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


class Answer(asyncio.Protocol):
    """One connection, and the answer that comes over it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._transport: Any = None
        self.lost = False
        self.was_cut = False
        """Whether it was lost, and not by our will."""
        self.idle_since_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[Head] | None = None
        self._done: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], None] | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._header_bytes = 0
        self._held_back_bytes = 0
        self._building = Head(0)
        self._complete = False
        self._keeps_alive = False
        self.began = False
        self.heard_s = inf
        """When something came last, while something is waited for."""
        self.last_heard_s = -inf

    # -- for who asks ---------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Ask. Then await `head`, `take` the body, and await `done`."""
        self._reset()
        loop = asyncio.get_running_loop()
        self._head, self._done = loop.create_future(), loop.create_future()
        self._transport.write(data)

    async def head(self, timeout_s: float) -> Head:
        """How the answer begins; raises UpstreamError."""
        assert self._head is not None
        try:
            async with asyncio.timeout(timeout_s):
                return await self._head
        except TimeoutError:
            raise UpstreamError(f"gave no answer within {timeout_s:g} s") from None

    def take(self, sink: Callable[[bytes], None]) -> None:
        """Let the body go to `sink`, from its first byte on."""
        self._sink = sink
        early, self._early = self._early, []
        for data in early:
            sink(data)
        self.resume()

    async def done(self) -> None:
        """Until the whole body was taken; raises UpstreamError."""
        assert self._done is not None
        await self._done

    @property
    def is_complete(self) -> bool:
        """Whether the whole answer has come."""
        return self._complete

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be sent over this connection."""
        return self._complete and self._keeps_alive and not self.lost and not self._transport.get_write_buffer_size()

    def pause(self) -> None:
        """Read no further for a while."""
        self.heard_s = inf
        if self._transport is not None and not self.lost:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.heard_s = self._now()
        if self._transport is not None and not self.lost:
            self._transport.resume_reading()

    def fail(self, error: UpstreamError) -> None:
        """Give the answer up, and the connection with it."""
        for future in (self._head, self._done):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()
        self.close()

    def close(self) -> None:
        """Close the connection, which tells the engine to stop."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    # -- what the event loop tells --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Closed by the engine, or by us."""
        self.was_cut = not self.lost
        self.lost = True
        if self._done is None or self._done.done():
            return
        if error is None and self._head is not None and self._head.done() and self._ends_with_connection():
            self._end()
            return
        why = f"closed the connection before its answer was whole{f': {error}' if error else ''}"
        self.fail(UpstreamError(why))

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        if self._complete or self._head is None:
            self.close()
            return
        self.began = True
        self.heard_s = self.last_heard_s = self._now()
        self._held_back_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._held_back_bytes > HEADER_BYTES_MAX:
                self.fail(_headers_too_large())
        except httptools.HttpParserUpgrade:
            self.fail(UpstreamError("answered with another protocol than HTTP/1.1"))
        except httptools.HttpParserError as error:
            cause = error.__context__
            self.fail(
                cause if isinstance(cause, UpstreamError) else UpstreamError(f"answered with what is no HTTP: {error}")
            )

    # -- what the parser tells ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of an answer, or of one that nobody asked for."""
        if self._complete:
            raise UpstreamError("sent more than its answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer after the body, which is counted and left out."""
        self._held_back_bytes = 0
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX:
            raise _headers_too_large()
        if self._building.status:
            return
        self._building.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """All headers are there."""
        status = int(self._parser.get_status_code())
        if 100 <= status < 200:
            return
        self._building.status = status
        if self._head is not None and not self._head.done():
            self._head.set_result(self._building)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._held_back_bytes = 0
        if self._sink is not None:
            self._sink(body)
            return
        self._early.append(body)
        self._early_bytes += len(body)
        if self._early_bytes > EARLY_BYTES_MAX:
            self.pause()

    def on_message_complete(self) -> None:
        """The end of the answer."""
        if not self._building.status:
            # An interim answer (100 Continue, 103 Early Hints): the real one follows.
            self._building = Head(0)
            return
        # Afterwards the parser has forgotten how the answer was framed.
        self._keeps_alive = self._parser.should_keep_alive()
        self._end()

    def _end(self) -> None:
        self._complete = True
        self.heard_s = inf
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _ends_with_connection(self) -> bool:
        headers = self._building.headers
        return "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "")


def _headers_too_large() -> UpstreamError:
    return UpstreamError(f"answered with headers of more than {HEADER_BYTES_MAX} bytes")


class Upstream:
    """One engine's address, and the connections to it."""

    def __init__(self, url: str, timeouts: Timeouts | None = None, *, idle_max: int = 256) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._idle: deque[Answer] = deque(maxlen=idle_max)
        self._busy: set[Answer] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._heard_s = -inf
        self.refused = False
        """Whether nobody listened there the last time that a connection was wanted."""
        self.timeouts = timeouts or Timeouts()
        self.url = url

    async def round_trip_s(self) -> float:
        """What the network takes there and back: the least of some new connections. Raises UpstreamError."""
        loop = asyncio.get_running_loop()
        times_s = []
        for _ in range(ROUND_TRIPS):
            began_s = loop.time()
            answer = await self._connect()
            times_s.append(loop.time() - began_s)
            answer.close()
        return min(times_s) / (TLS_ROUND_TRIPS if self._ssl else 1)

    def heard_since(self, when_s: float) -> bool:
        """Whether anything came from the engine since then, by the event loop's clock."""
        return self._heard_s >= when_s or any(when_s <= answer.last_heard_s for answer in self._busy)

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        begun: Callable[[Answer], None] = lambda answer: None,
    ) -> tuple[Answer, Head]:
        """Send a request; the answer's head, and the answer, which must be given back with `release`.

        `begun` is told of the answer as soon as it is asked for, so that it can be made to fail before it begins.
        """
        lines = [f"{method} {self._prefix}{path} HTTP/1.1\r\nhost: {self._authority}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        lines.append(f"content-length: {len(body)}\r\n\r\n")
        data = "".join(lines).encode("latin-1", "replace") + body
        while True:
            answer, is_new = await self._connected()
            self._busy.add(answer)
            if self._sweeping is None:
                self._sweeping = asyncio.create_task(self._sweep())
            try:
                answer.send(data)
                begun(answer)
                return answer, await answer.head(self.timeouts.first_byte_s)
            except UpstreamError:
                was_stale = answer.was_cut and not is_new and not answer.began
                self.release(answer)
                if not was_stale:
                    raise
            except BaseException:
                self.release(answer)
                raise

    def release(self, answer: Answer) -> None:
        """The answer was taken, or is wanted no more: then its connection closes, and the engine stops."""
        self._busy.discard(answer)
        self._heard_s = max(self._heard_s, answer.last_heard_s)
        if answer.is_reusable:
            answer.idle_since_s = asyncio.get_running_loop().time()
            if len(self._idle) == self._idle.maxlen:
                self._idle.popleft().close()
            self._idle.append(answer)
        else:
            answer.close()

    def abort_all(self, reason: str) -> None:
        """The engine is gone: nobody needs to wait for its connections to notice."""
        for answer in list(self._busy):
            answer.fail(UpstreamError(reason))
        while self._idle:
            self._idle.pop().close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    async def _connected(self) -> tuple[Answer, bool]:
        now = asyncio.get_running_loop().time()
        while self._idle:
            answer = self._idle.pop()
            if not answer.lost and now - answer.idle_since_s < IDLE_S:
                return answer, False
            answer.close()
        return await self._connect(), True

    async def _connect(self) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeouts.connect_s):
                _, answer = await loop.create_connection(
                    lambda: Answer(loop.time), self._host, self._port, ssl=self._ssl
                )
            self.refused = False
        except TimeoutError:
            self.refused = True
            raise UpstreamError(f"no connection within {self.timeouts.connect_s:g} s", refused=True) from None
        except (OSError, UnicodeError) as error:
            self.refused = True
            raise UpstreamError(f"no connection: {error}", refused=True) from error
        return answer

    async def _sweep(self) -> None:
        """Give up answers that have stalled, and close connections that were idle for long, while there are any."""
        while self._busy or self._idle:
            await asyncio.sleep(min(1.0, self.timeouts.between_s / 4))
            now = asyncio.get_running_loop().time()
            for answer in [each for each in self._busy if now - each.heard_s > self.timeouts.between_s]:
                answer.fail(UpstreamError(f"stalled: nothing came for {self.timeouts.between_s:g} s"))
            while self._idle and now - self._idle[0].idle_since_s > IDLE_S:
                self._idle.popleft().close()
        self._sweeping = None
