"""The bytes behind the store: host memory in slots, filled from and copied into the engine's paged cache.

`HostMemory` is also the mover's `BlockMemory`. The "number" of a block is its key there: an export names the blocks of
a prompt that is still being computed before anybody knows their slots.
"""

from collections.abc import Mapping, Sequence

import torch

from homing.router.core.types import BlockKey

from ..transfer import BufferMemory
from .geometry import KvGeometry
from .store import BlockStore

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By item size: bytes are moved, and not every number format can be moved as such."""


class HostMemory:
    """`store.blocks` slots of [layers, heads, tokens, width]. Pages are taken from the system when first written."""

    def __init__(self, geometry: KvGeometry, store: BlockStore, *, weights: str) -> None:
        size = store.blocks * geometry.block_bytes
        # Pinned memory lets an accelerator copy without staging; where there is none it costs nothing.
        self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self._word = _WORDS[geometry.dtype.itemsize]
        self._slots = self._bytes.view(self._word).view(
            store.blocks, geometry.layers, geometry.heads, geometry.block_tokens, geometry.width
        )
        self._store = store
        self._buffer = BufferMemory(
            self._bytes.numpy().data,
            format=geometry.format(weights),
            layers=geometry.layers,
            layer_block_bytes=geometry.layer_block_bytes,
        )

    @property
    def format(self) -> str:
        """See `BlockMemory`."""
        return self._buffer.format

    @property
    def layers(self) -> int:
        """See `BlockMemory`."""
        return self._buffer.layers

    @property
    def layer_block_bytes(self) -> int:
        """See `BlockMemory`."""
        return self._buffer.layer_block_bytes

    def view(self, block: int, layer_first: int, layer_count: int) -> memoryview:
        """The bytes of the block whose key is `block`; it must be filling or pinned, so that its slot stays."""
        return self._buffer.view(self._store.slot(BlockKey(block)), layer_first, layer_count)

    def gather(self, slots: Sequence[int], kv_caches: Mapping[str, torch.Tensor], block_ids: Sequence[int]) -> None:
        """Copy blocks of the paged cache into slots; returns when the bytes are there."""
        into = torch.tensor(slots)
        for layer, cache in enumerate(kv_caches.values()):
            blocks = cache.view(self._word).index_select(0, torch.tensor(block_ids, device=cache.device))
            self._slots[:, layer].index_copy_(0, into, blocks.to("cpu"))

    def scatter(self, slots: Sequence[int], kv_caches: Mapping[str, torch.Tensor], block_ids: Sequence[int]) -> None:
        """Copy slots into blocks of the paged cache; later work on its device sees them."""
        out_of = torch.tensor(slots)
        for layer, cache in enumerate(kv_caches.values()):
            blocks = self._slots[:, layer].index_select(0, out_of)
            where = torch.tensor(block_ids, device=cache.device)
            cache.view(self._word).index_copy_(0, where, blocks.to(cache.device))
