"""An export as a sequence of frames: the one sender behind sockets and gRPC streams."""

import asyncio
from collections.abc import AsyncGenerator

from .errors import SourceFailedError
from .export import Export
from .frames import KEEPALIVE_S, encode_end, encode_keepalive, encode_piece
from .memory import views_of
from .types import BlockMemory, Layout


def layout_of(export: Export, memory: BlockMemory) -> Layout:
    """The extent of an export out of `memory`; `ValueError` if it has other layers than the memory."""
    if export.layers != memory.layers:
        raise ValueError(f"export of {export.layers} layers from a memory of {memory.layers}; they must be equal")
    return Layout(
        format=memory.format,
        blocks=len(export.blocks),
        layers=memory.layers,
        layer_block_bytes=memory.layer_block_bytes,
    )


async def frames_of(
    export: Export, memory: BlockMemory, *, checksum: bool = True, idle_timeout_s: float = 120.0
) -> AsyncGenerator[list[bytes | memoryview], None]:
    """The frames of `export` up to and including its END, each as [header, payload views...].

    The views are the memory itself: whoever takes a frame sends or copies it before asking for the next. While the
    export waits for compute, a keepalive comes every `KEEPALIVE_S`. If it fails, or nothing becomes ready for
    `idle_timeout_s`, an END that says so comes last and then `SourceFailedError` is raised.
    """
    layer_block_bytes = memory.layer_block_bytes
    paused, idle_s = False, 0.0
    try:
        while (piece := export.poll()) is not None or not export.exhausted:
            if piece is None:
                paused = True
                idle_s = 0.0 if await _woken(export) else idle_s + KEEPALIVE_S
                _check_progress(idle_s, idle_timeout_s)
                if idle_s > 0:
                    yield [encode_keepalive()]
                continue
            views = views_of(memory, export.blocks, piece)
            payload_bytes = piece.layer_count * piece.block_count * layer_block_bytes
            header = encode_piece(piece, views, payload_bytes, after_pause=paused, checksum=checksum)
            paused = False
            yield [header, *views]
    except SourceFailedError as error:
        yield [encode_end(str(error))]
        raise
    yield [encode_end()]


async def _woken(export: Export) -> bool:
    """Wait for the export; False if it has nothing new by the time a keepalive is due."""
    try:
        async with asyncio.timeout(KEEPALIVE_S):
            await export.wait()
    except TimeoutError:
        return False
    return True


def _check_progress(idle_s: float, idle_timeout_s: float) -> None:
    if idle_s >= idle_timeout_s:
        raise SourceFailedError(f"the prefill made no progress for {idle_timeout_s} s")
