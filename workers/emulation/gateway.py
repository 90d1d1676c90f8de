"""A local TCP port that stands for an address in another site: the sockets of the emulated network.

What passes through: bytes, half-closes, resets and back-pressure. A reset takes the link's delay and drops
what is still queued before the link, as the reset of a real sender drops its unsent buffer.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

from .link import Flow, Pacer

logger = logging.getLogger(__name__)

Address = tuple[socket.AddressFamily, Any]
"""An address family and the address in that family's own form."""

_LOOPBACK = "127.0.0.1"
_CONNECTIONS_MAX = 512
_CONNECT_TIMEOUT_S = 10.0
_ACCEPT_RETRY_S = 1.0
# What lies in the kernel is not yet on the link: the less, the sooner a sender feels the rate. Half as much
# costs 60 % more CPU time per byte at 1 Gbit/s.
_SOCKET_BUFFER_BYTES = 32 * 1024
# Linux starts a sender's own buffer at 20 segments and lets it grow to twice the congestion window. With the
# 64 KiB segments of the loopback device it starts at megabytes, with Ethernet's at tens of kilobytes. No
# setting at this end stops it from growing; senders that care set SO_SNDBUF.
_SEGMENT_BYTES = 1448
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Gateway:
    """Forwards every connection made to `address` to the first of `targets` that answers.

    `outbound` carries what clients send, `inbound` what the target sends. Needs a running event loop.
    """

    def __init__(self, *, name: str, outbound: Pacer, inbound: Pacer, targets: Sequence[Address]) -> None:
        self._name = name
        self._outbound = outbound
        self._inbound = inbound
        self._targets = targets
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[bool]] = set()
        # It never listens: it keeps the port for this gateway while the link is cut.
        self._holder = _bound_socket(0)
        self.refresh()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that clients connect to; stays the same while the link is cut."""
        host, port = self._holder.getsockname()
        return host, port

    def uses(self, pacer: Pacer) -> bool:
        """Whether connections of this gateway pass `pacer`, in either direction."""
        return pacer in (self._outbound, self._inbound)

    def refresh(self) -> None:
        """Listen if both directions are up; otherwise refuse connections and reset those that exist."""
        if self._outbound.is_cut or self._inbound.is_cut:
            self._stop_listening()
            for task in self._tasks:
                task.cancel()
        elif self._listener is None:
            self._listener = _bound_socket(self.address[1])
            self._listener.listen(128)
            self._watch()

    async def close(self) -> None:
        """Stop listening, reset every connection and wait until their sockets are closed."""
        self._stop_listening()
        self._holder.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _watch(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            near, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors: the connection stays queued, and a watched listener would spin.
            logger.warning("%s: cannot accept a connection: %s", self._name, error)
            self._loop.remove_reader(listener)
            self._loop.call_later(_ACCEPT_RETRY_S, self._watch)
            return
        if len(self._tasks) >= _CONNECTIONS_MAX:
            logger.warning("%s: refused a connection beyond the limit of %d", self._name, _CONNECTIONS_MAX)
            _close([near], reset=True)
            return
        self._adopt(near)

    def _adopt(self, near: socket.socket) -> None:
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets = [near]
        task = self._loop.create_task(self._carry(sockets), name=f"{self._name}: connection")
        self._tasks.add(task)
        # Not in the task itself: a task that is cancelled before its first step runs no `finally`.
        task.add_done_callback(partial(self._release, sockets))

    def _release(self, sockets: list[socket.socket], task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("%s: connection failed", self._name, exc_info=error)
        ended_well = not task.cancelled() and error is None and task.result()
        _close(sockets, reset=not ended_well)

    async def _carry(self, sockets: list[socket.socket]) -> bool:
        """Open the far end and relay; whether both directions came to their end, unbroken."""
        await asyncio.sleep(self._outbound.link.delay_s)
        try:
            far = await self._connect()
        except OSError as error:
            logger.info("%s: target does not answer: %s", self._name, error)
            await asyncio.sleep(self._inbound.link.delay_s)
            return False
        sockets.append(far)
        ended_well = False
        try:
            await self._relay(sockets[0], far)
            ended_well = True
        except* OSError as broken:
            logger.debug("%s: connection broke: %s", self._name, broken.exceptions[0])
        return ended_well

    async def _connect(self) -> socket.socket:
        failure: OSError | None = None
        for family, address in self._targets:
            far = socket.socket(family, socket.SOCK_STREAM)
            try:
                _prepare(far)
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await self._loop.sock_connect(far, address)
            except OSError as error:
                far.close()
                failure = error
            except BaseException:
                far.close()
                raise
            else:
                return far
        assert failure is not None, "a gateway has at least one target"
        raise failure

    async def _relay(self, near: socket.socket, far: socket.socket) -> None:
        outbound, inbound = Flow(self._outbound), Flow(self._inbound)
        try:
            async with asyncio.TaskGroup() as group:
                # The target has seen the SYN; what the client sends starts when the SYN-ACK is back.
                group.create_task(self._leave(near, outbound, self._outbound, self._inbound.link.delay_s))
                group.create_task(self._arrive(far, outbound, self._inbound))
                group.create_task(self._leave(far, inbound, self._inbound, 0.0))
                group.create_task(self._arrive(near, inbound, self._outbound))
        finally:
            outbound.discard()
            inbound.discard()

    async def _leave(self, sock: socket.socket, flow: Flow, away: Pacer, wait_s: float) -> None:
        """Bring what `sock` sends to the link, after `wait_s`.

        Should `sock` break, its reset travels on `away` before anybody else hears of it.
        """
        await asyncio.sleep(wait_s)
        try:
            while data := await self._loop.sock_recv(sock, flow.chunk_bytes):
                await flow.send(data)
            await flow.send(b"")
        except OSError:
            await asyncio.sleep(away.link.delay_s)
            raise

    async def _arrive(self, sock: socket.socket, flow: Flow, away: Pacer) -> None:
        """Bring what comes off the link to `sock`; a break of `sock` travels on `away`."""
        try:
            while chunk := await flow.receive():
                await self._loop.sock_sendall(sock, chunk)
                flow.delivered(len(chunk))
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            await asyncio.sleep(away.link.delay_s)
            raise


def _bound_socket(port: int) -> socket.socket:
    """A loopback socket on `port`; two may be bound to one port as long as one of them at most listens."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _prepare(sock)
        sock.bind((_LOOPBACK, port))
    except OSError:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket) -> None:
    """Set what must stand before a socket connects or listens; accepted sockets inherit it."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _close(sockets: Sequence[socket.socket], *, reset: bool) -> None:
    for sock in sockets:
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        sock.close()
