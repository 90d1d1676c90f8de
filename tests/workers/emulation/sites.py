"""Two sites, a server in one of them, and clients that talk to it over an emulated network."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from homing.workers.emulation import EmulatedLink, Wan

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Address = tuple[str, int]

MB = 1e6
# What a scheduler on a busy machine may add to a round trip.
JITTER_S = 0.03
# Makes close() a reset.
LINGER_ZERO = struct.pack("ii", 1, 0)


def make_links(
    *, rate: float = 50 * MB, back_rate: float | None = None, delay_s: float = 0.0, back_delay_s: float | None = None
) -> list[EmulatedLink]:
    """The two directions between sites a and b."""
    return [
        EmulatedLink(source="a", target="b", bytes_per_s=rate, delay_s=delay_s),
        EmulatedLink(
            source="b",
            target="a",
            bytes_per_s=rate if back_rate is None else back_rate,
            delay_s=delay_s if back_delay_s is None else back_delay_s,
        ),
    ]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[Address]:
    """A server that closes each connection when its handler is done, and takes resets as they come."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


@asynccontextmanager
async def network(handler: Handler, links: list[EmulatedLink] | None = None) -> AsyncIterator[tuple[Wan, Address]]:
    """A server in site b, and the address at which site a sees it."""
    async with listening(handler) as (host, port), Wan(links or make_links()) as wan:
        yield wan, await wan.open_gateway("a", "b", host, port)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**18):
        writer.write(data)
        await writer.drain()


async def pour(address: Address, *, total_bytes: int = 2**60) -> None:
    """Send zeros as fast as they are taken."""
    _, writer = await asyncio.open_connection(*address)
    piece = bytes(2**18)
    try:
        while total_bytes > 0:
            writer.write(piece[: min(len(piece), total_bytes)])
            total_bytes -= len(piece)
            await writer.drain()
        writer.write_eof()
        while not writer.is_closing():
            await asyncio.sleep(0.01)
    finally:
        writer.close()


@dataclass
class Sink:
    """Counts what reaches it, per connection, leaving out the first read: it shows when bytes began to flow."""

    began_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    received_bytes: list[int] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        if not await reader.read(2**18):
            return
        number = len(self.began_s)
        self.began_s.append(loop.time())
        self.ended_s.append(loop.time())
        self.received_bytes.append(0)
        while data := await reader.read(2**18):
            self.received_bytes[number] += len(data)
            self.ended_s[number] = loop.time()

    def rate(self, number: int = 0) -> float:
        return self.received_bytes[number] / (self.ended_s[number] - self.began_s[number])


@asynccontextmanager
async def background(*work: Awaitable[None]) -> AsyncIterator[None]:
    """Run `work` meanwhile, and end it in the end."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def connect_and_read(address: Address) -> None:
    """Fails with what ends the connection, be it while connecting or later."""
    with await connect(address) as sock:
        await read_to_end(sock)


async def expect_reset(sock: socket.socket, *, within_s: float) -> None:
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(read_to_end(sock), within_s)


async def read_to_end(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while data := await loop.sock_recv(sock, 2**16):
        received += data
    return received


async def connect(address: Address) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
    except OSError:
        sock.close()
        raise
    return sock


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    sock.close()
