"""The data plane: KV blocks from one worker's memory into another's, over sockets or inside gRPC.

A transfer in five steps. The target asks the source over control to open an export (`CachedExport` of cached blocks,
`HandoverExport` of blocks that a prefill is computing) and gets an `Offer` from the source's `DataServer`. It connects,
presents the offer's token, and receives pieces into its own blocks through a `Sink`. The source learns the `Outcome`
and unpins; the target gets a `TransferReport`. `Mover` wraps all of it, with resume, for whoever just wants blocks.
"""

from .arrivals import Arrivals
from .client import SocketSettings, pull
from .errors import Failure, RefusedError, TransferError
from .export import CachedExport, Export, HandoverExport
from .memory import BufferMemory, MemorySink
from .mover import Mover, PullRequest, RetryPolicy, SocketMover, StreamMover
from .report import Outcome, OutcomeStatus, Status, TransferReport
from .server import DataServer
from .session import ServerLimits
from .stream import FrameMessage, FrameStream, messages_of, pull_stream
from .types import BlockMemory, Layout, Offer, Order, Piece, Sink

__all__ = [
    "Arrivals",
    "BlockMemory",
    "BufferMemory",
    "CachedExport",
    "DataServer",
    "Export",
    "Failure",
    "FrameMessage",
    "FrameStream",
    "HandoverExport",
    "Layout",
    "MemorySink",
    "Mover",
    "Offer",
    "Order",
    "Outcome",
    "OutcomeStatus",
    "Piece",
    "PullRequest",
    "RefusedError",
    "RetryPolicy",
    "ServerLimits",
    "Sink",
    "SocketMover",
    "SocketSettings",
    "Status",
    "StreamMover",
    "TransferError",
    "TransferReport",
    "messages_of",
    "pull",
    "pull_stream",
]
