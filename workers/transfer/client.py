"""The target's side of the data plane: connect, present the token, receive into the sink's own memory."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from re import fullmatch

from .errors import ConnectionLostError, TimedOutError
from .frames import HEADER_BYTES, KEEPALIVE_S, STOP_BYTE, STRIPES_MAX, Header, Hello
from .receiver import Receiver
from .report import Train, TransferReport
from .sockets import Wire, connect_tcp
from .stopping import StoppedError, all_or_first_error, until_stopped
from .types import Offer, Sink

Connect = Callable[[str, int], Awaitable[socket.socket]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSettings:
    """How a pull uses the network.

    connections: TCP connections that share the transfer; more than one helps where loss keeps windows small.
    congestion: TCP congestion control for both ends ("bbr" on lossy WANs); None leaves the kernel's default.
    checksum: whether payloads are checked (costs about a tenth of a core at 1 GB/s on each side).
    connect_timeout_s: for the TCP connect and the handshake's sending.
    idle_timeout_s: how long no byte may come; keepalives count, so it must exceed their interval.
    timeout_s: for one pull, from connecting to the last byte.
    """

    connections: int = 1
    congestion: str | None = None
    checksum: bool = True
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 10.0
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= STRIPES_MAX:
            raise ValueError(f"connections={self.connections}: must be 1..{STRIPES_MAX}")
        if self.congestion is not None and not fullmatch(r"[a-z0-9_]{1,15}", self.congestion):
            raise ValueError(f"congestion={self.congestion!r}: must be a kernel module's name such as 'bbr'")
        if min(self.connect_timeout_s, self.timeout_s) <= 0:
            raise ValueError("connect_timeout_s and timeout_s must be > 0 s")
        if self.idle_timeout_s <= KEEPALIVE_S:
            raise ValueError(
                f"idle_timeout_s={self.idle_timeout_s}: must exceed the keepalive interval, {KEEPALIVE_S} s"
            )


@dataclass(slots=True)
class _Wires:
    """The open connections of one pull."""

    settings: SocketSettings
    connect: Connect
    open: list[Wire] = field(default_factory=list)

    async def add(self, offer: Offer, stripe: int) -> float:
        """Connect and say hello; the TCP connect time in seconds."""
        settings = self.settings
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                sock = await self.connect(offer.host, offer.port)
        except TimeoutError as error:
            limit_s = settings.connect_timeout_s
            raise TimedOutError(f"no connection to {offer.host}:{offer.port} within {limit_s} s") from error
        except OSError as error:
            raise ConnectionLostError(f"no connection to {offer.host}:{offer.port}: {error}") from error
        connect_s = loop.time() - started_s
        timeout_s = settings.idle_timeout_s
        wire = Wire(sock, read_timeout_s=timeout_s, write_timeout_s=settings.connect_timeout_s)
        self.open.append(wire)
        if settings.congestion:
            wire.set_congestion(settings.congestion)
        hello = Hello(
            token=offer.token,
            format_digest=offer.layout.format_digest,
            stripe=stripe,
            stripes=settings.connections,
            checksum=settings.checksum,
            congestion=settings.congestion or "",
        )
        await wire.send([hello.encode()])
        return connect_s

    def close(self, *, farewell: bytes) -> None:
        for wire in self.open:
            if farewell:
                wire.send_now(farewell)
            wire.close()


async def pull(
    offer: Offer,
    sink: Sink,
    *,
    settings: SocketSettings | None = None,
    stop: asyncio.Event | None = None,
    connect: Connect = connect_tcp,
) -> TransferReport:
    """Receive what `offer` holds into `sink` until it is complete, stopped or failed; one attempt.

    Nothing but `asyncio.CancelledError` is raised: every failure is in the report, with what had arrived. When
    `stop` is set or the sink wants no more, the connections close at once and the source learns that it was on
    purpose. `connect` maps the offer's address to a connected socket, for networks where addresses differ by site.
    """
    settings = settings or SocketSettings()
    loop = asyncio.get_running_loop()
    receiver = Receiver(offer.layout, sink, loop.time())
    error: BaseException | None = None
    try:
        async with asyncio.timeout(settings.timeout_s):
            await until_stopped(_receive(offer, receiver, settings, connect), stop)
    except TimeoutError:
        error = TimedOutError(f"the transfer was not complete within {settings.timeout_s} s")
    except Exception as failed:
        error = failed
    return receiver.report(loop.time(), error)


async def _receive(offer: Offer, receiver: Receiver, settings: SocketSettings, connect: Connect) -> None:
    wires = _Wires(settings, connect)
    farewell = b""
    try:
        stripes = range(settings.connections)
        receiver.connect_s = min(await all_or_first_error(wires.add(offer, i) for i in stripes))
        await all_or_first_error(_receive_stripe(wire, receiver, settings) for wire in wires.open)
        receiver.ended()
    except (StoppedError, asyncio.CancelledError):
        farewell = STOP_BYTE
        raise
    finally:
        wires.close(farewell=farewell)


async def _receive_stripe(wire: Wire, receiver: Receiver, settings: SocketSettings) -> None:
    loop = asyncio.get_running_loop()
    train = Train(receiver.meter)
    while True:
        header = Header.decode(await wire.receive(HEADER_BYTES))
        if header.piece is None:
            train.pause()
            if receiver.message(header, await wire.receive(header.payload_bytes)):
                return
            continue
        buffers = receiver.begin(header)
        if header.after_pause or not train.rolling:
            train.start(loop.time(), wire.buffered_bytes())
        digest = header.digest() if settings.checksum else None
        await wire.receive_into(buffers, digest)
        receiver.finish(header, digest)
        train.frame_done(loop.time(), header.payload_bytes)
        # A sender that is always ahead would never let this task wait, nor any other run.
        await asyncio.sleep(0)
