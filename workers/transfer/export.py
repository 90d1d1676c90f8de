"""What a source sends, cut into pieces: cached blocks at once, or a prefill's blocks as they are computed.

Rule 1: a piece that was handed out never changes again; its bytes are read when the socket is ready, not before.
Rule 2: several connections may draw from one export; each piece is handed out once.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence

from .arrivals import Arrivals
from .errors import SourceFailedError
from .types import Order, Piece

# 1 MiB keeps a piece in the CPU's cache between checksum and socket, and is quicker than 4 MiB.
PIECE_BYTES = 1024 * 1024
# From the back, a piece is refused as soon as the receiver has computed into any of its blocks: what is at stake where
# the two meet is one piece, so a small model's blocks must not all travel in one.
MEETING_BLOCKS = 4


class Export(ABC):
    """Blocks of the source, in prefix order, and which of their bytes may be sent next."""

    def __init__(self, blocks: Sequence[int], layers: int) -> None:
        if not blocks or layers < 1:
            raise ValueError("an export needs at least one block and one layer; do not open an empty one")
        self.blocks = tuple(blocks)
        self.layers = layers

    @abstractmethod
    def poll(self) -> Piece | None:
        """The next piece if one may be sent now; raises `SourceFailedError` if none will ever come."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether every piece has been handed out."""

    @abstractmethod
    async def wait(self) -> None:
        """Return when `poll` may have something new to say. Safe to cancel."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces from here on, waiting for those that are not ready."""
        while True:
            piece = self.poll()
            if piece is not None:
                yield piece
            elif self.exhausted:
                return
            else:
                await self.wait()


class CachedExport(Export):
    """Blocks that lie in the cache, all layers of a block together, in `order`.

    A piece is a run of whole blocks of about 1 MiB, from the back at most `MEETING_BLOCKS` of them; a block larger than
    1 MiB is cut into runs of its layers.
    """

    def __init__(self, blocks: Sequence[int], order: Order, layers: int, layer_block_bytes: int) -> None:
        super().__init__(blocks, layers)
        self._left = len(self.blocks) * layers
        self._pieces = _cached_pieces(len(self.blocks), order, layers, layer_block_bytes)

    def poll(self) -> Piece | None:
        """The next piece; None when all were handed out."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._left -= piece.block_count * piece.layer_count
        return piece

    @property
    def exhausted(self) -> bool:
        """Whether every piece has been handed out."""
        return self._left == 0

    async def wait(self) -> None:
        """Nothing is ever waited for."""


class HandoverExport(Export):
    """Blocks that are still being computed: the worker says `ready` layer by layer, chunk by chunk.

    All methods belong to the event loop. Bounded: each (layer, position) can be made ready once.
    """

    def __init__(self, blocks: Sequence[int], layers: int, layer_block_bytes: int) -> None:
        super().__init__(blocks, layers)
        self._layer_block_bytes = layer_block_bytes
        self._computed = Arrivals(blocks=len(self.blocks), layers=layers)
        self._queue: deque[Piece] = deque()
        self._failure = ""
        self._changed = asyncio.Event()

    def ready(self, layer_first: int, layer_count: int, block_first: int, block_count: int) -> None:
        """These layers of these positions are written and will not change.

        Raises `ValueError` if they are outside the export or were ready before. After `fail` or an early
        `finish` it does nothing: the prefill may still be unwinding.
        """
        piece = Piece(
            layer_first=layer_first, layer_count=layer_count, block_first=block_first, block_count=block_count
        )
        if piece.layer_end > self.layers or piece.block_end > len(self.blocks):
            raise ValueError(f"{piece}: this export has {self.layers} layers and {len(self.blocks)} blocks")
        if self._computed.overlaps(piece):
            raise ValueError(f"{piece}: some of it was ready before; announce each layer of a block once")
        if self._failure:
            return
        self._computed.add(piece)
        self._queue.extend(_cut(piece, self._layer_block_bytes))
        self._changed.set()

    def finish(self) -> None:
        """The prefill is over. Pieces that never became ready turn this into a failure; idempotent."""
        if not self._computed.complete:
            self.fail("the prefill ended before all blocks were computed")

    def fail(self, reason: str) -> None:
        """The prefill will not go on; pieces that wait to be sent are dropped. The first reason stays."""
        if self._failure or self.exhausted:
            return
        self._failure = reason or "no reason given"
        self._queue.clear()
        self._changed.set()

    def poll(self) -> Piece | None:
        """The next piece that is ready; raises `SourceFailedError` after `fail`."""
        if self._failure:
            raise SourceFailedError(self._failure)
        if not self._queue:
            return None
        piece = self._queue.popleft()
        if self.exhausted:
            # Other connections of this export may be waiting for a piece that will not come.
            self._changed.set()
        return piece

    @property
    def exhausted(self) -> bool:
        """Whether every piece was ready and has been handed out."""
        return self._computed.complete and not self._queue

    async def wait(self) -> None:
        """Return when a piece is ready, all are handed out, or the prefill failed."""
        while not (self._queue or self._failure or self.exhausted):
            self._changed.clear()
            await self._changed.wait()


def _cached_pieces(blocks: int, order: Order, layers: int, layer_block_bytes: int) -> Iterator[Piece]:
    run = max(1, PIECE_BYTES // (layers * layer_block_bytes))
    firsts: Sequence[int] = range(0, blocks, run)
    if order is Order.BACK_TO_FRONT:
        run = min(run, MEETING_BLOCKS)
        # Runs are counted from the back, so that the short one is the last sent.
        firsts = range(blocks - run, -run, -run)
    for first in firsts:
        begin, end = max(0, first), min(blocks, first + run)
        whole = Piece(layer_first=0, layer_count=layers, block_first=begin, block_count=end - begin)
        yield from _cut(whole, layer_block_bytes)


def _cut(piece: Piece, layer_block_bytes: int) -> Iterator[Piece]:
    """Cut `piece` so that none is larger than about `PIECE_BYTES`: by blocks first, then by layers."""
    layer_run = max(1, min(piece.layer_count, PIECE_BYTES // layer_block_bytes))
    block_run = max(1, PIECE_BYTES // (layer_block_bytes * piece.layer_count))
    for block in range(piece.block_first, piece.block_end, block_run):
        for layer in range(piece.layer_first, piece.layer_end, layer_run):
            yield Piece(
                layer_first=layer,
                layer_count=min(layer_run, piece.layer_end - layer),
                block_first=block,
                block_count=min(block_run, piece.block_end - block),
            )
