"""What a transfer did: the report to the target's side, the outcome to the source's, and the meter of the link.

How link speed is estimated. Total bytes over total time would blame the link for the handshake, for slow start of
short fetches and, in a handover, for the prefill that the pieces wait for. So only *trains* count: runs of frames
that the source sent without waiting for anything. A train's time starts when its first header is seen, and the bytes
that already lay in the kernel's buffer at that moment are not counted, since they did not need that time. The next
frames of the train add their bytes and the time since the frame before. Trains of several connections overlap: the
time is the union of them, the bytes are the sum.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from .errors import Failure

# Below this, one wake-up of a busy event loop outweighs the bytes: 64 KiB take 0.5 ms at 1 Gbit/s.
FLOW_BYTES_MIN = 64 * 1024


class Status(StrEnum):
    """How a transfer ended, as the target sees it."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """What one pull brought, how fast, and why it ended. Times in seconds from the start of the pull.

    payload_bytes: bytes of the pieces that arrived with a matching checksum (repeats after a resume not counted).
    blocks: positions all of whose layers arrived.
    seconds: from starting to connect (for a `Mover`: to ask for the offer) until the end.
    first_byte_s: until the first payload byte was seen; None if none came.
    connect_s: TCP connect time, about one round trip; the quickest of several connections, None over gRPC.
    receiving_s, flow_bytes: the time in which payload really flowed and the bytes it took (see the module's text).
    failure, reason: None and empty unless FAILED (STOPPED carries its reason too).
    """

    payload_bytes: int = 0
    blocks: int = 0
    pieces: int = 0
    seconds: float = 0.0
    first_byte_s: float | None = None
    connect_s: float | None = None
    receiving_s: float = 0.0
    flow_bytes: int = 0
    attempts: int = 1
    status: Status
    failure: Failure | None = None
    reason: str = ""

    @property
    def link_bytes_per_s(self) -> float | None:
        """The link's speed as this transfer felt it; None when too little flowed to tell."""
        if self.flow_bytes < FLOW_BYTES_MIN or self.receiving_s <= 0:
            return None
        return self.flow_bytes / self.receiving_s


class OutcomeStatus(StrEnum):
    """How an export ended, as the source sees it."""

    SENT = "sent"
    STOPPED = "stopped"
    RECEIVER_GONE = "receiver_gone"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    CLOSED = "closed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an export; after it, nothing reads the export's blocks any more.

    SENT means that all bytes are with the kernel, not that the target has them: only its report tells that.
    """

    status: OutcomeStatus
    payload_bytes: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class FlowMeter:
    """Adds up the trains of all connections of one pull."""

    flow_bytes: int = 0
    first_byte_at_s: float | None = None
    _spans: list[tuple[float, float]] = field(default_factory=list)

    def add(self, start_s: float, end_s: float, flow_bytes: int) -> None:
        """Count `flow_bytes` that took from `start_s` to `end_s`."""
        self.flow_bytes += flow_bytes
        if self._spans and self._spans[-1][1] == start_s:
            start_s = self._spans.pop()[0]
        self._spans.append((start_s, end_s))

    @property
    def receiving_s(self) -> float:
        """The length of the union of all spans."""
        return union_s(self._spans)


class Train:
    """The frames of one connection that came without a pause of the source in between."""

    def __init__(self, meter: FlowMeter) -> None:
        self._meter = meter
        self._since_s: float | None = None
        self._buffered_bytes = 0

    @property
    def rolling(self) -> bool:
        """Whether the next frame continues this train."""
        return self._since_s is not None

    def pause(self) -> None:
        """The source waited: the next frame starts a new train."""
        self._since_s = None

    def start(self, now_s: float, buffered_bytes: int) -> None:
        """A train's first header is there, with `buffered_bytes` of what follows it already received."""
        self._since_s = now_s
        self._buffered_bytes = buffered_bytes
        if self._meter.first_byte_at_s is None:
            self._meter.first_byte_at_s = now_s

    def frame_done(self, now_s: float, payload_bytes: int) -> None:
        """A frame's payload is complete."""
        assert self._since_s is not None, "a train starts with its first header"
        if self._buffered_bytes >= payload_bytes:
            # All of it was there before the clock was read: it tells nothing about the link, nor does its copying.
            self._since_s = None
            return
        self._meter.add(self._since_s, now_s, payload_bytes - self._buffered_bytes)
        self._since_s, self._buffered_bytes = now_s, 0


def union_s(spans: Iterable[tuple[float, float]]) -> float:
    """The total length of overlapping spans.

    >>> union_s([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total_s, covered_until_s = 0.0, float("-inf")
    for start_s, end_s in sorted(spans):
        total_s += max(0.0, end_s - max(start_s, covered_until_s))
        covered_until_s = max(covered_until_s, end_s)
    return total_s
