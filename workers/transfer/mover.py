"""Movers: "bring these blocks here" as one call that never raises.

`Mover` is the seam for other transfer engines. `SocketMover` and `StreamMover` need nothing but the network;
Mooncake's Transfer Engine or NIXL (RDMA, GPU memory) fit behind the same Protocol: they resolve the request with the
source, move the bytes, call the sink's `arrived` as pieces land, and report.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from .client import Connect, SocketSettings, pull
from .errors import ConnectionLostError, Failure, RefusedError, TimedOutError, TransferError
from .receiver import classify
from .report import Status, TransferReport
from .resume import ResumingSink, merge
from .sockets import connect_tcp
from .stopping import StoppedError, until_stopped
from .stream import FrameStream, pull_stream
from .types import BlockMemory, Layout, Offer, Order, Sink

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """Which blocks are wanted from whom.

    source: the source worker's control address.
    keys: block keys in prefix order; position `i` of the sink is `keys[i]`. Of a fetch all are named.
    handover: the id of the request whose prefill's blocks are wanted, instead of cached ones; `keys` may then be
        empty, and the source's offer alone says how many blocks come.
    attempts: how often to try in all; a handover is tried once, since its pieces are sent as they are computed.
    """

    source: str
    keys: tuple[int, ...] = ()
    order: Order = Order.FRONT_TO_BACK
    handover: str | None = None
    attempts: int = 3

    def __post_init__(self) -> None:
        if not self.keys and self.handover is None:
            raise ValueError("a pull request needs keys to fetch or a handover to follow")
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}: must be >= 1")


class Mover(Protocol):
    """Brings blocks into this worker's memory."""

    async def pull(self, request: PullRequest, sink: Sink, stop: asyncio.Event | None = None) -> TransferReport:
        """Fill `sink` from `request.source`, until complete, failed, or `stop` is set.

        Raises nothing but `asyncio.CancelledError`: whatever fails, the report says why and the sink knows what
        arrived; the rest is computed instead.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a broken fetch is continued: after `backoff_s`, then doubled each time."""

    backoff_s: float = 0.1
    offer_timeout_s: float = 5.0


class SocketMover:
    """Bulk over plain TCP sockets, straight into the sink's memory.

    open_offer: asks the source (over its control address) to open an export and returns its offer. It may raise
        `RefusedError` for "no, and asking again is no use"; any other error counts as a broken connection.
    memory: the target's own; an offer of another format is refused.
    """

    def __init__(
        self,
        open_offer: Callable[[PullRequest], Awaitable[Offer]],
        memory: BlockMemory,
        *,
        settings: SocketSettings | None = None,
        retry: RetryPolicy | None = None,
        connect: Connect = connect_tcp,
    ) -> None:
        self._open_offer = open_offer
        self._memory = memory
        self._settings = settings or SocketSettings()
        self._retry = retry or RetryPolicy()
        self._connect = connect

    async def pull(self, request: PullRequest, sink: Sink, stop: asyncio.Event | None = None) -> TransferReport:
        """See `Mover.pull`."""

        async def attempt(part: PullRequest, into: Sink) -> TransferReport:
            offer = await _opened(self._open_offer, part, stop, self._retry)
            _check(offer.layout, part, self._memory)
            return await pull(offer, into, settings=self._settings, stop=stop, connect=self._connect)

        return await _pull_in_attempts(request, sink, stop, attempt, self._memory, self._retry)


class StreamMover:
    """The same frames inside a stream of messages (gRPC), where no other port is reachable.

    open_stream: opens the stream with the source; errors as for `SocketMover`'s `open_offer`.
    """

    def __init__(
        self,
        open_stream: Callable[[PullRequest], Awaitable[FrameStream]],
        memory: BlockMemory,
        *,
        idle_timeout_s: float = 10.0,
        timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._open_stream = open_stream
        self._memory = memory
        self._idle_timeout_s = idle_timeout_s
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()

    async def pull(self, request: PullRequest, sink: Sink, stop: asyncio.Event | None = None) -> TransferReport:
        """See `Mover.pull`."""

        async def attempt(part: PullRequest, into: Sink) -> TransferReport:
            stream = await _opened(self._open_stream, part, stop, self._retry)
            try:
                _check(stream.layout, part, self._memory)
            except RefusedError:
                await stream.close()
                raise
            limits = {"idle_timeout_s": self._idle_timeout_s, "timeout_s": self._timeout_s}
            return await pull_stream(stream, into, stop=stop, **limits)

        return await _pull_in_attempts(request, sink, stop, attempt, self._memory, self._retry)


_T = TypeVar("_T")
_Attempt = Callable[[PullRequest, Sink], Awaitable[TransferReport]]


async def _opened(
    opener: Callable[[PullRequest], Awaitable[_T]],
    request: PullRequest,
    stop: asyncio.Event | None,
    retry: RetryPolicy,
) -> _T:
    """What the source answers; every error becomes a `TransferError`."""

    async def opening() -> _T:
        async with asyncio.timeout(retry.offer_timeout_s):
            return await opener(request)

    try:
        return await until_stopped(opening(), stop)
    except (TransferError, StoppedError):
        raise
    except TimeoutError as error:
        raise TimedOutError(f"{request.source} made no offer within {retry.offer_timeout_s} s") from error
    except Exception as error:
        raise ConnectionLostError(f"{request.source} could not be asked: {error!r}") from error


def _check(layout: Layout, request: PullRequest, memory: BlockMemory) -> None:
    if not layout.matches(memory):
        raise RefusedError(
            f"the source's KV ({layout.format!r}, {layout.layers} layers x {layout.layer_block_bytes} bytes) cannot "
            f"be used here ({memory.format!r}, {memory.layers} layers x {memory.layer_block_bytes} bytes)"
        )
    # A source that has lost the back of a prefix may still send its front, in either order: positions count from there.
    if request.handover is None and layout.blocks > len(request.keys):
        raise RefusedError(f"the source offers {layout.blocks} blocks of {len(request.keys)} asked for")


async def _pull_in_attempts(
    request: PullRequest,
    sink: Sink,
    stop: asyncio.Event | None,
    attempt: _Attempt,
    memory: BlockMemory,
    retry: RetryPolicy,
) -> TransferReport:
    started_s = asyncio.get_running_loop().time()
    if request.handover is not None:
        offset_s, report = await _safely(attempt, request, sink, started_s)
        first_byte_s = None if report.first_byte_s is None else report.first_byte_s + offset_s
        return replace(report, seconds=report.seconds + offset_s, first_byte_s=first_byte_s)
    resuming = ResumingSink(
        sink, blocks=len(request.keys), layers=memory.layers, layer_block_bytes=memory.layer_block_bytes
    )
    attempts: list[tuple[float, TransferReport]] = []
    while True:
        part = resuming.next_part()
        keys = request.keys[part.start : part.stop]
        attempts.append(await _safely(attempt, replace(request, keys=keys), resuming, started_s))
        report = attempts[-1][1]
        last = len(attempts) == request.attempts or not (report.failure and report.failure.may_pass)
        if last or not await _backed_off(retry.backoff_s * 2 ** (len(attempts) - 1), stop):
            break
        _log.info("transfer from %s continues after: %s", request.source, report.reason)
    seconds = asyncio.get_running_loop().time() - started_s
    return _complete_or_short(merge(attempts, resuming, seconds), len(request.keys))


async def _safely(
    attempt: _Attempt, request: PullRequest, sink: Sink, started_s: float
) -> tuple[float, TransferReport]:
    """One attempt, and when its transfer began, in seconds from the request's start; errors become a report."""
    loop = asyncio.get_running_loop()
    try:
        report = await attempt(request, sink)
    except Exception as error:
        status, failure = classify(error)
        return loop.time() - started_s, TransferReport(status=status, failure=failure, reason=str(error))
    return loop.time() - report.seconds - started_s, report


async def _backed_off(seconds: float, stop: asyncio.Event | None) -> bool:
    """Wait before the next attempt; False if the receiver stops meanwhile."""
    try:
        await until_stopped(asyncio.sleep(seconds), stop)
    except StoppedError:
        return False
    return True


def _complete_or_short(report: TransferReport, blocks_wanted: int) -> TransferReport:
    if report.status is Status.COMPLETE and report.blocks < blocks_wanted:
        reason = f"the source had only {report.blocks} of {blocks_wanted} blocks"
        return replace(report, status=Status.FAILED, failure=Failure.REFUSED, reason=reason)
    return report
