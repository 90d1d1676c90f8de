"""Real sockets on loopback: a source with its data server, a target, and a proxy that does what networks do."""

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from homing.workers.transfer import (
    BufferMemory,
    CachedExport,
    DataServer,
    Export,
    HandoverExport,
    MemorySink,
    Offer,
    Order,
    Outcome,
    ServerLimits,
)

FORMAT = "test-f16"


def run(work: Coroutine[Any, Any, Any], timeout_s: float = 20.0) -> Any:
    """A test that hangs is a test that fails."""
    return asyncio.run(asyncio.wait_for(work, timeout_s))


class Pair:
    """Source and target with memories of the same layout; blocks are scattered, differently on each side."""

    def __init__(
        self,
        blocks: int = 12,
        layers: int = 4,
        layer_block_bytes: int = 96 * 1024,
        seed: int = 1,
        limits: ServerLimits | None = None,
    ) -> None:
        rng = random.Random(seed)
        self.layers, self.layer_block_bytes = layers, layer_block_bytes
        memory_bytes = (blocks + 3) * layers * layer_block_bytes
        self.source = self._memory(bytearray(rng.randbytes(memory_bytes)))
        self.target_bytes = bytearray(memory_bytes)
        self.target = self._memory(self.target_bytes)
        self.source_blocks = rng.sample(range(blocks + 3), blocks)
        self.target_blocks = rng.sample(range(blocks + 3), blocks)
        self.server = DataServer(self.source, limits=limits)
        self.outcomes: list[Outcome] = []

    def _memory(self, data: bytearray) -> BufferMemory:
        return BufferMemory(data, format=FORMAT, layers=self.layers, layer_block_bytes=self.layer_block_bytes)

    async def __aenter__(self) -> "Pair":
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()

    def sink(self, positions: Sequence[int] | None = None) -> MemorySink:
        chosen = self.target_blocks if positions is None else [self.target_blocks[i] for i in positions]
        return MemorySink(self.target, chosen)

    def cached(self, order: Order = Order.FRONT_TO_BACK, blocks: Sequence[int] | None = None) -> CachedExport:
        chosen = self.source_blocks if blocks is None else blocks
        return CachedExport(chosen, order, self.layers, self.layer_block_bytes)

    def handover(self) -> HandoverExport:
        return HandoverExport(self.source_blocks, self.layers, self.layer_block_bytes)

    def open(self, export: Export | None = None, ttl_s: float = 5.0) -> Offer:
        return self.server.open(export or self.cached(), ttl_s=ttl_s, on_done=self.outcomes.append)

    def same(self, position: int, layer: int = -1) -> bool:
        """Whether a position (or one layer of it) holds the source's bytes at the target."""
        extent = (0, self.layers) if layer < 0 else (layer, 1)
        source = self.source.view(self.source_blocks[position], *extent)
        return source == self.target.view(self.target_blocks[position], *extent)

    def all_same(self) -> bool:
        return all(self.same(i) for i in range(len(self.source_blocks)))

    def rest_untouched(self) -> bool:
        """Whether the target's blocks outside the transfer are as they were: zero."""
        others = set(range(self.target.blocks)) - set(self.target_blocks)
        return not any(any(self.target.view(block, 0, self.layers)) for block in others)


class Proxy:
    """A TCP proxy whose way back (source to target) goes through `tamper(offset, chunk)`.

    What it returns is passed on; None resets the connection with whatever is in flight, b"" ends the stream there.
    """

    def __init__(self, tamper: Callable[[int, bytes], bytes | None], bytes_per_s: float | None = None) -> None:
        self._tamper = tamper
        self._bytes_per_s = bytes_per_s
        self.carried_bytes = 0
        self._target = ("", 0)

    async def __aenter__(self) -> "Proxy":
        # Small buffers, so that what the far end feels is this proxy and not the kernel's memory.
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=64 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def connect_to(self, offer_port: int) -> Callable[[str, int], Awaitable[socket.socket]]:
        """A `connect` for `pull` that goes through the proxy."""
        self._target = ("127.0.0.1", offer_port)

        async def connect(host: str, port: int) -> socket.socket:
            assert (host, port) == self._target
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            return sock

        return connect

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target, limit=64 * 1024)
        forth = asyncio.create_task(_forward(reader, far_writer))
        try:
            await self._back(far_reader, writer)
        except ConnectionError:
            pass
        finally:
            forth.cancel()
            await asyncio.gather(forth, return_exceptions=True)
            writer.close()
            far_writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while chunk := await reader.read(16 * 1024):
            passed = self._tamper(self.carried_bytes, chunk)
            self.carried_bytes += len(chunk)
            if passed is None:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            if not passed:
                return
            if self._bytes_per_s:
                due_s = max(due_s, loop.time() - 0.05) + len(passed) / self._bytes_per_s
                await asyncio.sleep(due_s - loop.time())
            writer.write(passed)
            await writer.drain()
        await reader.read()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(64 * 1024):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@pytest.fixture(name="run")
def _run() -> Callable[..., Any]:
    return run


@pytest.fixture(name="Pair")
def _pair() -> type[Pair]:
    return Pair


@pytest.fixture(name="Proxy")
def _proxy() -> type[Proxy]:
    return Proxy
