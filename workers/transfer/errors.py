"""What can end a transfer early. The first split is whose fault it was:

    TransferError
    ├── ConnectionLostError     the network, or a peer that died
    ├── TimedOutError           the network, or a peer that hangs
    ├── CorruptFrameError       the network, or broken memory
    ├── RefusedError            the source, on purpose (token, format, blocks gone)
    ├── SourceFailedError       the source, while sending (its prefill failed)
    ├── ProtocolViolationError  the peer's code
    └── SinkFailedError         the receiver's own code

None of these leaves the package through a `Mover`: they become the `failure` and `reason` of a `TransferReport`.
"""

from enum import StrEnum
from typing import ClassVar


class Failure(StrEnum):
    """Why a transfer ended as FAILED; also the label under which failures are counted."""

    CONNECTION = "connection"
    TIMEOUT = "timeout"
    CORRUPT = "corrupt"
    REFUSED = "refused"
    SOURCE = "source"
    PROTOCOL = "protocol"
    SINK = "sink"

    @property
    def may_pass(self) -> bool:
        """Whether trying again can help: the network's failures pass, decisions and bugs do not."""
        return self in {Failure.CONNECTION, Failure.TIMEOUT, Failure.CORRUPT}


class TransferError(Exception):
    """A transfer cannot go on. `str(error)` says what happened and, where there is one, the fix."""

    failure: ClassVar[Failure]


class ConnectionLostError(TransferError):
    """The connection could not be made, broke, or ended before the last frame."""

    failure = Failure.CONNECTION


class TimedOutError(TransferError):
    """Nothing arrived, or nothing could be sent, for longer than the limit; or the whole took too long."""

    failure = Failure.TIMEOUT


class CorruptFrameError(TransferError):
    """A frame's checksum does not match its bytes."""

    failure = Failure.CORRUPT


class RefusedError(TransferError):
    """The source does not send: unknown or used token, other KV format, blocks no longer cached."""

    failure = Failure.REFUSED


class SourceFailedError(TransferError):
    """The source gave up while sending, for example because its prefill failed."""

    failure = Failure.SOURCE


class ProtocolViolationError(TransferError):
    """The peer sent something that the offer or the protocol does not allow."""

    failure = Failure.PROTOCOL


class SinkFailedError(TransferError):
    """The receiving side's sink raised, or handed out buffers of the wrong size."""

    failure = Failure.SINK
