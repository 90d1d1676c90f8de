"""Where blocks from other workers land: in the memory of the sequence that expects them."""

from collections.abc import Callable
from collections.abc import Sequence as Seq

from .engine.sequence import Sequence
from .transfer import Arrivals, BlockMemory, Piece


class ArrivalSink:
    """Receives blocks at `positions` of a sequence straight into the blocks of its table.

    A block counts when all its layers arrived; what was begun and did not arrive whole is wiped by `wipe`, since
    attention may touch slots of a block that are not filled yet, and garbage there could be NaN.
    """

    def __init__(
        self, sequence: Sequence, positions: range, memory: BlockMemory, on_arrival: Callable[[int], None]
    ) -> None:
        self._sequence = sequence
        self._first = positions.start
        self._memory = memory
        self._on_arrival = on_arrival
        self._arrivals = Arrivals(blocks=len(positions), layers=memory.layers)
        self._begun: set[int] = set()
        self._whole: set[int] = set()
        self._scratch = bytearray()

    def wanted(self, piece: Piece) -> bool:
        """Claim the piece's blocks; no (and the transfer ends) when the computation has reached them."""
        positions = self._positions(piece)
        needed = range(max(positions.start, self._sequence.present // self._sequence.block_tokens), positions.stop)
        if not needed:
            return not self._sequence.is_meeting
        if not self._sequence.claim(needed):
            return False
        self._begun.update(needed)
        return True

    def buffers(self, piece: Piece) -> Seq[memoryview]:
        """The blocks' own memory; for blocks that are here already, places to throw bytes away.

        Each has a place of its own: all are filled before any is checked.
        """
        positions = self._positions(piece)
        length = piece.layer_count * self._memory.layer_block_bytes
        if not all(map(self._is_expected, positions)) and len(self._scratch) < length * len(positions):
            self._scratch = bytearray(length * len(positions))
        scratch = memoryview(self._scratch)
        return [
            self._memory.view(self._sequence.blocks[position], piece.layer_first, piece.layer_count)
            if self._is_expected(position)
            else scratch[place * length : (place + 1) * length]
            for place, position in enumerate(positions)
        ]

    def arrived(self, piece: Piece) -> None:
        """Blocks of which this was the last layer are there."""
        self._arrivals.add(piece)
        for position in self._positions(piece):
            index = position - self._first
            if self._is_expected(position) and self._is_whole(index):
                self._whole.add(position)
                self._sequence.arrived(position)
                self._on_arrival(position)

    def wipe(self) -> None:
        """Zero what was begun and is not whole."""
        for position in self._begun - self._whole:
            view = self._memory.view(self._sequence.blocks[position], 0, self._memory.layers)
            view[:] = bytes(len(view))

    def _is_whole(self, index: int) -> bool:
        whole = Piece(layer_first=0, layer_count=self._memory.layers, block_first=index, block_count=1)
        return all(done for _, done in self._arrivals.layer_runs(whole, index))

    def _positions(self, piece: Piece) -> range:
        return range(self._first + piece.block_first, self._first + piece.block_end)

    def _is_expected(self, position: int) -> bool:
        return position in self._begun and position not in self._whole
