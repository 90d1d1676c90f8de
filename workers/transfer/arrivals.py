"""Which (layer, position) cells of an export have arrived."""

from .types import Layout, Piece


class Arrivals:
    """A bit per (layer, position) of an export: one integer mask of layers for each position.

    >>> arrivals = Arrivals(blocks=3, layers=2)
    >>> arrivals.add(Piece(layer_first=0, layer_count=2, block_first=0, block_count=1))
    >>> arrivals.add(Piece(layer_first=1, layer_count=1, block_first=1, block_count=1))
    >>> arrivals.front_blocks, arrivals.blocks_complete, arrivals.remaining
    (1, 1, range(1, 3))
    """

    def __init__(self, *, blocks: int, layers: int) -> None:
        self._layers = layers
        self._full = (1 << layers) - 1
        self._masks = [0] * blocks
        self._cells_missing = blocks * layers

    @classmethod
    def of(cls, layout: Layout) -> "Arrivals":
        """An empty set for an export of this layout."""
        return cls(blocks=layout.blocks, layers=layout.layers)

    @property
    def complete(self) -> bool:
        """Whether every layer of every position is there. `O(1)`."""
        return self._cells_missing == 0

    @property
    def blocks_complete(self) -> int:
        """How many positions have all their layers. `O(blocks)`."""
        return sum(mask == self._full for mask in self._masks)

    @property
    def front_blocks(self) -> int:
        """How many positions from the front on are complete without a gap. `O(blocks)`."""
        return next((i for i, mask in enumerate(self._masks) if mask != self._full), len(self._masks))

    @property
    def back_blocks(self) -> int:
        """How many positions at the back are complete without a gap. `O(blocks)`."""
        backwards = enumerate(reversed(self._masks))
        return next((i for i, mask in backwards if mask != self._full), len(self._masks))

    @property
    def remaining(self) -> range:
        """The shortest range of positions that holds all incomplete ones; empty if there are none. `O(blocks)`."""
        first = self.front_blocks
        return range(first, max(first, len(self._masks) - self.back_blocks))

    def add(self, piece: Piece) -> None:
        """Mark the cells of `piece`; those already there stay. `O(piece.block_count)`."""
        bits = _layer_bits(piece)
        for position in piece.positions:
            fresh = bits & ~self._masks[position]
            self._masks[position] |= bits
            self._cells_missing -= fresh.bit_count()

    def overlaps(self, piece: Piece) -> bool:
        """Whether any cell of `piece` is there. `O(piece.block_count)`."""
        bits = _layer_bits(piece)
        return any(self._masks[position] & bits for position in piece.positions)

    def layer_runs(self, piece: Piece, position: int) -> list[tuple[range, bool]]:
        """The layers of `piece` at `position`, cut into runs that are all there (True) or all missing (False)."""
        mask = self._masks[position]
        runs: list[tuple[range, bool]] = []
        start = piece.layer_first
        for layer in range(piece.layer_first, piece.layer_end):
            there = bool(mask >> layer & 1)
            if layer + 1 == piece.layer_end or bool(mask >> (layer + 1) & 1) != there:
                runs.append((range(start, layer + 1), there))
                start = layer + 1
        return runs


def _layer_bits(piece: Piece) -> int:
    return ((1 << piece.layer_count) - 1) << piece.layer_first
