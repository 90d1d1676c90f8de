"""From frames to the sink: what may be received, where it goes, and what has come. Shared by sockets and streams."""

import logging
from collections.abc import Sequence

import xxhash

from .arrivals import Arrivals
from .errors import (
    Failure,
    ProtocolViolationError,
    RefusedError,
    SinkFailedError,
    SourceFailedError,
    TransferError,
)
from .frames import Header, Kind
from .report import FlowMeter, Status, TransferReport
from .stopping import StoppedError
from .types import Layout, Piece, Sink

_log = logging.getLogger(__name__)


class Receiver:
    """The state of one pull, shared by its connections.

    A peer may only send pieces within the offer, of exactly their length, each cell once: it can neither write
    outside a piece's buffers nor make this side allocate.
    """

    def __init__(self, layout: Layout, sink: Sink, started_s: float) -> None:
        self._layout = layout
        self._sink = sink
        self._started_s = started_s
        self._claimed = Arrivals.of(layout)
        self._arrived = Arrivals.of(layout)
        self._payload_bytes = 0
        self._pieces = 0
        self.meter = FlowMeter()
        self.connect_s: float | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that was offered has arrived."""
        return self._arrived.complete

    def begin(self, header: Header) -> Sequence[memoryview]:
        """Check a PIECE header and return where its payload goes; raises `StoppedError` if it is not wanted."""
        piece = self._checked(header)
        try:
            wanted = self._sink.wanted(piece)
            buffers = self._sink.buffers(piece) if wanted else []
        except Exception as error:
            raise SinkFailedError(f"the sink has no place for {piece}: {error!r}") from error
        if not wanted:
            raise StoppedError(f"the sink wants nothing from {piece} on")
        offered = sum(buffer.nbytes for buffer in buffers)
        if offered != header.payload_bytes or any(buffer.readonly for buffer in buffers):
            raise SinkFailedError(f"the sink offers {offered} bytes for {piece}; {header.payload_bytes} are needed")
        self._claimed.add(piece)
        return buffers

    def finish(self, header: Header, digest: "xxhash.xxh3_64 | None") -> None:
        """The payload is in the sink's buffers; check it and say so. Without a digest nothing is checked."""
        assert header.piece is not None, "only pieces are finished"
        if digest is not None:
            header.check(digest)
        self._arrived.add(header.piece)
        self._payload_bytes += header.payload_bytes
        self._pieces += 1
        try:
            self._sink.arrived(header.piece)
        except Exception as error:
            raise SinkFailedError(f"the sink failed on {header.piece}: {error!r}") from error

    def message(self, header: Header, payload: bytes) -> bool:
        """Take in a frame that is no piece; True if it was the last. Raises what the source says went wrong."""
        digest = header.digest()
        digest.update(payload)
        header.check(digest)
        text = payload.decode(errors="replace")
        if header.kind is Kind.ERROR:
            raise RefusedError(f"the source refused: {text}")
        if header.failed:
            raise SourceFailedError(f"the source gave up: {text}")
        return header.kind is Kind.END

    def ended(self) -> None:
        """Every connection saw its END; raises `ProtocolViolationError` if something is missing."""
        if not self.complete:
            missing = self._layout.blocks - self._arrived.blocks_complete
            raise ProtocolViolationError(f"the source ended with {missing} of {self._layout.blocks} blocks missing")

    def report(self, now_s: float, error: BaseException | None) -> TransferReport:
        """The report at the end. What is all there is COMPLETE, even if the connection broke after it."""
        status, failure, reason = Status.COMPLETE, None, ""
        if error is not None and not self.complete:
            status, failure = classify(error)
            reason = str(error) or type(error).__name__
        first_byte_at_s = self.meter.first_byte_at_s
        return TransferReport(
            payload_bytes=self._payload_bytes,
            blocks=self._arrived.blocks_complete,
            pieces=self._pieces,
            seconds=now_s - self._started_s,
            first_byte_s=None if first_byte_at_s is None else first_byte_at_s - self._started_s,
            connect_s=self.connect_s,
            receiving_s=self.meter.receiving_s,
            flow_bytes=self.meter.flow_bytes,
            status=status,
            failure=failure,
            reason=reason,
        )

    def _checked(self, header: Header) -> Piece:
        piece = header.piece
        if piece is None:
            raise ProtocolViolationError(f"frame {header.kind.name} where a piece was expected")
        if not self._layout.contains(piece):
            raise ProtocolViolationError(f"{piece} lies outside the offer of {self._layout.blocks} blocks")
        if header.payload_bytes != self._layout.bytes_of(piece):
            wanted = self._layout.bytes_of(piece)
            raise ProtocolViolationError(f"{piece} announced with {header.payload_bytes} bytes; it has {wanted}")
        if self._claimed.overlaps(piece):
            raise ProtocolViolationError(f"{piece}: some of it was sent before")
        return piece


def classify(error: BaseException) -> tuple[Status, Failure | None]:
    """How a transfer that ended with `error` is reported."""
    match error:
        case StoppedError():
            return Status.STOPPED, None
        case TransferError():
            return Status.FAILED, error.failure
        case TimeoutError():
            return Status.FAILED, Failure.TIMEOUT
        case OSError():
            return Status.FAILED, Failure.CONNECTION
    _log.error("a transfer failed unexpectedly", exc_info=error)
    return Status.FAILED, Failure.SINK
