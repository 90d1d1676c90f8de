"""Block memory over any writable buffer, and the sink that receives into it."""

from collections.abc import Sequence

from .arrivals import Arrivals
from .types import BlockMemory, Piece


class BufferMemory:
    """`BlockMemory` over one contiguous, writable buffer `[blocks, layers, layer_block_bytes]`.

    A CPU tensor comes in as `memoryview(tensor.view(torch.uint8).numpy())`; its bytes are sent and received in place.
    Raises `ValueError` if the buffer is read-only, not contiguous, or not a whole number of blocks.
    """

    def __init__(self, buffer: bytearray | memoryview, *, format: str, layers: int, layer_block_bytes: int) -> None:  # noqa: A002
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise ValueError("block memory must be writable and contiguous; pass the tensor itself, not a slice")
        block_bytes = layers * layer_block_bytes
        if view.nbytes == 0 or view.nbytes % block_bytes:
            raise ValueError(f"buffer of {view.nbytes} bytes is no whole number of blocks of {block_bytes} bytes")
        self.format = format
        self.layers = layers
        self.layer_block_bytes = layer_block_bytes
        self.blocks = view.nbytes // block_bytes
        self._bytes = view.cast("B")

    def view(self, block: int, layer_first: int, layer_count: int) -> memoryview:
        """The bytes of a run of layers of a block; `IndexError` if it is not within the memory."""
        if not 0 <= block < self.blocks or layer_first < 0 or layer_first + layer_count > self.layers:
            raise IndexError(f"no layers {layer_first}+{layer_count} of block {block} in this memory")
        start = (block * self.layers + layer_first) * self.layer_block_bytes
        return self._bytes[start : start + layer_count * self.layer_block_bytes]


def views_of(memory: BlockMemory, blocks: Sequence[int], piece: Piece) -> list[memoryview]:
    """The memory of `piece`, in the order of the wire: position by position, layers in order within each."""
    return [memory.view(blocks[i], piece.layer_first, piece.layer_count) for i in piece.positions]


class MemorySink:
    """Receives an export into `blocks` of `memory` (position `i` into `blocks[i]`) and keeps what has arrived.

    Subclasses override `wanted` to stop early and extend `arrived` to let the engine go on.
    """

    def __init__(self, memory: BlockMemory, blocks: Sequence[int]) -> None:
        self.memory = memory
        self.blocks = tuple(blocks)
        self.arrivals = Arrivals(blocks=len(self.blocks), layers=memory.layers)

    def wanted(self, piece: Piece) -> bool:
        """Everything is wanted."""
        return True

    def buffers(self, piece: Piece) -> list[memoryview]:
        """The target blocks' own bytes."""
        return views_of(self.memory, self.blocks, piece)

    def arrived(self, piece: Piece) -> None:
        """Mark the piece in `arrivals`."""
        self.arrivals.add(piece)
