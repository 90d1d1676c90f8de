"""Vectored, non-blocking socket I/O on the running event loop, with a time-out on every wait.

`recvmsg_into` and `sendmsg` move a frame of many small runs in one system call, straight between the kernel and
the KV tensor. Both are tried before the loop is asked to wait, as asyncio's own `sock_recv_into` does.
"""

import asyncio
import contextlib
import fcntl
import functools
import logging
import socket
import struct
import termios
from collections.abc import Callable, Sequence

import xxhash

from .errors import ConnectionLostError, TimedOutError

_log = logging.getLogger(__name__)

# Linux refuses more than 1024 (UIO_MAXIOV); one is left for a frame's header.
_VECTORS_MAX = 1023


class Wire:
    """One connected, non-blocking TCP socket. Not safe for two readers or two writers at once."""

    def __init__(self, sock: socket.socket, *, read_timeout_s: float, write_timeout_s: float) -> None:
        sock.setblocking(False)
        # A peer may be gone already; then the first read or write says so.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._sock.close()

    def set_congestion(self, name: str) -> None:
        """Use congestion control `name` for what this end sends; where the kernel lacks it, log once and go on."""
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode("ascii"))
        except OSError as error:
            _warn_congestion(name, str(error))

    def buffered_bytes(self) -> int:
        """Bytes that the kernel has received and nobody has read."""
        answer = fcntl.ioctl(self._sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
        return int(struct.unpack("i", answer)[0])

    async def receive(self, size: int) -> bytes:
        """Exactly `size` bytes, for headers and short messages."""
        data = bytearray(size)
        if size:
            await self.receive_into([memoryview(data)])
        return bytes(data)

    async def receive_into(self, buffers: Sequence[memoryview], digest: "xxhash.xxh3_64 | None" = None) -> None:
        """Fill all `buffers`; feed what arrives to `digest` while it is still in the CPU's cache.

        Raises `ConnectionLostError` if the stream ends first, `TimedOutError` if nothing comes for too long.
        """
        pending = list(buffers)
        first = 0
        while first < len(pending):
            count = await self._receive_some(pending[first : first + _VECTORS_MAX])
            while count:
                view = pending[first]
                taken = view[:count]
                if digest is not None:
                    digest.update(taken)
                count -= len(taken)
                pending[first] = view[len(taken) :]
                first += len(taken) == len(view)

    async def _receive_some(self, buffers: list[memoryview]) -> int:
        while True:
            try:
                count = self._sock.recvmsg_into(buffers)[0]
            except (BlockingIOError, InterruptedError):
                await self._readable()
            except OSError as error:
                raise ConnectionLostError(f"receiving failed: {error}") from error
            else:
                if not count:
                    raise ConnectionLostError("the peer closed the connection before the last frame")
                return count

    async def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send all `buffers`; raises `ConnectionLostError`, or `TimedOutError` if the peer takes nothing."""
        pending = [memoryview(buffer) for buffer in buffers]
        first = 0
        while first < len(pending):
            count = await self._send_some(pending[first : first + _VECTORS_MAX])
            while count:
                view = pending[first]
                taken = min(count, len(view))
                count -= taken
                pending[first] = view[taken:]
                first += taken == len(view)

    async def _send_some(self, buffers: list[memoryview]) -> int:
        while True:
            try:
                return self._sock.sendmsg(buffers)
            except (BlockingIOError, InterruptedError):
                await self._writable()
            except OSError as error:
                raise ConnectionLostError(f"sending failed: {error}") from error

    async def finish_sending(self) -> None:
        """Tell the peer that nothing more comes from this end."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ConnectionLostError(f"closing failed: {error}") from error

    def send_now(self, data: bytes) -> None:
        """Send `data` if that needs no waiting; a farewell that may be lost."""
        try:
            self._sock.send(data)
        except OSError as error:
            _log.debug("farewell not sent: %s", error)

    async def next_byte(self) -> bytes:
        """The next byte, or nothing at the end of the stream or on a broken connection. Waits without limit."""
        while True:
            try:
                return self._sock.recv(1)
            except (BlockingIOError, InterruptedError):
                await self._wait(self._loop.add_reader, self._loop.remove_reader, None, "")
            except OSError:
                return b""

    async def _readable(self) -> None:
        what = "no byte arrived"
        await self._wait(self._loop.add_reader, self._loop.remove_reader, self._read_timeout_s, what)

    async def _writable(self) -> None:
        what = "the receiver took no byte"
        await self._wait(self._loop.add_writer, self._loop.remove_writer, self._write_timeout_s, what)

    async def _wait(
        self,
        watch: Callable[..., object],
        unwatch: Callable[[int], object],
        timeout_s: float | None,
        what: str,
    ) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        fd = self._sock.fileno()
        watch(fd, _resolve, ready)
        try:
            async with asyncio.timeout(timeout_s):
                await ready
        except TimeoutError as error:
            raise TimedOutError(f"{what} for {timeout_s} s") from error
        finally:
            unwatch(fd)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


@functools.cache
def _warn_congestion(name: str, error: str) -> None:
    _log.warning("congestion control %r is not available (%s); the kernel's default is used", name, error)


async def connect_tcp(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket to the first address of `host` that answers; raises `OSError`."""
    loop = asyncio.get_running_loop()
    error: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        except OSError as failed:
            sock.close()
            error = failed
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise error or OSError(f"{host!r} has no address")
