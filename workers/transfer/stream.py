"""The same frames as messages of a stream that somebody else carries, for networks where only gRPC passes.

Slower than sockets: each payload is copied out of the source's memory, through protobuf, and into the target's.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from .errors import ConnectionLostError, ProtocolViolationError, SourceFailedError, TimedOutError, TransferError
from .export import Export
from .frames import HEADER_BYTES, Header
from .receiver import Receiver
from .report import Train, TransferReport
from .sending import frames_of
from .stopping import until_stopped
from .types import BlockMemory, Layout, Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMessage:
    """One frame: `header` as on a socket, `payload` as long as the header says."""

    header: bytes
    payload: bytes


async def _nothing() -> None:
    """Closing a stream that needs no closing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStream:
    """An opened stream: what will come, the messages, and how to cancel what carries them."""

    layout: Layout
    messages: AsyncIterator[FrameMessage]
    close: Callable[[], Awaitable[None]] = field(default=_nothing)


async def messages_of(
    export: Export, memory: BlockMemory, *, idle_timeout_s: float = 120.0
) -> AsyncGenerator[FrameMessage, None]:
    """The source's side: `export` as messages, checksummed. An END with a failure is the last, never an exception.

    The caller keeps the blocks pinned until the generator is exhausted or closed.
    """
    frames = frames_of(export, memory, idle_timeout_s=idle_timeout_s)
    async with contextlib.aclosing(frames):
        with contextlib.suppress(SourceFailedError):
            async for header, *payload in frames:
                # END comes as one run of header and text.
                text = header[HEADER_BYTES:]
                yield FrameMessage(header=bytes(header[:HEADER_BYTES]), payload=b"".join([text, *payload]))


async def pull_stream(
    stream: FrameStream,
    sink: Sink,
    *,
    idle_timeout_s: float = 10.0,
    timeout_s: float = 300.0,
    stop: asyncio.Event | None = None,
) -> TransferReport:
    """Receive `stream` into `sink`; the report is as `client.pull`'s, and no failure is raised either.

    A message is seen only when it is whole, so the link's speed is counted from the end of a train's first piece.
    """
    loop = asyncio.get_running_loop()
    receiver = Receiver(stream.layout, sink, loop.time())
    error: BaseException | None = None
    try:
        async with asyncio.timeout(timeout_s):
            await until_stopped(_receive(stream, receiver, idle_timeout_s), stop)
    except TimeoutError:
        error = TimedOutError(f"the transfer was not complete within {timeout_s} s")
    except Exception as failed:
        error = failed
    return receiver.report(loop.time(), error)


async def _receive(stream: FrameStream, receiver: Receiver, idle_timeout_s: float) -> None:
    try:
        await _receive_messages(stream, receiver, idle_timeout_s)
        receiver.ended()
    finally:
        await stream.close()


async def _receive_messages(stream: FrameStream, receiver: Receiver, idle_timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    train = Train(receiver.meter)
    while True:
        message = await _next_message(stream, idle_timeout_s)
        header = Header.decode(message.header)
        if len(message.payload) != header.payload_bytes:
            raise ProtocolViolationError(
                f"message of {len(message.payload)} bytes; its header says {header.payload_bytes}"
            )
        if header.piece is None:
            train.pause()
            if receiver.message(header, message.payload):
                return
            continue
        buffers = receiver.begin(header)
        if header.after_pause or not train.rolling:
            train.start(loop.time(), header.payload_bytes)
        digest = header.digest()
        digest.update(message.payload)
        _scatter(message.payload, buffers)
        receiver.finish(header, digest)
        train.frame_done(loop.time(), header.payload_bytes)
        # A stream that is always ahead would never let this task wait, nor any other run.
        await asyncio.sleep(0)


async def _next_message(stream: FrameStream, idle_timeout_s: float) -> FrameMessage:
    try:
        async with asyncio.timeout(idle_timeout_s):
            return await anext(stream.messages)
    except TimeoutError as error:
        raise TimedOutError(f"no message arrived for {idle_timeout_s} s") from error
    except StopAsyncIteration as error:
        raise ConnectionLostError("the stream ended before its last frame") from error
    except TransferError:
        raise
    except Exception as error:
        # Whatever carries the stream has errors of its own kind; to the transfer they are all a broken connection.
        raise ConnectionLostError(f"the stream broke: {error!r}") from error


def _scatter(payload: bytes, buffers: Sequence[memoryview]) -> None:
    rest = memoryview(payload)
    for buffer in buffers:
        buffer[:] = rest[: len(buffer)]
        rest = rest[len(buffer) :]
