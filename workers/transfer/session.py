"""One offered export and the connections that carry it; ends once, whatever happens."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ConnectionLostError, RefusedError, SourceFailedError, TimedOutError
from .export import Export
from .frames import STOP_BYTE, STRIPES_MAX, Hello
from .report import Outcome, OutcomeStatus
from .sending import frames_of
from .sockets import Wire
from .types import BlockMemory, Layout

_log = logging.getLogger(__name__)

_FAREWELL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What a data server lets others take.

    connections_max: open connections in all; one costs a socket and its kernel buffers (a few MiB).
    connections_per_export_max: stripes of one transfer.
    exports_max: offers that are not over; also bounds the search for a token.
    handshake_timeout_s: from accept to the end of the handshake, and from the first stripe to the last.
    send_stall_timeout_s: how long a receiver may take no byte.
    idle_timeout_s: how long a handover may make no progress.
    """

    connections_max: int = 256
    connections_per_export_max: int = 16
    exports_max: int = 1024
    handshake_timeout_s: float = 5.0
    send_stall_timeout_s: float = 30.0
    idle_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if min(self.connections_max, self.connections_per_export_max, self.exports_max) < 1:
            raise ValueError(f"{self}: every maximum must be >= 1")
        if self.connections_per_export_max > STRIPES_MAX:
            raise ValueError(f"connections_per_export_max must be <= {STRIPES_MAX}, the protocol's limit")
        if min(self.handshake_timeout_s, self.send_stall_timeout_s, self.idle_timeout_s) <= 0:
            raise ValueError(f"{self}: every time-out must be > 0 s")


class Session:
    """An export between its offer and its outcome. `on_done` is called exactly once.

    The stripes draw pieces from one export, so a quicker connection carries more. If one of them fails, all do.
    """

    def __init__(
        self,
        *,
        export: Export,
        memory: BlockMemory,
        layout: Layout,
        limits: ServerLimits,
        on_done: Callable[[Outcome], None],
    ) -> None:
        self._export = export
        self._memory = memory
        self._layout = layout
        self._limits = limits
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._opened_s = self._loop.time()
        self._stripes = 0
        self._stripes_seen: set[int] = set()
        self._senders: set[asyncio.Task[None]] = set()
        self._payload_bytes = 0
        self.outcome: Outcome | None = None

    @property
    def started(self) -> bool:
        """Whether a connection was admitted."""
        return bool(self._stripes_seen)

    @property
    def answers_nobody(self) -> bool:
        """Whether no further connection can be admitted."""
        sent = self.outcome is not None and self.outcome.status is OutcomeStatus.SENT
        all_here = self.started and len(self._stripes_seen) == self._stripes
        return all_here or (self.outcome is not None and not sent)

    def admit(self, hello: Hello) -> None:
        """Take a connection in, or raise `RefusedError`."""
        if self.answers_nobody:
            raise RefusedError("this token is used up")
        if hello.format_digest != self._layout.format_digest:
            reason = f"the receiver's KV format differs from {self._layout.format!r}"
            self.finish(OutcomeStatus.FAILED, reason)
            raise RefusedError(reason)
        if hello.stripes > self._limits.connections_per_export_max:
            raise RefusedError(f"at most {self._limits.connections_per_export_max} connections for one transfer")
        if self._stripes not in {0, hello.stripes} or hello.stripe in self._stripes_seen:
            raise RefusedError(f"stripe {hello.stripe} of {hello.stripes} does not fit those already connected")
        self._stripes = hello.stripes
        self._stripes_seen.add(hello.stripe)

    async def serve(self, wire: Wire, hello: Hello) -> None:
        """Send what this connection can draw from the export, until all is sent or the receiver leaves."""
        sender = asyncio.create_task(self._send(wire, checksum=hello.checksum))
        receiver = asyncio.create_task(wire.next_byte())
        self._senders.add(sender)
        try:
            await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
            if not sender.done():
                self._receiver_left(receiver.result(), "the receiver closed its connection")
            elif not sender.cancelled():
                self._senders.discard(sender)
                await self._conclude(sender.exception(), receiver)
        finally:
            self._senders.discard(sender)
            sender.cancel()
            receiver.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    def finish(self, status: OutcomeStatus, reason: str = "") -> None:
        """End the session: nothing reads the blocks from here on. The first call decides; idempotent."""
        if self.outcome is not None:
            return
        self.outcome = Outcome(
            status=status,
            payload_bytes=self._payload_bytes,
            seconds=self._loop.time() - self._opened_s,
            reason=reason,
        )
        if status is not OutcomeStatus.SENT:
            for sender in self._senders:
                sender.cancel()
        try:
            self._on_done(self.outcome)
        except Exception:
            _log.exception("on_done of an export raised; its blocks may stay pinned")

    async def _send(self, wire: Wire, *, checksum: bool) -> None:
        frames = frames_of(self._export, self._memory, checksum=checksum, idle_timeout_s=self._limits.idle_timeout_s)
        async with contextlib.aclosing(frames):
            async for frame in frames:
                # A receiver that is always ready would never let this task wait, nor any other run. Before the
                # frame, not after: a receiver that closes upon the END must find this task done.
                await asyncio.sleep(0)
                await wire.send(frame)
                self._payload_bytes += sum(len(view) for view in frame[1:])
        await wire.finish_sending()

    async def _conclude(self, error: BaseException | None, receiver: "asyncio.Task[bytes]") -> None:
        match error:
            case None:
                if not self._senders and self._export.exhausted:
                    self.finish(OutcomeStatus.SENT)
                # Waiting for the receiver's close keeps the count of connections true.
                await asyncio.wait({receiver}, timeout=self._limits.send_stall_timeout_s)
            case ConnectionLostError():
                # On a broken connection the read ends at once; it may still hold the receiver's farewell.
                await asyncio.wait({receiver}, timeout=_FAREWELL_S)
                self._receiver_left(receiver.result() if receiver.done() else b"", str(error))
            case TimedOutError():
                self._receiver_left(b"", str(error))
            case SourceFailedError():
                self.finish(OutcomeStatus.FAILED, str(error))
            case _:
                _log.error("sending an export failed", exc_info=error)
                self.finish(OutcomeStatus.FAILED, f"{type(error).__name__}: {error}")

    def _receiver_left(self, farewell: bytes, reason: str) -> None:
        if farewell == STOP_BYTE:
            self.finish(OutcomeStatus.STOPPED, "the receiver has enough")
        else:
            self.finish(OutcomeStatus.RECEIVER_GONE, reason)
