"""Going on after a broken connection: ask for what is missing, and keep what is there as it is."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .arrivals import Arrivals
from .report import TransferReport
from .types import Piece, Sink


class ResumingSink:
    """The sink of a whole request, behind attempts that each ask for a part of it.

    Cells that have arrived are never written again: a worker may be computing on them. Where a later attempt repeats
    them (striped transfers break with gaps), the repeats go to scratch memory.
    """

    def __init__(self, sink: Sink, *, blocks: int, layers: int, layer_block_bytes: int) -> None:
        self._sink = sink
        self._layer_block_bytes = layer_block_bytes
        self._shift = 0
        self._arrivals = Arrivals(blocks=blocks, layers=layers)
        self.payload_bytes = 0

    @property
    def blocks_complete(self) -> int:
        """Positions of the request that are all there."""
        return self._arrivals.blocks_complete

    def next_part(self) -> range:
        """The positions to ask for now; the pieces that come next count from its start."""
        part = self._arrivals.remaining
        self._shift = part.start
        return part

    def wanted(self, piece: Piece) -> bool:
        """As the request's sink says."""
        return self._sink.wanted(self._shifted(piece))

    def buffers(self, piece: Piece) -> Sequence[memoryview]:
        """The request's buffers, with scratch memory in place of what is there."""
        piece = self._shifted(piece)
        if not self._arrivals.overlaps(piece):
            return self._sink.buffers(piece)
        buffers: list[memoryview] = []
        for part, there in self._parts(piece):
            if there:
                buffers.append(memoryview(bytearray(part.layer_count * self._layer_block_bytes)))
            else:
                buffers.extend(self._sink.buffers(part))
        return buffers

    def arrived(self, piece: Piece) -> None:
        """Tell the request's sink about what is new in the piece."""
        piece = self._shifted(piece)
        fresh = [piece]
        if self._arrivals.overlaps(piece):
            fresh = [part for part, there in self._parts(piece) if not there]
        self._arrivals.add(piece)
        for part in fresh:
            self.payload_bytes += part.layer_count * part.block_count * self._layer_block_bytes
            self._sink.arrived(part)

    def _shifted(self, piece: Piece) -> Piece:
        return replace(piece, block_first=piece.block_first + self._shift) if self._shift else piece

    def _parts(self, piece: Piece) -> Iterator[tuple[Piece, bool]]:
        """The piece in wire order, cut where arrived and missing cells meet."""
        for position in piece.positions:
            for layers, there in self._arrivals.layer_runs(piece, position):
                part = Piece(layer_first=layers.start, layer_count=len(layers), block_first=position, block_count=1)
                yield part, there


def merge(attempts: Sequence[tuple[float, TransferReport]], sink: ResumingSink, seconds: float) -> TransferReport:
    """One report of a request's attempts, each with its start in seconds from the request's.

    Times of flow and bytes add up, the first byte is the first of any, and the last attempt says how it ended.
    """
    reports = [report for _, report in attempts]
    last = reports[-1]
    first_bytes = [start_s + report.first_byte_s for start_s, report in attempts if report.first_byte_s is not None]
    connects = [report.connect_s for report in reports if report.connect_s is not None]
    return replace(
        last,
        payload_bytes=sink.payload_bytes,
        blocks=sink.blocks_complete,
        pieces=sum(report.pieces for report in reports),
        seconds=seconds,
        first_byte_s=min(first_bytes, default=None),
        connect_s=min(connects, default=None),
        receiving_s=sum(report.receiving_s for report in reports),
        flow_bytes=sum(report.flow_bytes for report in reports),
        attempts=len(reports),
    )
