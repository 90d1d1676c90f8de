"""The source's side of the data plane: a TCP port that sends an export to whoever brings its token."""

import asyncio
import hmac
import logging
import secrets
import socket
from collections.abc import Callable

from .errors import ProtocolViolationError, RefusedError, TransferError
from .export import Export
from .frames import HELLO_BYTES, Hello, encode_error
from .report import Outcome, OutcomeStatus
from .sending import layout_of
from .session import ServerLimits, Session
from .sockets import Wire
from .types import TOKEN_BYTES, BlockMemory, Offer

_log = logging.getLogger(__name__)

_BACKLOG = 128


class DataServer:
    """Listens on `host:port` and sends exports of `memory`. One event loop; no threads.

    host: the address to listen on; loopback unless told otherwise, since the port carries users' prompts.
    advertise_host: what offers name as the address, for a server that listens on all interfaces.
    """

    def __init__(
        self,
        memory: BlockMemory,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertise_host: str | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self._memory = memory
        self._host = host
        self._port = port
        self._advertise_host = advertise_host or host
        self._limits = limits or ServerLimits()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._sessions: dict[bytes, Session] = {}
        self._timers: dict[bytes, asyncio.TimerHandle] = {}

    @property
    def port(self) -> int:
        """The port that the server listens on; `RuntimeError` before `start`."""
        return int(self._listening().getsockname()[1])

    @property
    def exports_open(self) -> int:
        """Offers that still hold blocks."""
        return sum(session.outcome is None for session in self._sessions.values())

    async def start(self) -> None:
        """Bind and accept; raises `OSError` if the address is taken."""
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = infos[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    async def close(self) -> None:
        """Stop listening, end every export as CLOSED, cancel every connection and wait for it. Idempotent."""
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        self._listener = None
        for token in list(self._sessions):
            self._end(token, OutcomeStatus.CLOSED, "the source is shutting down")
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def open(self, export: Export, *, ttl_s: float, on_done: Callable[[Outcome], None]) -> Offer:
        """Offer `export` to the first who brings the offer's token within `ttl_s`.

        The caller keeps the export's blocks pinned until `on_done`, which is called exactly once, from the event
        loop, on every path. Raises `RefusedError` when too many exports are open, `ValueError` for an export that
        does not fit the memory, `RuntimeError` before `start`; `on_done` is not called then.
        """
        port = self.port
        layout = layout_of(export, self._memory)
        if ttl_s <= 0:
            raise ValueError(f"ttl_s={ttl_s}: an offer must live longer than 0 s")
        if len(self._sessions) >= self._limits.exports_max:
            raise RefusedError(f"{self._limits.exports_max} exports are open; try again when some are done")
        token = secrets.token_bytes(TOKEN_BYTES)
        self._sessions[token] = Session(
            export=export, memory=self._memory, layout=layout, limits=self._limits, on_done=on_done
        )
        self._end_later(token, ttl_s, OutcomeStatus.EXPIRED, f"nobody connected within {ttl_s} s")
        return Offer(
            host=self._advertise_host,
            port=port,
            token=token,
            format=layout.format,
            blocks=layout.blocks,
            layers=layout.layers,
            layer_block_bytes=layout.layer_block_bytes,
        )

    def withdraw(self, token: bytes) -> None:
        """End an export as WITHDRAWN; a token that is over or unknown is no error."""
        self._end(token, OutcomeStatus.WITHDRAWN, "the source withdrew the export")

    def _listening(self) -> socket.socket:
        if self._listener is None:
            raise RuntimeError("the data server is not listening; await start() first")
        return self._listener

    def _end(self, token: bytes, status: OutcomeStatus, reason: str) -> None:
        session = self._sessions.pop(token, None)
        timer = self._timers.pop(token, None)
        if timer is not None:
            timer.cancel()
        if session is not None:
            session.finish(status, reason)

    def _end_later(self, token: bytes, delay_s: float, status: OutcomeStatus, reason: str) -> None:
        loop = asyncio.get_running_loop()
        self._timers[token] = loop.call_later(delay_s, self._end, token, status, reason)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of file descriptors, or a peer that left the queue; spinning would help neither.
                _log.warning("accepting a data connection failed: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._connections) >= self._limits.connections_max:
                _log.warning("data connection refused: %d are open", len(self._connections))
                sock.close()
                continue
            connection = asyncio.create_task(self._serve(sock))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _serve(self, sock: socket.socket) -> None:
        limits = self._limits
        wire = Wire(sock, read_timeout_s=limits.handshake_timeout_s, write_timeout_s=limits.send_stall_timeout_s)
        try:
            async with asyncio.timeout(limits.handshake_timeout_s):
                hello = Hello.decode(await wire.receive(HELLO_BYTES))
            token, session = self._admit(hello)
            if hello.congestion:
                wire.set_congestion(hello.congestion)
            await session.serve(wire, hello)
            self._settle(token, session)
        except (RefusedError, ProtocolViolationError) as error:
            _log.warning("data connection refused: %s", error)
            wire.send_now(encode_error(str(error)))
        except TimeoutError:
            _log.warning("data connection without a handshake within %s s", limits.handshake_timeout_s)
        except TransferError as error:
            _log.warning("data connection lost before its handshake: %s", error)
        except Exception:
            _log.exception("serving a data connection failed")
        finally:
            wire.close()

    def _admit(self, hello: Hello) -> tuple[bytes, Session]:
        found = None
        for token in self._sessions:
            # No early exit: the time must not tell how much of a guessed token is right.
            if hmac.compare_digest(token, hello.token):
                found = token
        if found is None:
            raise RefusedError("unknown token: never issued, expired, or used up; ask the source for a new offer")
        session = self._sessions[found]
        first = not session.started
        try:
            session.admit(hello)
        finally:
            self._settle(found, session)
        if first:
            self._timers.pop(found).cancel()
        return found, session

    def _settle(self, token: bytes, session: Session) -> None:
        """Forget a session that is over; one that is sent still answers stripes that are on their way."""
        if session.outcome is None or self._sessions.get(token) is not session:
            return
        if session.answers_nobody:
            self._end(token, session.outcome.status, session.outcome.reason)
        elif token not in self._timers:
            delay_s = self._limits.handshake_timeout_s
            self._end_later(token, delay_s, session.outcome.status, session.outcome.reason)
