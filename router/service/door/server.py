"""HTTP/1.1 for clients: listens, and keeps what all connections share.

Rule 1: bounded. Headers, bodies, all bodies together, connections and what a client pipelines have limits.
Rule 2: nobody holds a connection for nothing: each phase has its time, kept by one sweep for all connections.
Rule 3: a client that goes away cancels what is being done for it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from .connection import Connection, Phase
from .http import Handler, HttpLimits

LINGER_S: Final = 2.0
"""How long a client that was refused may go on sending. A connection that is closed with bytes unread is reset, and
takes the refusal along."""
TURNED_AWAY_MAX: Final = 256
"""Connections beyond the limit that are told so at one time; more of them are closed without a word."""


class HttpServer:
    """Listens, and hands whole requests to `handler`, which answers them and never raises but CancelledError."""

    def __init__(self, handler: Handler, limits: HttpLimits | None = None) -> None:
        self.handler = handler
        self.limits = limits or HttpLimits()
        self.connections: set[Connection] = set()
        self.turned_away: set[Connection] = set()
        self.now: Callable[[], float] = asyncio.get_running_loop().time
        self.seconds_of: dict[Phase, float] = {
            "idle": self.limits.idle_timeout_s,
            "headers": self.limits.header_timeout_s,
            "body": self.limits.body_timeout_s,
            "leaving": LINGER_S,
        }
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
        there = [*self.connections, *self.turned_away]
        await asyncio.gather(*(connection.close(grace_s) for connection in there))
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    def admit(self, connection: Connection) -> bool:
        """Count a connection; False if there are too many."""
        return _add(self.connections, connection, self.limits.connections_max)

    def turn_away(self, connection: Connection) -> bool:
        """Keep one beyond them until it has heard so; False if there are too many of these, too."""
        return _add(self.turned_away, connection, TURNED_AWAY_MAX)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self.turned_away.discard(connection)

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
        limits = self.limits
        shortest_s = min(limits.header_timeout_s, limits.body_timeout_s, limits.write_timeout_s)
        while True:
            await asyncio.sleep(min(1.0, shortest_s / 4))
            now = self.now()
            there = (*self.connections, *self.turned_away)
            for connection in [each for each in there if each.deadline_s < now]:
                connection.expire()


def _add(connections: set[Connection], connection: Connection, most: int) -> bool:
    if len(connections) >= most:
        return False
    connections.add(connection)
    return True
