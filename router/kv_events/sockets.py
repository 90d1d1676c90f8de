"""ZeroMQ: hearing a publisher's messages, and asking it for those that were missed.

Needs pyzmq. Every wait has a time-out, every queue a bound. Connections are watched with ZeroMQ's own heartbeats, so a
publisher whose host went silent is noticed.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from ..core.errors import ConfigError
from .events import KvEventError

END_SEQ = 0xFFFF_FFFF_FFFF_FFFF
_SEQ = struct.Struct(">Q")
_BREATHE_EVERY = 32
"""Messages after which others get their turn on the loop: receiving what is already here does not yield by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEventLimits:
    """Bounds on what waits and how long."""

    queued_max: int = 100_000
    """Messages that ZeroMQ keeps for us; more are lost, which shows as a gap."""
    waiting_max: int = 10_000
    """Messages kept back while a replay runs."""
    message_bytes_max: int = 64 << 20
    """A longer message breaks the connection."""
    reply_s: float = 5.0
    """Time-out of a replay, from one of its messages to the next."""
    replay_s: float = 120.0
    """Time-out of a whole replay."""
    retry_s: float = 10.0
    """After a failed replay the next one waits that long."""
    check_s: float = 10.0
    """A publisher that is quiet for so long is asked whether it said anything."""
    lost_after_s: float = 30.0
    """A connection that is down for so long: what its engine holds is forgotten."""
    heartbeat_s: float = 5.0
    """ZeroMQ's pings; three without an answer break the connection."""

    def __post_init__(self) -> None:
        assert min(self.queued_max, self.waiting_max, self.message_bytes_max) > 0, self
        assert min(self.reply_s, self.replay_s, self.retry_s, self.check_s, self.lost_after_s, self.heartbeat_s) > 0, (
            self
        )


class Subscriber:
    """One SUB socket: `run` hands on its messages, and when a connection comes up or breaks, until it is cancelled."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        *,
        bind: bool,
        limits: KvEventLimits,
        on_message: Callable[[list[bytes]], None],
        on_connected: Callable[[], None],
        on_disconnected: Callable[[], None],
    ) -> None:
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._socket = context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = limits.queued_max
        self._socket.maxmsgsize = limits.message_bytes_max
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, round(limits.heartbeat_s * 1000))
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(limits.heartbeat_s * 3000))
        self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            (self._socket.bind if bind else self._socket.connect)(endpoint)
        except zmq.ZMQError as error:
            self.close()
            rule = "an address of this host that is free" if bind else "tcp://HOST:PORT or ipc://PATH"
            raise ConfigError(f"KV events: {endpoint!r} cannot be used: {error.strerror}; it must be {rule}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT) if bind else endpoint

    def subscribe(self, topic: str) -> None:
        """Hear topics that begin with this, too. Every call wants its `unsubscribe`."""
        self._socket.subscribe(topic)

    def unsubscribe(self, topic: str) -> None:
        """Undo one `subscribe`; without effect when the socket is closed."""
        if not self._socket.closed:
            self._socket.unsubscribe(topic)

    async def run(self) -> None:
        """Hear, until cancelled; then the socket is closed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hear())
                tasks.create_task(self._watch())
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the socket; may be called again, and after its context is gone."""
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)

    async def _hear(self) -> None:
        heard = 0
        while True:
            self._on_message(await self._socket.recv_multipart())
            heard += 1
            if heard % _BREATHE_EVERY == 0:
                await asyncio.sleep(0)

    async def _watch(self) -> None:
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._on_connected()
            elif event == zmq.EVENT_DISCONNECTED:
                self._on_disconnected()


def read_seq(frame: bytes) -> int:
    """A sequence number: eight bytes, big-endian. Raises KvEventError."""
    if len(frame) != _SEQ.size:
        raise KvEventError(f"a sequence number must have 8 bytes; found {len(frame)}")
    return int(_SEQ.unpack(frame)[0])


async def replay(
    context: zmq.asyncio.Context,
    endpoint: str,
    from_seq: int,
    limits: KvEventLimits,
    on_batch: Callable[[int, bytes], None],
) -> None:
    """Ask for all batches from a number on, and hand on number and payload of each, up to the end mark.

    A new socket each time, so that no late answer to another question is taken for this one's. Raises KvEventError
    when no end mark comes in time, or something else than an answer.
    """
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.rcvhwm = limits.queued_max
    dealer.maxmsgsize = limits.message_bytes_max
    dealer.setsockopt(zmq.IPV6, int("[" in endpoint))
    try:
        async with asyncio.timeout(limits.replay_s):
            dealer.connect(endpoint)
            await asyncio.wait_for(dealer.send_multipart([b"", _SEQ.pack(from_seq)]), limits.reply_s)
            answers = 0
            while True:
                frames = await asyncio.wait_for(dealer.recv_multipart(), limits.reply_s)
                seq, payload = read_reply(frames)
                if seq == END_SEQ:
                    return
                on_batch(seq, payload)
                answers += 1
                if answers % _BREATHE_EVERY == 0:
                    await asyncio.sleep(0)
    except TimeoutError:
        raise KvEventError(f"{endpoint} did not answer a replay request in time") from None
    except zmq.ZMQError as error:
        raise KvEventError(f"{endpoint} cannot be asked for a replay: {error.strerror}") from error
    finally:
        dealer.close(0)


def read_reply(frames: list[bytes]) -> tuple[int, bytes]:
    r"""(number, payload) of one reply, with its topic or, from older builds, without. Raises KvEventError.

    >>> read_reply([b"", b"topic", b"\0\0\0\0\0\0\0\x05", b"payload"])
    (5, b'payload')
    """
    if len(frames) not in {3, 4} or frames[0]:
        raise KvEventError(f"a replay's answer must be ['', topic, number, payload]; found {len(frames)} frames")
    return read_seq(frames[-2]), frames[-1]
