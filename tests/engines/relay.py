"""A wire between a ZeroMQ publisher and its subscriber that can be cut, and that can lose single messages.

ZMTP 3: a greeting of 64 bytes, then frames of a flags byte, a length of one or eight bytes, and a body; a message is
frames of which all but the last have MORE (ZeroMQ RFC 23).
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GREETING_BYTES = 64
MORE, LONG, COMMAND = 1, 2, 4


class Relay:
    """Passes connections on to a port of this machine. `publisher_dials`: which side's messages may be lost."""

    def __init__(self, target_port: int, *, publisher_dials: bool) -> None:
        self.lost = 0
        """Messages that were to be lost and were."""
        self._target_port = target_port
        self._publisher_dials = publisher_dials
        self._is_cut = False
        self._loses = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break what is connected, and let nobody connect."""
        with self._lock:
            self._is_cut = True
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let everybody connect again."""
        self._is_cut = False

    @contextmanager
    def losing(self) -> Iterator[None]:
        """Lose every message of the publisher, on connections that stay up."""
        self._loses = True
        try:
            yield
        finally:
            self._loses = False

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if self._is_cut:
                return
            with socket.create_connection(("127.0.0.1", self._target_port), 5) as far:
                far.settimeout(None)
                publisher, subscriber = (near, far) if self._publisher_dials else (far, near)
                with self._lock:
                    self._open |= {near, far}
                there = threading.Thread(target=self._pump, args=(subscriber, publisher, None), daemon=True)
                there.start()
                self._pump(publisher, subscriber, Losses(self._lose))
                there.join()
                with self._lock:
                    self._open -= {near, far}

    def _lose(self) -> bool:
        self.lost += self._loses
        return self._loses

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, losses: "Losses | None") -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data if losses is None else losses.pass_on(data))
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Losses:
    """One direction of one connection, without the messages that `lose` says yes to."""

    def __init__(self, lose: Callable[[], bool]) -> None:
        self._lose = lose
        self._rest = bytearray()
        self._greeting_bytes = GREETING_BYTES
        self._is_within = False
        self._loses = False

    def pass_on(self, data: bytes) -> bytes:
        """What is to be sent of what came, whole frames at a time."""
        self._rest += data
        out = self._take(min(self._greeting_bytes, len(self._rest)))
        self._greeting_bytes -= len(out)
        while not self._greeting_bytes and (length := self._frame_bytes()):
            flags = self._rest[0]
            frame = self._take(length)
            if not flags & COMMAND:
                self._loses = self._loses if self._is_within else self._lose()
                self._is_within = bool(flags & MORE)
                if self._loses:
                    continue
            out += frame
        return out

    def _frame_bytes(self) -> int:
        """The length of the first frame that waits; 0 while it is not whole."""
        head = 9 if self._rest and self._rest[0] & LONG else 2
        if len(self._rest) < head:
            return 0
        length = head + int.from_bytes(self._rest[1:head], "big")
        return length if len(self._rest) >= length else 0

    def _take(self, length: int) -> bytes:
        taken = bytes(self._rest[:length])
        del self._rest[:length]
        return taken
