"""A network that does what bad networks do, in front of a worker's port."""

import asyncio
import socket
import struct
from collections.abc import Callable

from .cluster import Node


class BadNetwork:
    """A TCP proxy. What the target sends back passes `tamper(offset, chunk)`, slowed by `bytes_per_s` and `delay_s`.

    What `tamper` returns is passed on; None resets the connection, b"" ends it there. Offsets count over all
    connections.
    """

    def __init__(self) -> None:
        self.tamper: Callable[[int, bytes], bytes | None] = lambda offset, chunk: chunk
        self.bytes_per_s: float | None = None
        self.delay_s = 0.0
        self.carried_bytes = 0
        self.target_port = 0
        self._serving: set[asyncio.Task[None]] = set()

    def stand_before(self, node: Node, site: str) -> None:
        """Let everybody in `site` reach the node's data plane through here."""
        self.target_port = node.process.data_port
        node.process.service.data_address_from[site] = ("127.0.0.1", self.port)

    async def __aenter__(self) -> "BadNetwork":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            forth = asyncio.create_task(_forward(reader, far_writer))
            try:
                await self._back(far_reader, writer)
            finally:
                forth.cancel()
                await asyncio.gather(forth, return_exceptions=True)
                far_writer.close()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._serving.discard(task)

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(8 * 1024):
            passed = self.tamper(self.carried_bytes, chunk)
            self.carried_bytes += len(chunk)
            if passed is None:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            if not passed:
                return
            if self.bytes_per_s or self.delay_s:
                await asyncio.sleep(self.delay_s + len(passed) / (self.bytes_per_s or float("inf")))
            writer.write(passed)
            await writer.drain()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(64 * 1024):
        writer.write(chunk)
        await writer.drain()
    writer.close()
