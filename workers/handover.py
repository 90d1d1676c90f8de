"""Blocks that a prefill computes here for a worker elsewhere: kept, and given away layer by layer.

Rule 1: the blocks are pinned from the moment the prefill has them until nobody reads them or the lease is over.
Rule 2: a handover is taken once; who comes too early waits, who comes too late is refused, and so is who wants the
blocks of another prompt.
"""

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Seq

from homing.router.core.types import BlockKey

from .engine.kvcache import KvCache
from .engine.sequence import Sequence
from .transfer import BlockMemory, Export, HandoverExport, RefusedError

WAIT_S = 120.0
"""How long someone who asks for a handover is kept waiting until the prefill has its blocks."""
ENDS_MAX = 4096
"""So many handovers that ended are remembered, the latest: who asks for one is told at once why it is not to be had."""


class Handover:
    """The blocks of a prefill at certain positions, kept for the worker that will decode, and given away layer by
    layer.

    `layers_done(l, positions)` is told by the forward pass, `whole(positions)` by whatever else makes blocks whole
    (cached before, or arrived); each layer of each block is announced once.
    """

    def __init__(self, sequence: Sequence, blocks: range, memory: BlockMemory) -> None:
        self._blocks = blocks
        self.keys = tuple(sequence.keys[blocks.start : blocks.stop])
        numbers = sequence.blocks[blocks.start : blocks.stop]
        self.export = HandoverExport(numbers, memory.layers, memory.layer_block_bytes)
        self._layers = memory.layers
        self._told: set[int] = set()

    def layer_done(self, layer: int, positions: range) -> None:
        """One more layer of these blocks is in memory."""
        mine = self._clip(positions)
        if mine:
            self._told.update(mine)
            self.export.ready(layer, 1, mine.start - self._blocks.start, len(mine))

    def whole(self, positions: range) -> None:
        """These blocks are in memory with all layers; those that were announced by layer are skipped."""
        for position in self._clip(positions):
            if position not in self._told:
                self._told.add(position)
                self.export.ready(0, self._layers, position - self._blocks.start, 1)

    def _clip(self, positions: range) -> range:
        start, stop = max(positions.start, self._blocks.start), min(positions.stop, self._blocks.stop)
        return range(start, max(start, stop))


class Handovers:
    """All handovers of a worker, by request."""

    def __init__(self, cache: KvCache, memory: BlockMemory) -> None:
        self._cache = cache
        self._memory = memory
        self._coming: dict[str, asyncio.Future[Handover]] = {}
        self._kept: dict[str, Handover] = {}
        self._ended: dict[str, str] = {}
        self.on_room: Callable[[], None] = lambda: None
        """Called when blocks that were kept are given back."""

    def announce(self, request_id: str) -> None:
        """A prefill of this id will have blocks to hand over: who asks waits, however an earlier one ended."""
        self._ended.pop(request_id, None)

    def begin(self, sequence: Sequence, blocks: range, lease_s: float) -> Handover:
        """A prefill has its blocks: keep those at `blocks` for whoever asks within `lease_s`."""
        if sequence.request_id in self._kept:
            self.drop(sequence.request_id, "another prefill of this id came")
        handover = Handover(sequence, blocks, self._memory)
        self._cache.pin(handover.export.blocks)
        self._kept[sequence.request_id] = handover
        self.announce(sequence.request_id)
        coming = self._coming.pop(sequence.request_id, None)
        if coming is not None and not coming.done():
            coming.set_result(handover)
        loop = asyncio.get_running_loop()
        loop.call_later(lease_s, self._expire, sequence.request_id, handover)
        return handover

    async def take(self, request_id: str, keys: Seq[BlockKey]) -> tuple[Export, Callable[[], None]]:
        """The export of a request's handover, and what to call once when nobody reads it any more.

        Waits until the prefill has come, at most WAIT_S. Raises RefusedError when it does not come, at once when the
        handover was taken or given up before, and when its blocks are not those of `keys`.
        """
        if request_id in self._ended:
            raise RefusedError(self._ended[request_id])
        if request_id not in self._kept:
            await self._come(request_id)
        handover = self._kept.get(request_id)
        if handover is None:
            raise RefusedError(f"the handover of request {request_id!r} was taken before or is given up")
        if tuple(keys) != handover.keys:
            raise RefusedError(f"the handover of request {request_id!r} is of another prompt or other blocks")
        del self._kept[request_id]
        self._remember(request_id, f"the handover of request {request_id!r} was taken before")
        return handover.export, lambda: self._give_back(handover)

    async def _come(self, request_id: str) -> None:
        """Wait for a prefill; raises RefusedError when it does not come, or when somebody waits for it already."""
        if request_id in self._coming:
            raise RefusedError(f"somebody waits for the handover of request {request_id!r} already")
        coming = self._coming[request_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(WAIT_S):
                await coming
        except TimeoutError:
            raise RefusedError(f"no prefill of request {request_id!r} came within {WAIT_S} s") from None
        finally:
            # Whoever leaves early must leave nothing: a prefill that never comes would never clear it.
            if self._coming.get(request_id) is coming:
                del self._coming[request_id]

    def drop(self, request_id: str, reason: str) -> None:
        """Give a handover up, begun or not: who waits or asks later is refused, and what it kept is unpinned."""
        coming = self._coming.pop(request_id, None)
        if coming is not None and not coming.done():
            coming.set_exception(RefusedError(reason))
            coming.exception()
        handover = self._kept.pop(request_id, None)
        if handover is not None:
            self._give_back(handover)
        self._remember(request_id, reason)

    def _remember(self, request_id: str, reason: str) -> None:
        self._ended[request_id] = reason
        if len(self._ended) > ENDS_MAX:
            del self._ended[next(iter(self._ended))]

    def _give_back(self, handover: Handover) -> None:
        self._cache.unpin(handover.export.blocks)
        self.on_room()

    def _expire(self, request_id: str, handover: Handover) -> None:
        if self._kept.get(request_id) is handover:
            self.drop(request_id, "nobody came for the handover in time")
